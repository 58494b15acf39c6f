"""The proxy's cache: answers that exist, before LiteLLM's pipeline or after its authentication."""
