import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.usage import Attempt, UsageEvent

text = st.text(st.characters(exclude_categories=["Cs"]))


@given(
    st.builds(
        UsageEvent,
        request_id=text,
        time_ms=st.integers(0, 2**53),
        endpoint=text,
        status=st.integers(0, 599),
        groups=st.lists(text).map(tuple),
        cost_nano=st.integers(0, 2**62),
        traits=st.none() | text,
        assignments=st.lists(st.tuples(text, text, text), max_size=2).map(tuple),
        attempts=st.lists(
            st.builds(
                Attempt,
                number=st.integers(1, 9),
                model=text | st.just(',"accounts":[],"reserved_nano":0'),
                accounts=st.lists(text, max_size=2).map(tuple),
                reserved_nano=st.integers(0, 1),
            )
        ),
    )
)
def test_an_event_survives_its_line_of_json(event: UsageEvent) -> None:
    line = event.to_json()
    assert b"\n" not in line
    assert UsageEvent.from_json(line) == event


def test_a_field_of_a_newer_version_is_dropped() -> None:
    line = b'{"request_id":"r","time_ms":1,"endpoint":"e","status":200,"from_the_future":1}'
    assert UsageEvent.from_json(line) == UsageEvent("r", 1, "e", 200)


def test_an_assignment_without_its_unit_is_refused() -> None:
    line = b'{"request_id":"r","time_ms":1,"endpoint":"e","status":200,"assignments":[["x","a"]]}'
    with pytest.raises(ValueError, match="not enough values"):
        UsageEvent.from_json(line)


def test_a_field_that_a_newer_version_gave_an_attempt_is_dropped() -> None:
    line = b'{"request_id":"r","time_ms":1,"endpoint":"e","status":200,"attempts":[{"number":1,"model":"m","new":1}]}'
    assert UsageEvent.from_json(line) == UsageEvent("r", 1, "e", 200, attempts=[Attempt(1, "m")])


def test_an_attempt_without_accounts_takes_no_more_room_than_it_did() -> None:
    assert b"accounts" not in UsageEvent("r", 1, "e", 200, attempts=[Attempt(1, "m")]).to_json()
    assert b"accounts" in UsageEvent("r", 1, "e", 200, attempts=[Attempt(1, "m", accounts=("a|0|",))]).to_json()
