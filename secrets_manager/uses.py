"""Where a configuration uses which secrets."""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from core.settings.reference import MalformedReference, SecretReference, is_vault_reference

_CREDENTIAL = re.compile(r"key|token|secret|password|passphrase|credential|auth|header", re.I)
_NO_CREDENTIAL = {"max_tokens", "max_completion_tokens", "max_output_tokens"}


@dataclass(frozen=True, slots=True)
class Use:
    """A place of a configuration that names a secret.

    `model` is the model group, for what stands in `model_list`. `per_request` says that the value is put into each call
    and LiteLLM keeps only a placeholder; everything else LiteLLM needs at the start and keeps.
    """

    reference: SecretReference
    path: tuple[str | int, ...]
    model: str | None = None
    per_request: bool = False

    @property
    def place(self) -> str:
        """The path as people write it: `model_list[0].litellm_params.api_key`."""
        text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path)
        return text.removeprefix(".")


def uses_of(document: Mapping[str, Any], default_provider: str) -> tuple[Use, ...]:
    """Every reference to a vault in a configuration as LiteLLM reads it. What is written wrongly is left out: `check`
    has said so."""
    return tuple(use for name, value in document.items() for use in _uses(value, (str(name),), document, default_provider))


def _uses(value: Any, path: tuple[str | int, ...], document: Mapping[str, Any], default: str) -> Iterator[Use]:
    if isinstance(value, dict):
        for name, item in cast("dict[object, Any]", value).items():
            yield from _uses(item, (*path, str(name)), document, default)
    elif isinstance(value, list):
        for index, item in enumerate(cast("list[Any]", value)):
            yield from _uses(item, (*path, index), document, default)
    elif is_vault_reference(value):
        try:
            reference = SecretReference.parse(value, default)
        except MalformedReference:
            return
        yield Use(reference, path, *_kind(path, document))


def _kind(path: tuple[str | int, ...], document: Mapping[str, Any]) -> tuple[str | None, bool]:
    """The model a place belongs to, and whether its value is put in at each call."""
    match path:
        case ("model_list", int(index), "litellm_params", str(name), *_):
            entry = document["model_list"][index]
            parameters = entry["litellm_params"]
            # LiteLLM's pass-through routes take the credential from the router, without a hook of ours.
            passed_through = bool(parameters.get("use_in_pass_through"))
            return str(entry.get("model_name")), is_credential(name) and not passed_through
        case ("model_list", int(index), *_):
            return str(document["model_list"][index].get("model_name")), False
        case ("credential_list", int(), "credential_values", str(name), *_):
            return None, is_credential(name)
        case _:
            return None, False


def is_credential(parameter: str) -> bool:
    """Whether a parameter of a model is secret by its name; `api_base` and the like LiteLLM has to know itself."""
    return parameter not in _NO_CREDENTIAL and _CREDENTIAL.search(parameter) is not None
