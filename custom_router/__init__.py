"""From a request's context to ranked candidates, with reasons."""

from litellm_orchestration._namespace import share

__path__, __getattr__ = share(__name__, __path__)
