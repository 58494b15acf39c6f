"""`install` and `uninstall`: whatever form a config has, our lines go in alone and come out without a trace."""

import difflib
from itertools import product

import pytest
import yaml

from core.installation import CALLBACK, CannotEdit, install, overriding_include, uninstall

MODELS = """\
# our proxy
model_list:
- model_name:   small    # two spaces kept
  litellm_params: {model: "openai/gpt-4o-mini", mock_response: 'hi'}

"""

MANAGER = {
    "key_management_system": "custom",
    "key_management_settings": {"custom_secret_manager": "orchestration_secrets.SecretManager"},
}
SETTINGS = {
    "absent": "",
    "empty": "litellm_settings:",
    "empty with a comment": "litellm_settings:   # later",
    "block": "litellm_settings:\n  # first\n  drop_params: true   # yes\n\n  # last",
    "deeper block": "litellm_settings:\n\n      drop_params: true",
    "block scalar last": "litellm_settings:\n  note: |\n    callbacks: [nothing]\n    end",
    "braces": "litellm_settings: {drop_params: true, set_verbose: false } # flow",
    "empty braces": "litellm_settings: {}",
    "braces over lines": "litellm_settings: {\n  drop_params: true, # a comment\n  set_verbose: false # another\n}",
    "string": "litellm_settings:\n  callbacks: plugins.my_handler  # ours",
    "quoted string": "litellm_settings:\n    callbacks: 'plugins.my_handler'\n    drop_params: true",
    "string in braces": "litellm_settings: {callbacks: otel, drop_params: true}",
    "flow list": "litellm_settings:\n  callbacks: [plugins.my_handler, otel]",
    "flow list of one": "litellm_settings:\n  callbacks: [ plugins.my_handler ]  # one",
    "flow list with a trailing comma": "litellm_settings:\n  callbacks: [plugins.my_handler,]",
    "flow list over lines": 'litellm_settings:\n  callbacks: [\n    "a.b", # first\n    c.d # last\n  ]',
    "empty flow list": "litellm_settings:\n  callbacks: []",
    "empty value": "litellm_settings:\n  callbacks:\n  drop_params: true",
    "block list": "litellm_settings:\n  callbacks:\n    - plugins.mine\n    - otel  # traces\n  drop_params: true",
    "block list at the key's column": "litellm_settings:\n  callbacks:\n  - 'plugins.my_handler'\n\n  # end",
    "anchored elsewhere": "litellm_settings: &settings\n  drop_params: true",
}
AROUND = {
    "last, with a line break": "{models}{settings}\n",
    "last, without a line break": "{models}{settings}",
    "last, with empty lines": "{models}{settings}\n\n\n",
    "first": "{settings}\n\n{models}general_settings:\n  master_key: os.environ/KEY\n# the end",
    "with our section": "orchestration:\n  environment: production\n{models}{settings}\n",
}
CASES = [
    pytest.param(
        around.format(models=MODELS, settings=settings).replace("\n", newline), id=f"{name}, {where}, {ending}"
    )
    for (name, settings), (where, around), (ending, newline) in product(
        SETTINGS.items(), AROUND.items(), [("LF", "\n"), ("CRLF", "\r\n")]
    )
    if (name, where) != ("block scalar last", "last, without a line break")  # any line after it becomes part of it
]


@pytest.mark.slow
@pytest.mark.parametrize("text", CASES)
def test_our_lines_go_in_alone_and_come_out_without_a_trace(text: str) -> None:
    installed = install(text).text

    before, after = yaml.safe_load(text), yaml.safe_load(installed)
    callbacks = ((before.get("litellm_settings") or {}).get("callbacks")) or []
    theirs = callbacks if isinstance(callbacks, list) else [callbacks]
    got = after["litellm_settings"]["callbacks"]
    assert (got if isinstance(got, list) else [got]) == [*theirs, CALLBACK]
    assert after["orchestration"] == before.get("orchestration", {"environment": "development"})
    assert after["general_settings"] == {**(before.get("general_settings") or {}), **MANAGER}
    ours = ("litellm_settings", "general_settings")
    assert {name: after[name] for name in before if name not in ours} == {
        name: before[name] for name in before if name not in ours
    }

    assert {tag for tag, *_ in changes(text, installed)} == {"insert"}
    assert install(installed).text == installed
    assert uninstall(installed).text == text
    assert installed.count("\r\n") == (installed.count("\n") if "\r\n" in text else 0)


@pytest.mark.parametrize(
    "general",
    [
        "general_settings:",
        "general_settings:  # later",
        "general_settings: {}",
        "general_settings: { master_key: os.environ/KEY } # flow",
        "general_settings: {\n  master_key: os.environ/KEY, # a comment\n  max_parallel_requests: 3 # another\n}",
        "general_settings:\n  # first\n  master_key: os.environ/KEY   # yes\n\n  # last",
        "general_settings:\n      master_key: os.environ/KEY\n      alerting: [slack]",
    ],
)
@pytest.mark.parametrize("around", ["{models}{general}\n", "{general}\n\n{models}", "{models}{general}"])
def test_our_secret_manager_goes_into_general_settings_and_comes_out(general: str, around: str) -> None:
    text = around.format(models=MODELS, general=general)
    before = yaml.safe_load(text)["general_settings"] or {}
    installed = install(text).text
    assert yaml.safe_load(installed)["general_settings"] == {**before, **MANAGER}
    assert {tag for tag, *_ in changes(text, installed)} == {"insert"}
    assert install(installed).text == installed
    assert uninstall(installed).text == text


@pytest.mark.parametrize(
    ("general", "why"),
    [
        ("{key_management_system: hashicorp_vault}", "key_management_system is set, and yours stays"),
        ("{key_management_settings: {hosted_keys: [A]}}", "key_management_settings is set, and yours stays"),
        ("{use_azure_key_vault: true}", "use_azure_key_vault is set, and yours stays"),
        ("&general {master_key: os.environ/KEY}\nother: *general", "no safe place"),
    ],
)
def test_a_team_that_has_its_own_keeps_it_and_is_told(general: str, why: str) -> None:
    text = f"model_list: []\ngeneral_settings: {general}\n"
    change = install(text)
    assert yaml.safe_load(change.text)["general_settings"] == yaml.safe_load(text)["general_settings"]
    assert CALLBACK in change.text
    assert any(note.startswith("Added no secret manager") and why in note for note in change.notes)
    assert uninstall(change.text).text == text


def test_an_include_that_replaces_general_settings_leaves_no_place_for_our_secret_manager() -> None:
    change = install(MODELS, replaced_by="more.yaml")
    assert "general_settings" not in yaml.safe_load(change.text)
    assert "Added no secret manager: the included more.yaml replaces general_settings." in change.notes


def test_a_secret_manager_that_was_given_more_settings_stays_and_is_named() -> None:
    grown = install(MODELS).text.replace(".SecretManager}", ".SecretManager, store_virtual_keys: true}")
    change = uninstall(grown)
    assert yaml.safe_load(change.text)["general_settings"]["key_management_settings"]["store_virtual_keys"] is True
    assert any(note.startswith("Kept general_settings.key_management_settings:") for note in change.notes)


def changes(before: str, after: str) -> list[tuple[str, int, int, int, int]]:
    opcodes = difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    return [opcode for opcode in opcodes if opcode[0] != "equal"]


def test_one_more_line_is_all_that_a_block_list_gets() -> None:
    text = "litellm_settings:\n  callbacks:\n    - plugins.mine # first\norchestration: {}\n"
    assert install(text, secrets=False).text == (
        "litellm_settings:\n  callbacks:\n    - plugins.mine # first\n    - litellm_orchestration.callback\n"
        "orchestration: {}\n"
    )


def test_what_a_user_added_meanwhile_survives_undo() -> None:
    text = "model_list: []\n"
    installed = install(text).text
    grown = installed.replace(f"[{CALLBACK}]", f"[{CALLBACK}, theirs.late]\n  drop_params: true").replace(
        "  environment: development ", "  environment: production "
    )
    change = uninstall(grown)
    data = yaml.safe_load(change.text)
    assert data["litellm_settings"] == {"callbacks": ["theirs.late"], "drop_params": True}
    assert data["orchestration"] == {"environment": "production"}
    assert any(note.startswith("Kept the section orchestration:") for note in change.notes)


def test_a_callback_written_by_hand_comes_out_too() -> None:
    assert uninstall(f"litellm_settings:\n  callbacks: {CALLBACK}\n").text == "litellm_settings:\n  callbacks: []\n"
    assert uninstall(f"litellm_settings:\n  callbacks:\n    - {CALLBACK}\n").text == "litellm_settings:\n"


def test_undo_without_an_installation_changes_nothing_and_says_so() -> None:
    change = uninstall(MODELS)
    assert (change.text, change.notes) == (MODELS, ("Nothing of ours is in this file.",))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("a: [1", "not YAML"),
        ("a: 1\n---\nb: 2\n", "not YAML"),
        ("", "this file is empty"),
        ("- a\n", "this file is a list"),
        ('{"model_list": []}', "one pair of braces"),
        ("litellm_settings: 3\n", "litellm_settings is not a mapping"),
        ("base: &base {drop_params: true}\nlitellm_settings: *base\n", "alias"),
        ("base: &base\n  - a.b\nlitellm_settings:\n  callbacks: *base\n", "alias"),
        ("base: &base {callbacks: [a.b]}\nlitellm_settings:\n  <<: *base\n  x: 1\n", "merge key"),
        ("litellm_settings: &a\n  drop_params: true\nother: *a\n", "anchor"),
        ("model_list: []\n...\n", "unusual layout"),
        ("note: |\n  no final line break", "without a final line break"),
    ],
)
def test_what_cannot_be_edited_safely_is_refused_with_the_reason(text: str, reason: str) -> None:
    with pytest.raises(CannotEdit, match=reason):
        install(text)


def test_an_included_file_that_replaces_litellm_settings_is_named() -> None:
    files = {"a.yaml": "model_list: []\n", "b.yaml": "litellm_settings: {drop_params: true}\n"}
    assert overriding_include("include: [a.yaml, b.yaml]\n", "litellm_settings", files.__getitem__) == "b.yaml"
    assert overriding_include("include: [a.yaml]\n", "litellm_settings", files.__getitem__) is None
    assert overriding_include("model_list: []\n", "litellm_settings", files.__getitem__) is None


def test_an_included_file_that_cannot_be_read_is_refused() -> None:
    def read(name: str) -> str:
        raise FileNotFoundError(name)

    with pytest.raises(CannotEdit, match=r"s3://bucket/b\.yaml cannot be read"):
        overriding_include("include: ['s3://bucket/b.yaml']\n", "litellm_settings", read)
