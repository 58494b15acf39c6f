"""Whatever happens to a configuration, it loads or is refused with a finding; nothing else."""

import json
import string
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.settings import InvalidConfig, load
from tests.unit.test_settings_production import UNBUILT_EXAMPLES

FULL = f"model_list: [{{model_name: m, litellm_params: {{model: x}}}}]\norchestration:\n{UNBUILT_EXAMPLES}"
KEYS = '  keys: [{key: os.environ/A, tier: free, models: ["*", p]}]\n  groups: {g: {users: [ada]}}\n'
TEXT = FULL + KEYS

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.sampled_from(["os.environ/", "os.environ/azure://", "redis://[", "sqlite://", "*", "postgresql://h:x/db"])
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
)


def checked(path: Path) -> None:
    try:
        load(path, {})
    except InvalidConfig as refused:
        lines = max(1, len(path.read_bytes().decode(errors="replace").splitlines()))
        assert any(finding.severity == "error" for finding in refused.findings)
        for finding in refused.findings:
            assert finding.message
            assert finding.line is None or 1 <= finding.line <= lines
            assert finding.line is not None or not finding.loc


def places(value: Any, loc: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [loc, *(place for name, item in inner for place in places(item, (*loc, name)))]


DOCUMENT = yaml.load(TEXT, Loader=yaml.BaseLoader)  # texts only, to have `on` as a name
PLACES = [place for place in places(DOCUMENT) if place]
file_fixture = settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.mark.slow
@file_fixture
@given(place=st.sampled_from(PLACES), value=values, rename=st.booleans())
def test_any_value_or_name_anywhere_loads_or_is_refused(tmp_path: Path, place: Any, value: Any, rename: bool):
    document = json.loads(json.dumps(DOCUMENT))
    holder = document
    for part in place[:-1]:
        holder = holder[part]
    if rename and isinstance(holder, dict):
        holder[str(value)] = holder.pop(place[-1])
    else:
        holder[place[-1]] = value
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(document, allow_unicode=True))
    checked(path)


@file_fixture
@given(
    at=st.integers(0, len(TEXT)),
    cut=st.integers(0, 30),
    put=st.text(string.printable, max_size=10) | st.sampled_from(["\t", "&a ", "*a", "<<: ", "!!int ", "? ", "---\n"]),
)
def test_any_edit_of_the_text_loads_or_is_refused(tmp_path: Path, at: int, cut: int, put: str):
    path = tmp_path / "config.yaml"
    path.write_text(TEXT[:at] + put + TEXT[at + cut :])
    checked(path)


@file_fixture
@given(content=st.binary(max_size=200))
def test_any_bytes_load_or_are_refused(tmp_path: Path, content: bytes):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    checked(path)


@pytest.mark.parametrize(
    "text",
    [
        "orchestration: &o {tiers: *o}",
        "orchestration: &o\n  <<: *o\n",
        "model_list: &m [*m]",
        "orchestration: {routing: {rules: [{id: a, when: &w {x: *w}, use: [m]}]}}",
        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b]\n"
        "d: &d [*c,*c,*c,*c,*c,*c,*c]\norchestration: {tiers: {free: {models: *d}}}\n",
        "2024-13-45: 2024-13-45",
        "[a]: 1",
        "? {a: b}\n: 1",
    ],
)
def test_the_odd_corners_of_yaml_load_or_are_refused(tmp_path: Path, text: str):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    checked(path)
