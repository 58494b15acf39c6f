"""The usage report on SQLite, and the command that prints it."""

import csv
import io
import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from core.cli.report import report
from core.errors import StoreError
from core.store import Store
from tests.unit import ledger_cases as cases


def run(tmp_path: Path, *arguments: str, store: str = "store.db") -> tuple[int, str]:
    chosen = ["--store", f"sqlite:///{tmp_path}/{store}"]
    period = ["--since", "2027-01-15", "--until", "2027-01-16T00:00"]
    result = CliRunner().invoke(report, ["usage", *chosen, *period, *arguments])
    return result.exit_code, result.output


async def test_a_report_equals_the_sums_worked_out_in_python(store: Store) -> None:
    await cases.a_report_equals_the_sums_worked_out_in_python(store)


async def test_every_dimension_can_be_grouped_and_filtered_by(store: Store) -> None:
    await cases.every_dimension_can_be_grouped_and_filtered_by(store)


async def test_an_unknown_dimension_is_refused(store: Store) -> None:
    with pytest.raises(ValueError, match="no dimension colour"):
        await store.usage.usage_report(0, 1, ["colour"])


async def test_a_sum_past_64_bits_is_refused_and_not_rounded(store: Store) -> None:
    await store.usage.write([cases.event(number, cost_nano=(1 << 63) - 1) for number in range(2)])
    with pytest.raises(StoreError, match="64 bits"):
        await store.usage.usage_report(0, 1 << 62)


@pytest.fixture
async def some_usage(store: Store) -> None:
    events = [
        cases.event(1, user_id="=cmd()", used_model="large", cost_nano=12, latency_ms=100),
        cases.event(2, user_id="[red]", used_model="small", cost_nano=1_500_000_000, latency_ms=200),
    ]
    await store.usage.write(events)


def test_the_table_has_every_group_and_exact_totals(some_usage: None, tmp_path: Path) -> None:
    code, output = run(tmp_path)
    assert code == 0
    assert "[red]" in output
    assert "1.500000012" in output


def test_json_is_for_programs(some_usage: None, tmp_path: Path) -> None:
    code, output = run(tmp_path, "--json", "--by", "user", "--user", "[red]")
    assert code == 0
    found = json.loads(output)
    assert [row["user"] for row in found["rows"]] == ["[red]"]
    assert found["totals"]["cost_nano"] == 1_500_000_000


def test_csv_holds_no_formula(some_usage: None, tmp_path: Path) -> None:
    code, output = run(tmp_path, "--csv", "--by", "user")
    assert code == 0
    rows = list(csv.DictReader(io.StringIO(output)))
    assert {row["user"]: row["cost_usd"] for row in rows} == {"'=cmd()": "0.000000012", "[red]": "1.500000000"}


def test_without_usage_it_says_so(store: Store, tmp_path: Path) -> None:
    assert run(tmp_path) == (0, "No usage from 2027-01-15 00:00:00Z to 2027-01-16 00:00:00Z.\n")


def test_a_report_makes_no_store(tmp_path: Path) -> None:
    code, output = run(tmp_path, store="none.db")
    assert code == 0
    assert "There is no store" in output
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--by", "colour"], "no dimension 'colour'"),
        (["--since", "soon"], "'soon' is no time"),
        (["--json", "--csv"], "exclude each other"),
        (["--where", "status"], "DIMENSION=VALUE"),
        (["--config", "missing.yaml"], "there is no missing.yaml"),
    ],
)
def test_a_wrong_use_exits_with_2(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("LLM_GATEWAY_DB_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    result = CliRunner().invoke(report, ["usage", *arguments])
    assert result.exit_code == 2
    assert message in result.output


def test_the_store_is_found_in_the_configuration(
    some_usage: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("LLM_GATEWAY_DB_URL", "DATABASE_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    Path("config.yaml").write_text("orchestration: {store: {url: 'sqlite:///store.db'}}\n")
    result = CliRunner().invoke(report, ["usage", "--since", "2027-01-15", "--until", "2027-01-16", "--json"])
    assert json.loads(result.stdout)["totals"]["requests"] == 2
