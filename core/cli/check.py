"""`llm-orchestration check`: what is wrong with a config.yaml, and where."""

import json
from collections.abc import Sequence
from pathlib import Path

import click

from core.settings.finding import Finding, InvalidConfig, errors
from core.settings.loading import load


@click.command("check")
@click.argument("file", default="config.yaml", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print the findings as a JSON list.")
@click.pass_context
def command(ctx: click.Context, file: Path, as_json: bool) -> None:
    """Check FILE (config.yaml by default) and the environment variables that override it.

    Exits with 0 when there are no errors, 1 when there are, 2 when FILE cannot be found.
    """
    try:
        findings: Sequence[Finding] = load(file).findings
    except InvalidConfig as refused:
        findings = refused.findings
    if as_json:
        click.echo(json.dumps([finding.as_json() for finding in findings], indent=2))
    else:
        for finding in findings:
            click.echo(str(finding))
        click.echo(f"{file}: {_summary(findings)}")
    ctx.exit(1 if errors(findings) else 0)


def _summary(findings: Sequence[Finding]) -> str:
    wrong = sum(finding.severity == "error" for finding in findings)
    return f"{_counted(wrong, 'error')}, {_counted(len(findings) - wrong, 'warning')}"


def _counted(number: int, noun: str) -> str:
    return f"{number or 'no'} {noun}{'' if number == 1 else 's'}"
