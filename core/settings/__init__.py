"""The `orchestration:` section of config.yaml: read, checked, frozen. Imports neither LiteLLM nor a database driver."""

from core.settings.crosscheck import cross_check, model_names_of
from core.settings.environment import OVERRIDES, Override, shared_state_url, store_url
from core.settings.finding import Finding, InvalidConfig
from core.settings.loading import Loaded, load
from core.settings.models import Settings
from core.settings.reference import is_reference, resolve_environ
from core.settings.unbuilt import UNBUILT, Unbuilt, unbuilt
from core.settings.urls import redacted

__all__ = [
    "load",
    "Loaded",
    "Settings",
    "Finding",
    "InvalidConfig",
    "cross_check",
    "model_names_of",
    "OVERRIDES",
    "Override",
    "store_url",
    "shared_state_url",
    "resolve_environ",
    "is_reference",
    "redacted",
    "UNBUILT",
    "Unbuilt",
    "unbuilt",
]
