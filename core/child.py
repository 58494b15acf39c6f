"""A process of its own for one piece of work: what that needs ends with it, and it can be ended.

What it is told goes by stdin, since arguments can be seen by everybody on the machine.
"""

import asyncio
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

_ROOT = str(Path(__file__).resolve().parents[1])


class Answered(NamedTuple):
    """How a child process ended: its return code and what it has written to stdout and stderr."""

    returncode: int
    printed: bytes
    complaints: bytes


async def ask(
    module: str,
    order: bytes,
    *,
    environment: Mapping[str, str] | None = None,
    within: float | None = None,
    listen: bool = False,
) -> Answered:
    """Run `python -m module` of this installation and give it `order`.

    It knows the variables in `environment`, by default all of ours. `complaints` are empty unless `listen`. It is ended
    when it takes longer than `within` seconds, or whoever asks is cancelled. Raises TimeoutError then, and OSError or
    NotImplementedError where no process can be started.
    """
    known = dict(os.environ if environment is None else environment)
    known["PYTHONPATH"] = os.pathsep.join(filter(None, (_ROOT, known.get("PYTHONPATH"))))
    process = await asyncio.create_subprocess_exec(
        # The working directory must not get in the way of our own packages.
        *(sys.executable, "-P", "-m", module),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE if listen else asyncio.subprocess.DEVNULL,
        env=known,
    )
    try:
        async with asyncio.timeout(within):
            printed, complaints = await process.communicate(order)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
    assert process.returncode is not None
    return Answered(process.returncode, printed, complaints or b"")


def passed_on(*names: str) -> dict[str, str]:
    """Those of our variables by these names, for a process that is not to know the others."""
    return {name: os.environ[name] for name in names if name in os.environ}
