"""Routing, the LiteLLM side: what it has to know of model groups and requests, and what it writes into them."""
