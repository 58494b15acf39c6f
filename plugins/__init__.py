"""The LiteLLM side: the ASGI edge, the hooks, and the services they call."""

from litellm_orchestration._namespace import share

__path__, __getattr__ = share(__name__, __path__)
