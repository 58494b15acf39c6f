"""`llm-orchestration budgets`: how the budgets of a running proxy stand, why a request would be refused, and what an
administrator does about it."""

import json
from collections.abc import Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any

import click

from core.cli.proxy import ask, every, part, proxy_options
from core.cli.table import print_table

_MONEY = ("total", "spent", "reserved", "left", "extra", "would reserve")

_member = click.option("--member", help="Whose part of it, where each user, team, key or model has its own.")
_reason = click.option("--reason", required=True, help="Why; it is kept in the audit.")


@click.group("budgets")
def command() -> None:
    """See budgets, explain what they do, and steer them."""


@command.command("list")
@proxy_options
def list_command(url: str, key_file: Path | None, as_json: bool) -> None:
    """The budgets in force and how they stand."""
    listed = every(url, key_file, "budgets")
    found = [ask("GET", url, key_file, f"budgets/{part(entry['id'])}") for entry in listed]
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    columns = ("budget", "for", "period", "total", "spent", "left", "at limit", "resets", "state")
    print_table(columns, [_listed(entry) for entry in found], _MONEY)


@command.command("show")
@click.argument("budget_id", metavar="ID")
@_member
@click.option("--members", default=10, show_default=True, type=click.IntRange(1, 1000), help="Members to show.")
@proxy_options
def show_command(
    budget_id: str, member: str | None, members: int, url: str, key_file: Path | None, as_json: bool
) -> None:
    """How one budget stands, who spent most of it, past periods and adjustments."""
    path = f"budgets/{part(budget_id)}"
    found = ask("GET", url, key_file, path)
    per = found["standing"]["per"]
    if per is not None:
        query: dict[str, Any] = {"limit": members} if member is None else {"member": member}
        found |= ask("GET", url, key_file, f"{path}/members", query=query)
    if per is None or member is not None:
        found |= ask("GET", url, key_file, f"{path}/history", query={} if member is None else {"member": member})
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        _print_budget(found)


@command.command("explain")
@click.argument("user")
@click.option("--model", required=True, help="The model or policy that is asked for.")
@click.option("--tokens", type=click.IntRange(1), help="The output limit of the request; default: it has none.")
@click.option("--input-tokens", default=1000, show_default=True, type=click.IntRange(0), help="Tokens of its input.")
@click.option("--task-type", help="Its task type.")
@click.option("--team", help="The user's team, where the user has more than one key or none in the configuration.")
@click.option("--key", help="The key it comes with: its hash or alias.")
@proxy_options
def explain_command(
    user: str,
    model: str,
    tokens: int | None,
    input_tokens: int,
    task_type: str | None,
    team: str | None,
    key: str | None,
    url: str,
    key_file: Path | None,
    as_json: bool,
) -> None:
    """Which budgets apply to a request of USER, what each has left, and what would happen to it now."""
    asked = {"user_id": user, "team_id": team, "key": key, "model": model, "task_type": task_type}
    body = {name: value for name, value in asked.items() if value is not None}
    body |= {"input_tokens": input_tokens, "output_tokens": tokens}
    found = ask("POST", url, key_file, "budgets/explain", body)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    columns = ("budget", "member", "why", "total", "spent", "reserved", "left", "would reserve", "resets")
    rows = [
        (
            entry["budget_id"],
            entry["member"] or "",
            entry["why"],
            *(_dollars(entry[name]) for name in ("total", "spent", "reserved", "left", "would_reserve")),
            entry["resets_at"] or "never",
        )
        for entry in found["budgets"]
    ]
    if rows:
        print_table(columns, rows, _MONEY)
    else:
        click.echo("No budget applies.")
    click.echo(outcome_in_words(found["outcome"]))


@command.command("grant")
@click.argument("budget_id", metavar="ID")
@click.option("--amount", required=True, help="US dollars.")
@_member
@_reason
@click.option("--id", "grant_id", help="A name for this grant; a second one of the same name changes nothing.")
@proxy_options
def grant_command(
    budget_id: str,
    amount: str,
    member: str | None,
    reason: str,
    grant_id: str | None,
    url: str,
    key_file: Path | None,
    as_json: bool,
) -> None:
    """Top up the present period of a budget, once."""
    body = {"amount": amount, "member": member, "reason": reason, "id": grant_id}
    _adjusted("grant", budget_id, body, url, key_file, as_json)


@command.command("reset")
@click.argument("budget_id", metavar="ID")
@_member
@_reason
@proxy_options
def reset_command(
    budget_id: str, member: str | None, reason: str, url: str, key_file: Path | None, as_json: bool
) -> None:
    """Forgive what was spent in the present period."""
    _adjusted("reset", budget_id, {"member": member, "reason": reason}, url, key_file, as_json)


@command.command("pause")
@click.argument("budget_id", metavar="ID")
@_reason
@proxy_options
def pause_command(budget_id: str, reason: str, url: str, key_file: Path | None, as_json: bool) -> None:
    """Have a budget admit nothing until it is resumed."""
    _switched("pause", budget_id, {"reason": reason}, url, key_file, as_json)


@command.command("resume")
@click.argument("budget_id", metavar="ID")
@click.option("--reason", help="Why; it is kept in the audit.")
@proxy_options
def resume_command(budget_id: str, reason: str | None, url: str, key_file: Path | None, as_json: bool) -> None:
    """End the pause of a budget."""
    _switched("resume", budget_id, {"reason": reason} if reason else {}, url, key_file, as_json)


def _adjusted(
    word: str, budget_id: str, body: Mapping[str, Any], url: str, key_file: Path | None, as_json: bool
) -> None:
    given = {name: value for name, value in body.items() if value is not None}
    found = ask("POST", url, key_file, f"budgets/{part(budget_id)}/{word}", given)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    standing = found["standing"]
    what = "granted" if word == "grant" else "forgiven"
    left = "" if standing["left"] is None else f"; {_dollars(standing['left'])} of it is left"
    click.echo(f"{budget_id}: {_dollars(found['amount'])} {what}{left}")


def _switched(
    word: str, budget_id: str, body: Mapping[str, Any], url: str, key_file: Path | None, as_json: bool
) -> None:
    found = ask("POST", url, key_file, f"budgets/{part(budget_id)}/{word}", body)
    if as_json:
        click.echo(json.dumps(found, indent=2))
    elif word == "pause":
        since = found["paused"]["since"]
        click.echo(f"{budget_id}: paused" if found["changed"] else f"{budget_id}: was paused already, since {since}")
    else:
        click.echo(f"{budget_id}: resumed" if found["changed"] else f"{budget_id}: was not paused")


# -- on paper --------------------------------------------------------------------------------------------------------


def outcome_in_words(outcome: Mapping[str, Any]) -> str:  # Any: JSON
    """A line that says what would happen to a request."""
    if outcome["result"] == "refused":
        return f"Refused with {outcome['status']} ({outcome['code']}): {outcome['message']}"
    parts = [f"Admitted, answered by {outcome['model']}"]
    if outcome["reserved"] is not None:
        parts.append(f"{_dollars(outcome['reserved'])} reserved")
    if outcome["clamped"] is not None:
        parts.append(f"its output limited to {outcome['clamped']} tokens")
    if outcome["degraded_by"]:
        parts.append(f"degraded by {', '.join(outcome['degraded_by'])}")
    return ", ".join(parts) + "."


def _listed(entry: Mapping[str, Any]) -> tuple[str, ...]:
    written, standing = entry["entry"], entry["standing"]
    each = f"each {standing['per']}" if standing["per"] else "all together"
    spent, left = ("", "") if standing["per"] else (_dollars(standing["spent"]), _dollars(standing["left"]))
    at_limit = written.get("at_limit") or ("warn" if written.get("auto_disable_at_limit") is False else "block")
    state = f"paused since {standing['paused']['since']}" if standing["paused"] else standing.get("trouble", "")
    if not state and standing.get("used_up_at"):
        state = f"used up by {standing['used_up_at']} at this pace"
    period = (entry["id"], each, standing["period"], _dollars(standing["total"]))
    return (*period, spent, left, at_limit, standing["resets_at"] or "never", state)


def _print_budget(found: Mapping[str, Any]) -> None:
    written, standing = found["entry"], found["standing"]
    scopes = ("users", "teams", "user_groups", "models", "keys", "task_types")
    covers = "; ".join(f"{name}: {', '.join(written[name])}" for name in scopes if written.get(name))
    name = f" ({written['name']})" if written.get("name") else ""
    each = f", each {standing['per']} by itself" if standing["per"] else ""
    click.echo(f"{found['id']}{name}")
    click.echo(f"  covers    {covers or 'every request'}{each}")
    until = f", resets {standing['resets_at']}" if standing["resets_at"] else ""
    click.echo(f"  period    {standing['period']}{until}")
    click.echo(f"  total     {_dollars(standing['total'])}")
    for name in ("extra", "spent", "reserved", "left"):
        if standing.get(name) is not None:
            click.echo(f"  {name:9} {_dollars(standing[name])}")
    if standing.get("used_up_at"):
        click.echo(f"  forecast  used up by {standing['used_up_at']} at this pace")
    if pause := standing["paused"]:
        click.echo(f"  paused    since {pause['since']} by {pause['by']}: {pause['reason']}")
    if trouble := found.get("trouble") or standing.get("trouble"):
        click.echo(f"  trouble   {trouble}")
    _print_details(found)


def _print_details(found: Mapping[str, Any]) -> None:
    """Members, adjustments and past periods, as far as they were asked for."""
    if "members" in found:
        click.echo()
        money = ("total", "extra", "spent", "reserved", "left")
        rows = [(one["member"], *(_dollars(one[name]) for name in money)) for one in found["members"]]
        print_table(("member", *money), rows, _MONEY)
    if found.get("adjustments"):
        click.echo()
        fields = ("at", "kind", "amount", "by", "reason")
        rows = [
            tuple(_dollars(one[name]) if name == "amount" else one[name] for name in fields)
            for one in found["adjustments"]
        ]
        print_table(fields, rows, ("amount",))
    if len(found.get("periods", ())) > 1:
        click.echo()
        rows = [
            (one["started_at"] or "", one["ended_at"] or "", _dollars(one["spent"]), _dollars(one["extra"]))
            for one in found["periods"]
        ]
        print_table(("from", "to", "spent", "extra"), rows, _MONEY)


def _dollars(text: str | None) -> str:
    """Dollars with as many digits as it takes, two at least."""
    if text is None:
        return "-"
    exact = Decimal(text)
    exponent = exact.normalize().as_tuple().exponent
    decimals = max(2, -exponent if isinstance(exponent, int) else 2)
    return f"{'-' if exact < 0 else ''}${abs(exact):,.{decimals}f}"
