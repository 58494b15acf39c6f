import pytest

from core.report_query import filter_value, moment_ms


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("30m", 998_200_000),
        ("1d", 913_600_000),
        ("1970-01-02", 86_400_000),
        ("1970-01-02T00:00+01:00", 82_800_000),
        ("1970-01-02T00:00:00Z", 86_400_000),
    ],
)
def test_a_moment_is_an_age_or_a_date(text: str, milliseconds: int) -> None:
    assert moment_ms(text, now=1_000_000.0) == milliseconds


@pytest.mark.parametrize("text", ["", "yesterday", "7y", "-1d", "12"])
def test_anything_else_is_no_moment(text: str) -> None:
    with pytest.raises(ValueError, match="Invalid isoformat"):
        moment_ms(text, now=0.0)


def test_filters_have_the_type_of_what_they_filter() -> None:
    assert filter_value("streamed", "true") is True
    assert filter_value("streamed", "false") is False
    assert filter_value("user", "") is None
    assert filter_value("status", "429") == "429"
    with pytest.raises(ValueError, match="write a number"):
        filter_value("status", "many")
