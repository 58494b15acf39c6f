"""References to secrets and what resolves them."""

from litellm_orchestration._namespace import share

__path__, __getattr__ = share(__name__, __path__)
