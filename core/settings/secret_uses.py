"""Where a configuration uses which secrets."""

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias, cast

from core.settings.reference import MalformedReference, SecretReference, is_vault_reference

_CREDENTIAL = re.compile(r"key|token|secret|password|passphrase|credential|auth|header", re.I)
_NO_CREDENTIAL = {"max_tokens", "max_completion_tokens", "max_output_tokens"}


Path: TypeAlias = tuple[str | int, ...]
"""Where in a configuration: names of fields and indexes of lists, from the top."""


@dataclass(frozen=True, slots=True)
class Use:
    """A place of a configuration that names a secret.

    `model` is the model group, for what stands in `model_list`. `per_request` says that the value is put into each call
    and LiteLLM keeps only a placeholder; everything else LiteLLM needs at the start and keeps.
    """

    reference: SecretReference
    path: Path
    model: str | None = None
    per_request: bool = False

    @property
    def place(self) -> str:
        """The path as people write it: `model_list[0].litellm_params.api_key`."""
        text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in self.path)
        return text.removeprefix(".")


def uses_of(document: Mapping[str, Any], default_provider: str) -> tuple[Use, ...]:
    """Every reference to a vault in a configuration as LiteLLM reads it. What is written wrongly is left out: `check`
    says so."""
    found: list[Use] = []
    for path, text in vault_references(document):
        with suppress(MalformedReference):
            reference = SecretReference.parse(text, default_provider)
            found.append(Use(reference, path, *_kind(path, document)))
    return tuple(found)


def vault_references(value: object) -> Iterator[tuple[Path, str]]:
    """Where below `value` a reference to a vault stands, and its text. What aliases repeat is met in each place, and a
    mapping that contains itself once."""
    return _below(value, (), ())


def _below(value: object, path: Path, around: tuple[int, ...]) -> Iterator[tuple[Path, str]]:
    me = id(value)
    if me in around:
        return
    if isinstance(value, dict):
        for name, item in cast("dict[object, object]", value).items():
            yield from _below(item, (*path, str(name)), (*around, me))
    elif isinstance(value, list):
        for index, item in enumerate(cast("list[object]", value)):
            yield from _below(item, (*path, index), (*around, me))
    elif is_vault_reference(value):
        yield path, cast(str, value)


def _kind(path: Path, document: Mapping[str, Any]) -> tuple[str | None, bool]:
    """The model a place belongs to, and whether its value is put in at each call."""
    match path:
        case ("model_list", int(index), "litellm_params", str(name), *_):
            entry: dict[str, Any] = document["model_list"][index]
            parameters: dict[str, Any] = entry["litellm_params"]
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
