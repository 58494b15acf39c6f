"""References such as `os.environ/NAME` and `os.environ/azure://name`: their syntax, and the plain ones' values.

Nothing here asks a vault; a reference stays a reference in the settings.
"""

import difflib
import re
from collections.abc import Mapping

from core.errors import ConfigError

PREFIX = "os.environ/"
PROVIDERS = ("azure", "aws", "hashicorp", "env")
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_EXPECTED = "os.environ/NAME or os.environ/<azure|aws|hashicorp|env>://<identifier>"


def is_reference(value: object) -> bool:
    """Whether LiteLLM would look the value up rather than take it as written."""
    return isinstance(value, str) and value.startswith(PREFIX)


def checked_reference(value: str) -> str:
    """The reference itself; ValueError when it is written wrongly. The message never repeats the value."""
    if not value.startswith(PREFIX):
        raise ValueError(f"must be a reference ({_EXPECTED}), never the secret itself")
    rest = value.removeprefix(PREFIX)
    if "://" not in rest:
        if not _VARIABLE.fullmatch(rest):
            raise ValueError(f"is not a reference that can be looked up; write {_EXPECTED}")
        return value
    provider, _, identifier = rest.partition("://")
    if provider not in PROVIDERS:
        near = difflib.get_close_matches(provider, PROVIDERS, n=1)
        hint = f"; did you mean '{near[0]}://'?" if near else ""
        raise ValueError(f"names an unknown provider (known: {', '.join(PROVIDERS)}){hint}")
    path, _, field = identifier.partition("#")
    name, question, query = path.partition("?")
    if not name or any(character.isspace() for character in value):
        raise ValueError(f"has no identifier that can be looked up; write {_EXPECTED}")
    if question and not re.fullmatch(r"version=[^&=]+", query):
        raise ValueError("takes ?version=<version> and nothing else after the identifier")
    if "#" in identifier and (not field or provider not in {"aws", "hashicorp"}):
        raise ValueError("takes #<field> only with aws:// and hashicorp://, and not empty")
    if provider == "env" and (question or not _VARIABLE.fullmatch(name)):
        raise ValueError("must be os.environ/env://<NAME> with the name of an environment variable")
    return value


def resolve_environ(value: str, environ: Mapping[str, str]) -> str:
    """A plain setting's value: what `os.environ/NAME` stands for in `environ`, or the value as written.

    Raises ConfigError when the variable is not set, or when the reference needs a vault.
    """
    if not is_reference(value):
        return value
    name = value.removeprefix(PREFIX).removeprefix("env://")
    if not _VARIABLE.fullmatch(name):
        raise ConfigError("this setting can only refer to an environment variable: os.environ/NAME")
    resolved = environ.get(name)
    if not resolved:
        raise ConfigError(f"the environment variable {name} is not set")
    return resolved
