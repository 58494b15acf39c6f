"""`llm-orchestration routing explain` and `llm-orchestration explain`: why a running proxy sends a request where it
does, or sent one where it went."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from core.cli.proxy import ask, part, proxy_options
from core.cli.table import print_table


@click.group("routing")
def command() -> None:
    """See how requests are routed."""


@command.command("explain")
@click.option("--model", required=True, help="The model or policy that is asked for.")
@click.option("--user", help="Whose request it is; default: yours.")
@click.option("--team", help="The team, where it is not that of the user's key.")
@click.option("--key", help="The key it comes with: its hash or alias.")
@click.option("--tier", help="The tier, in place of the caller's own.")
@click.option("--task-type", help="Its task type.")
@click.option("--priority", type=click.IntRange(1, 10), help="Its priority.")
@click.option("--session", help="Its session.")
@click.option("--input-tokens", type=click.IntRange(0), help="Tokens of its input; default: 1000.")
@click.option("--output-tokens", type=click.IntRange(1), help="Its output limit; default: none.")
@click.option("--needs", multiple=True, help="images, audio, documents, tools or json; may be repeated.")
@click.option("--metadata", multiple=True, metavar="NAME=VALUE", help="Of its own metadata; may be repeated.")
@click.option("--header", multiple=True, metavar="NAME=VALUE", help="One of its headers; may be repeated.")
@click.option("--stream", is_flag=True, help="Whether the answer is streamed.")
@click.option("--endpoint", help="Such as embeddings; default: chat_completions.")
@click.option("--at", help="When, with the time zone, such as 2026-03-01T09:00:00Z; default: now.")
@proxy_options
def explain_command(
    model: str,
    user: str | None,
    team: str | None,
    key: str | None,
    tier: str | None,
    task_type: str | None,
    priority: int | None,
    session: str | None,
    input_tokens: int | None,
    output_tokens: int | None,
    needs: Sequence[str],
    metadata: Sequence[str],
    header: Sequence[str],
    stream: bool,
    endpoint: str | None,
    at: str | None,
    url: str,
    key_file: Path | None,
    as_json: bool,
) -> None:
    """To which models a request would come, in which order, and why. Nothing is sent."""
    asked: dict[str, Any] = {
        "model": model,
        "user_id": user,
        "team_id": team,
        "key": key,
        "tier": tier,
        "task_type": task_type,
        "priority": priority,
        "session_id": session,
        "input_tokens": input_tokens,
        "output_tokens": output_tokens,
        "needs": list(needs) or None,
        "metadata": _mapping("--metadata", metadata, read=True),
        "headers": _mapping("--header", header),
        "stream": stream or None,
        "endpoint": endpoint,
        "at": at,
    }
    body = {name: value for name, value in asked.items() if value is not None}
    found = ask("POST", url, key_file, "routing/explain", body)
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    caller = found["caller"]
    click.echo(f"For {caller['user_id'] or 'a caller without a user'}, {_tier(caller['tier'])}.")
    print_plan(found)
    _notes(found["notes"])


@click.command("explain")
@click.argument("request_id", metavar="REQUEST_ID")
@proxy_options
def explain_request(request_id: str, url: str, key_file: Path | None, as_json: bool) -> None:
    """Why a recorded request went where it went.

    REQUEST_ID is the x-orchestration-request-id of its answer.
    """
    found = ask("GET", url, key_file, f"routing/requests/{part(request_id)}")
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    recorded = found["recorded"]
    click.echo(f"{found['request_id']} at {found['at']}: {recorded['endpoint']}, status {recorded['status']}")
    click.echo(f"  from      {recorded['user_id'] or 'a caller without a user'}, {_tier(recorded['tier'])}")
    click.echo(f"  asked for {recorded['asked_model'] or 'no model'}")
    click.echo(f"  answered  {_answered(recorded)}")
    if recorded["route"]:
        click.echo(f"  route     {recorded['route']}")
    if recorded["variant"]:
        click.echo(f"  variant   {recorded['variant']}")
    if recorded["attempts"]:
        click.echo()
        rows = [
            (
                str(one["number"]),
                one["model"],
                one["deployment"] or "-",
                str(one["status"]),
                one["error"] or "",
                f"{one['latency_ms']} ms",
            )
            for one in recorded["attempts"]
        ]
        print_table(("attempt", "model", "deployment", "status", "error", "took"), rows, ("attempt", "took"))
    if found["decision"] is not None:
        click.echo("\nThe decision, made again:")
        print_plan(found["decision"])
    _notes(found["notes"])


# -- on paper --------------------------------------------------------------------------------------------------------


def print_plan(plan: Mapping[str, Any]) -> None:
    """A plan with its steps."""
    if plan["denied"] is not None:
        click.echo(f"Refused by the rule {plan['denied']['rule']}: {plan['denied']['message']}")
    elif plan["candidates"]:
        click.echo(f"Tried in this order: {', '.join(plan['candidates'])}")
    else:
        click.echo("Refused: no model may serve it.")
    if plan["strategy"] is not None:
        click.echo(f"The strategy {plan['strategy']['name']} says which of these comes first.")
    for name, value in plan["set"].items():
        click.echo(f"Set: {name} = {json.dumps(value)}")
    for one in plan["assignments"]:
        click.echo(f"Experiment: {one['experiment']}/{one['variant']}{'' if one['counted'] else ' (not counted)'}")
    rows = [
        (step["stage"], _removed(step["removed"]), ", ".join(step["promoted"]), step["why"]) for step in plan["steps"]
    ]
    if rows:
        click.echo()
        print_table(("stage", "removed", "to the front", "why"), rows)


def _removed(removed: Sequence[Mapping[str, str]]) -> str:
    return "; ".join(f"{one['model']}: {one['reason']}" for one in removed)


def _answered(recorded: Mapping[str, Any]) -> str:
    if recorded["used_model"] is None:
        return f"by a cache ({recorded['cache']})" if recorded["cache"] else (recorded["error"] or "by nobody")
    error = f", {recorded['error']}" if recorded["error"] else ""
    degraded = ", degraded by a budget" if recorded["degraded"] else ""
    return f"by {recorded['used_model']}{degraded}{error}, for ${recorded['cost']} in {recorded['latency_ms']} ms"


def _tier(tier: str | None) -> str:
    return f"tier {tier}" if tier else "no tier"


def _notes(notes: Sequence[str]) -> None:
    for note in notes:
        click.echo(f"Note: {note}")


def _mapping(option: str, given: Sequence[str], *, read: bool = False) -> dict[str, Any] | None:
    """NAME=VALUE as a mapping; where they are `read`, numbers, true and false are what they look like."""
    found: dict[str, Any] = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals or not name:
            raise click.UsageError(f"{option} {each}: write NAME=VALUE")
        found[name] = _value(value) if read else value
    return found or None


def _value(text: str) -> str | int | float | bool:
    try:
        value: object = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float | bool) else text
