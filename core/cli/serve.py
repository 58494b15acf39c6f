"""`llm-orchestration serve`: the proxy with everything loaded."""

import os
import shlex
import sys
from pathlib import Path

import click

from core.errors import ConfigError
from core.local_keys import MASTER_KEY, LocalKeys

_LOCAL_HOST = "127.0.0.1"


@click.command(name="serve")
@click.option("--config", default="config.yaml", show_default=True, help="The proxy's configuration file.")
@click.option("--host", default=_LOCAL_HOST, show_default=True)
@click.option("--port", default=4000, show_default=True, type=click.IntRange(1, 65535))
@click.option("--workers", default=1, show_default=True, type=click.IntRange(1))
def command(config: str, host: str, port: int, workers: int) -> None:
    """Run the proxy on HOST:PORT. On the first run it makes itself a master key."""
    path = Path(config)
    if not path.is_file():
        raise click.UsageError(f"There is no {path}. `llm-orchestration serve --config FILE` names another.")
    _check(path, workers)
    keys = LocalKeys.of(path)
    made = keys.into(os.environ)
    # Prices come with the installed LiteLLM; fetching newer ones at each start needs a network and takes seconds
    # without.
    os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    # uvicorn kills a worker that has not answered within 5 s, which importing LiteLLM takes on a busy machine.
    os.environ.setdefault("TIMEOUT_WORKER_HEALTHCHECK", "60")
    # uvicorn closes a connection that was idle for 5 s; a client or load balancer that holds on to connections for
    # longer (a minute, commonly) would now and then send a request into one that is being closed.
    os.environ.setdefault("KEEPALIVE_TIMEOUT", "75")
    _greet(keys, made, host, port)
    from litellm.proxy.proxy_cli import run_server

    arguments = ["--config", str(path), "--host", host, "--port", str(port), "--num_workers", str(workers)]
    run_server(arguments, standalone_mode=True)


def _check(path: Path, workers: int) -> None:
    from core.settings import load

    try:
        loaded = load(path, os.environ)
    except ConfigError as error:
        click.echo(str(error), err=True)
        sys.exit(1)
    if workers > 1 and loaded.settings.shared_state.url is None:
        click.echo(
            f"{workers} workers need shared state: set REDIS_URL (orchestration.shared_state.url), or run one worker.",
            err=True,
        )
        sys.exit(1)


def _greet(keys: LocalKeys, made: tuple[str, ...], host: str, port: int) -> None:
    """A line to paste that works. It reads the key from its file, so that no key is printed."""
    if not made:
        return
    name = next((name for name in made if name != MASTER_KEY), made[0])
    file = shlex.quote(str(keys.path))
    click.echo(
        f"Keys of this folder are in {keys.path} (readable by you alone). When the proxy is up, try:\n\n"
        f"  curl http://{_LOCAL_HOST if host == '0.0.0.0' else host}:{port}/v1/chat/completions \\\n"  # noqa: S104
        f'    -H "Authorization: Bearer $(sed -n s/^{name}=//p {file})" \\\n'
        f"    -H 'Content-Type: application/json' \\\n"
        f"""    -d '{{"model": "smart", "messages": [{{"role": "user", "content": "Hello"}}]}}'\n""",
        err=True,
    )
