"""What every part shares and nothing that knows LiteLLM's hooks: settings, context, runtime, store, command line."""

from litellm_orchestration._namespace import share

__path__, __getattr__ = share(__name__, __path__)
