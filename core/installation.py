"""What loads us into an existing LiteLLM config: lines put in and taken out as edits of its text, and a small file.

`install` and `uninstall` take a config's text and return the new one, everything else byte for byte as it was: the
edits of `core/yaml_text.py` are insertions and their removal, and the result is parsed again and must mean the old
document plus, or minus, exactly our lines. What cannot be edited like that is refused with the reason.

PyYAML reads the text because LiteLLM does.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import yaml

from core import yaml_text
from core.errors import ConfigError

# What YAML gives for a document: somebody else's mapping with values of any kind.
Data = dict[str, Any]

CALLBACK = "litellm_orchestration.callback"
# LiteLLM loads a secret manager only from a file beside the config, named without dots.
SECRETS_FILE = "orchestration_secrets.py"
SECRETS_SOURCE = """\
# Added by llm-orchestration init: LiteLLM loads its secret manager from a file beside the config.

from secrets_manager.proxy import SecretManager as SecretManager
"""
_SECRETS_CLASS = "orchestration_secrets.SecretManager"
_SECRET_MANAGER: Data = {
    "key_management_system": "custom",
    "key_management_settings": {"custom_secret_manager": _SECRETS_CLASS},
}
_SYSTEM_LINE = "key_management_system: custom"
_CLASS_LINE = f"key_management_settings: {{custom_secret_manager: {_SECRETS_CLASS}}}"
_GENERAL_BLOCK = f"""\
# Added by llm-orchestration init.
general_settings:
  {_SYSTEM_LINE}
  {_CLASS_LINE}"""
# Any of these says that the team has a secret manager of its own.
_KEY_MANAGEMENT = (*_SECRET_MANAGER, "use_google_kms", "use_azure_key_vault")
_SETTINGS_BLOCK = f"""\
# Added by llm-orchestration init.
litellm_settings:
  callbacks: [{CALLBACK}]"""
_ORCHESTRATION_BLOCK = """\
# Added by llm-orchestration init. All of it is optional: `llm-orchestration schema` lists the settings,
# `llm-orchestration check` checks them, `llm-orchestration init --undo` takes these lines out again.
orchestration:
  environment: development   # production refuses unsafe defaults
  # store: {url: os.environ/LLM_GATEWAY_DB_URL}   # usage events; by default a SQLite file beside the proxy
  # groups: {ai_team: {users: [ada], teams: [research]}}
  # tiers: {free: {models: ["*"]}, premium: {models: ["*"]}}
  # default_tier: free"""


class CannotEdit(ConfigError):
    """The config has a form in which our lines cannot be placed or removed safely; says which and what to do."""


@dataclass(frozen=True)
class Change:
    """A config's new text, and what was done to it in sentences for a person."""

    text: str
    notes: tuple[str, ...]


def install(text: str, *, secrets: bool = True, replaced_by: str | None = None) -> Change:
    """Add our callback, our secret manager and an `orchestration:` section where they are missing.

    A secret manager of the team's own stays, as does a config whose `general_settings` have no safe place for ours or
    are replaced by those of the included file `replaced_by`; without `secrets` none is added.

    Raises:
        CannotEdit: the text is no YAML mapping in block style, or an anchor, alias or merge key is in the way.
    """
    before = _data(text)
    expected = _meaning(before)
    notes: list[str] = []
    if CALLBACK in callbacks_of(before):
        notes.append(f"litellm_settings.callbacks has {CALLBACK} already.")
    else:
        text = _edited(yaml_text.with_item, text, CALLBACK, _SETTINGS_BLOCK)
        settings = expected.setdefault("litellm_settings", {})
        settings["callbacks"] = [*callbacks_of(before), CALLBACK]
        notes.append(f"Added {CALLBACK} to litellm_settings.callbacks.")
    _verify(text, expected)
    if secrets:
        text, note = _with_secret_manager(text, expected, replaced_by)
        notes.append(note)
    if "orchestration" in before:
        notes.append("The section orchestration: is there already.")
    else:
        text = _edited(yaml_text.with_block, text, _ORCHESTRATION_BLOCK)
        expected["orchestration"] = yaml.safe_load(_ORCHESTRATION_BLOCK)["orchestration"]
        notes.append("Added a section orchestration: at the end.")
    _verify(text, expected)
    return Change(text, tuple(notes))


def _with_secret_manager(text: str, expected: Data, replaced_by: str | None) -> tuple[str, str]:
    """The text with the two settings, which go into `expected` too, or as it is; and a sentence about it."""
    if names_our_secret_manager(expected):
        return text, "general_settings has our secret manager already."
    if replaced_by is not None:
        return text, f"Added no secret manager: the included {replaced_by} replaces general_settings."
    settings = expected.get("general_settings")
    if settings is not None and not isinstance(settings, dict):
        raise CannotEdit("general_settings is not a mapping.")
    own = [name for name in _KEY_MANAGEMENT if (cast(Data, settings) or {}).get(name)]
    if own:
        return text, f"Added no secret manager: general_settings.{own[0]} is set, and yours stays."
    try:
        if "general_settings" in _data(text):
            longer = text
            for line in (_CLASS_LINE, _SYSTEM_LINE):  # in a block the last one in comes first
                longer = _edited(yaml_text.with_setting, longer, "general_settings", line)
        else:
            longer = _edited(yaml_text.with_block, text, _GENERAL_BLOCK)
        wanted = {**expected, "general_settings": {**(cast(Data, settings) or {}), **_SECRET_MANAGER}}
        _verify(longer, wanted)
    except CannotEdit:
        return text, "Added no secret manager: general_settings has no safe place for it."
    expected.update(wanted)
    return longer, "Added our secret manager to general_settings."


def secret_manager_named_in(text: str) -> bool:
    """`names_our_secret_manager` of a config's text."""
    return names_our_secret_manager(_data(text))


def names_our_secret_manager(data: Data) -> bool:
    """Whether LiteLLM would look for `SECRETS_FILE` beside this config."""
    settings: Any = data.get("general_settings")
    if not isinstance(settings, dict) or cast(Data, settings).get("key_management_system") != "custom":
        return False
    more: Any = cast(Data, settings).get("key_management_settings")
    return isinstance(more, dict) and cast(Data, more).get("custom_secret_manager") == _SECRETS_CLASS


def uninstall(text: str) -> Change:
    """Remove what `install` added; a section `orchestration:` that was changed since then stays.

    Raises:
        CannotEdit: as for `install`.
    """
    before = _data(text)
    expected = _meaning(before)
    notes: list[str] = []
    shortened = yaml_text.without_block(text, _ORCHESTRATION_BLOCK)
    if shortened is not None:
        text = shortened
        del expected["orchestration"]
        notes.append("Removed the section orchestration:.")
    elif "orchestration" in before:
        notes.append("Kept the section orchestration: it is not as init wrote it. LiteLLM ignores it.")
    if names_our_secret_manager(before):
        settings: Data = dict(expected["general_settings"])
        if all(settings[name] == value for name, value in _SECRET_MANAGER.items()):
            text = _without_secret_manager(text)
            expected["general_settings"] = {name: settings[name] for name in settings if name not in _SECRET_MANAGER}
            notes.append("Removed our secret manager from general_settings.")
        else:
            notes.append("Kept general_settings.key_management_settings: it is not as init wrote it.")
    if CALLBACK in callbacks_of(before):
        while CALLBACK in callbacks_of(_data(text)):
            text = _edited(yaml_text.without_item, text, CALLBACK, _SETTINGS_BLOCK)
        remaining = [callback for callback in callbacks_of(before) if callback != CALLBACK]
        expected["litellm_settings"]["callbacks"] = remaining
        notes.append(f"Removed {CALLBACK} from litellm_settings.callbacks.")
    _verify(text, _meaning(expected))
    return Change(text, tuple(notes) or ("Nothing of ours is in this file.",))


def _without_secret_manager(text: str) -> str:
    shortened = yaml_text.without_block(text, _GENERAL_BLOCK)
    if shortened is not None:
        return shortened
    for name in _SECRET_MANAGER:
        text = _edited(yaml_text.without_setting, text, "general_settings", name)
    return text


def overriding_include(text: str, section: str, read: Callable[[str], str]) -> str | None:
    """The name of an included file whose `section` replaces this config's, as LiteLLM merges them.

    `read` gives the text of a file named by `include`.

    Raises:
        CannotEdit: a file is not there or has includes of its own, so that the outcome cannot be foretold.
    """
    include: Any = _data(text).get("include") or []
    names = cast("list[Any]", include) if isinstance(include, list) else [include]
    overriding: str | None = None
    for name in names:
        try:
            data = _data(read(str(name)))
        except (OSError, CannotEdit) as error:
            raise CannotEdit(
                f"The included file {name} cannot be read ({error}), and it may replace {section}. "
                "Run init where the file can be read."
            ) from error
        if "include" in data:
            raise CannotEdit(f"The included file {name} includes others. Run init on the file with litellm_settings.")
        if section in data:
            overriding = str(name)
    return overriding


def callbacks_of(data: Data) -> list[Any]:
    """`litellm_settings.callbacks` as a list, whichever form it has.

    Raises:
        CannotEdit: litellm_settings is not a mapping.
    """
    settings = data.get("litellm_settings")
    if settings is None:
        return []
    if not isinstance(settings, dict):
        raise CannotEdit("litellm_settings is not a mapping.")
    callbacks = cast(Data, settings).get("callbacks")
    if callbacks is None:
        return []
    return cast("list[Any]", callbacks) if isinstance(callbacks, list) else [callbacks]


def _data(text: str) -> Data:
    try:
        data = yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError) as error:
        raise CannotEdit(f"This is not YAML that LiteLLM can read: {error}") from error
    if not isinstance(data, dict):
        kind = "empty" if data is None else f"a {type(data).__name__}"
        raise CannotEdit(f"A LiteLLM config is a mapping with model_list and other sections; this file is {kind}.")
    return cast(Data, data)


def _meaning(data: Data) -> Data:
    """The document with `callbacks` as a list, and without empty `callbacks` or sections that we may have emptied."""
    meaning = dict(data)
    if not meaning.get("general_settings"):
        meaning.pop("general_settings", None)
    callbacks = callbacks_of(data)
    settings: Data = {**(data.get("litellm_settings") or {}), "callbacks": callbacks}
    if not callbacks:
        del settings["callbacks"]
    if settings:
        meaning["litellm_settings"] = settings
    else:
        meaning.pop("litellm_settings", None)
    return meaning


def _edited(edit: Callable[..., str], text: str, *arguments: str) -> str:
    try:
        return edit(text, *arguments)
    except yaml_text.NoPlace as error:
        raise CannotEdit(f"{error} Edit by hand: add or remove {CALLBACK} in litellm_settings.callbacks.") from error
    except yaml.YAMLError as error:  # the edit before this one made something else of the text
        raise _too_much() from error


def _too_much() -> CannotEdit:
    return CannotEdit(
        "Our lines would change more than themselves here, because of an anchor, an alias, a merge key, a text without "
        "a final line break or an unusual layout. "
        f"Edit by hand: add {CALLBACK} to litellm_settings.callbacks."
    )


def _verify(text: str, expected: Data) -> None:
    try:
        if _meaning(_data(text)) == expected:
            return
    except CannotEdit:
        pass
    raise _too_much()
