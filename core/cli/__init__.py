"""`llm-orchestration`: one table of commands, each imported only when it runs."""

import importlib
from typing import Any

import click

from core.errors import OrchestrationError

# command -> where it is, and its line in --help (so that help imports nothing).
COMMANDS: dict[str, tuple[str, str]] = {
    "serve": ("core.cli.serve:command", "Run the proxy with everything loaded."),
    "check": ("core.cli.check:command", "Check a config.yaml."),
    "schema": ("core.cli.schema:command", "Print the JSON Schema of config.yaml."),
    "init": ("core.cli.init:command", "Add the lines to an existing proxy's config.yaml."),
    "doctor": ("core.cli.doctor:command", "Find out why something does not work."),
    "budgets": ("core.cli.budgets:command", "See budgets, explain what they do, and steer them."),
    "experiments": ("core.cli.experiments:command", "Start, stop and judge experiments."),
    "alerts": ("core.cli.alerts:command", "Try alert channels out, send again what did not arrive."),
    "secrets": ("secrets_manager.cli:command", "See, refresh and audit secrets by reference."),
    "routing": ("core.cli.routing:command", "See how requests are routed, and why."),
    "explain": ("core.cli.routing:explain_request", "Say why a recorded request went where it went."),
    "simulate": ("core.cli.simulate:command", "Replay recorded requests through a proposed config.yaml."),
    "report": ("core.cli.report:report", "Show who used what, and what it cost."),
}


class LazyGroup(click.Group):
    """A group whose commands are imported when they are called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module, _, attribute = COMMANDS[cmd_name][0].partition(":")
        try:
            command: object = getattr(importlib.import_module(module), attribute)
        except ModuleNotFoundError as error:
            if error.name != module:
                raise
            raise click.UsageError(f"'{cmd_name}' is not part of this installation.", ctx) from None
        if not isinstance(command, click.Command):
            raise TypeError(f"{module}:{attribute} is not a click command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """What the command returns. Our own errors end it with their message and exit code 1, without a traceback."""
        try:
            return super().invoke(ctx)
        except OrchestrationError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="litellm-orchestration", prog_name="llm-orchestration")
def main() -> None:
    """Budgets, routing, secrets, caching and analytics for a LiteLLM proxy."""
