"""`llm-orchestration schema`: what editors need to complete and check a config.yaml."""

import json

import click

from core.settings.schema import json_schema


@click.command("schema")
def command() -> None:
    """Print the JSON Schema (2020-12) of config.yaml, LiteLLM's own sections included as open objects."""
    click.echo(json.dumps(json_schema(), indent=2))
