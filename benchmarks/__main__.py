"""`make bench`: run the benchmarks, print a table (or JSON), and keep each one's figures in benchmarks/results/.

    python -m benchmarks [overhead] [memory] [durability] [ledger] [secrets] [budgets] [cache] [simulate] [experiments]
                         [routing] [resilience] [--quick] [--requests 20000] [--parts down,overload] [--json]

Exits with 1 when a figure does not keep its bound.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks import (
    budgets,
    cache,
    durability,
    experiments,
    ledger,
    memory,
    overhead,
    resilience,
    routing,
    secrets,
    simulate,
)
from benchmarks.figures import Bound, Figure, Result
from tests.support.postgres import PostgresServer

_RESULTS = Path(__file__).parent / "results"
_QUICK_REQUESTS = 1_000
_EVENTS, _QUICK_EVENTS = 200_000, 20_000


async def _overhead(given: argparse.Namespace) -> Result:
    if given.quick:
        return await overhead.measure(overhead.QUICK, overhead.LOADS[1:2], more=False)
    return await overhead.measure()


async def _memory(given: argparse.Namespace) -> Result:
    return await memory.measure(memory.QUICK if given.quick else memory.FULL)


async def _durability(given: argparse.Namespace) -> Result:
    return await durability.measure(_QUICK_REQUESTS if given.quick else given.requests)


async def _ledger(given: argparse.Namespace) -> Result:
    events = _QUICK_EVENTS if given.quick else _EVENTS
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as name, PostgresServer(durable=True) as server:
        runs = [
            await ledger.measure(f"sqlite:///{name}/bench.db", events, Path(name, "sqlite")),
            await ledger.measure(server.url(), events, Path(name, "postgresql")),
        ]
    return Result("ledger", [figure for run in runs for figure in _ledger_figures(run)], time.perf_counter() - begun)


def _ledger_figures(run: ledger.Result) -> Iterator[Figure]:
    yield Figure(f"{run.store}: events stored", run.events_per_second, "events/s", must=Bound(">=", 10_000))
    yield Figure(f"{run.store}: CPU to append an event", run.append_cpu_us, "us")
    yield Figure(f"{run.store}: CPU an event in all", run.total_cpu_us, "us")
    yield Figure(f"{run.store}: memory added at the peak", run.rss_peak - run.rss_before, "MiB")


async def _secrets(given: argparse.Namespace) -> Result:
    return await asyncio.to_thread(secrets.measure, **({"references": 100, "rotations": 1} if given.quick else {}))


async def _budgets(given: argparse.Namespace) -> Result:
    return await budgets.measure(budgets.QUICK if given.quick else budgets.FULL)


async def _cache(given: argparse.Namespace) -> Result:
    return await cache.measure(cache.QUICK if given.quick else cache.FULL)


async def _simulate(given: argparse.Namespace) -> Result:
    return await simulate.measure(_QUICK_EVENTS if given.quick else simulate.REQUESTS)


async def _routing(given: argparse.Namespace) -> Result:
    return await routing.measure(routing.QUICK if given.quick else routing.FULL)


async def _resilience(given: argparse.Namespace) -> Result:
    return await resilience.measure(resilience.QUICK if given.quick else resilience.FULL, given.parts)


async def _experiments(given: argparse.Namespace) -> Result:
    quick = {"experiments": 200, "units": 20_000} if given.quick else {}
    return await asyncio.to_thread(experiments.measure, **quick)


BENCHMARKS: dict[str, Callable[[argparse.Namespace], Coroutine[None, None, Result]]] = {
    "overhead": _overhead,
    "memory": _memory,
    "durability": _durability,
    "ledger": _ledger,
    "secrets": _secrets,
    "budgets": _budgets,
    "cache": _cache,
    "routing": _routing,
    "resilience": _resilience,
    "simulate": _simulate,
    "experiments": _experiments,
}


def table(result: Result) -> Table:
    """One benchmark's figures for people."""
    machine = result.machine
    caption = (
        f"{machine['cores']} cores of {machine['processor']}, {machine['memory_gib']} GiB, {machine['system']}, "
        f"Python {machine['python']}, LiteLLM {machine['litellm']}; {result.seconds:.0f} s"
    )
    drawn = Table(title=result.name, caption=caption, title_justify="left", caption_justify="left")
    drawn.add_column("figure", no_wrap=True)
    for heading in ("value", "95 % interval"):
        drawn.add_column(heading, justify="right")
    for heading in ("unit", "must be", ""):
        drawn.add_column(heading)
    for figure in result.figures:
        interval = "" if figure.low is None or figure.high is None else f"{_plain(figure.low)} .. {_plain(figure.high)}"
        verdict = {True: "[green]kept[/]", False: "[red]missed[/]", None: ""}[figure.met]
        drawn.add_row(figure.name, _plain(figure.value), interval, figure.unit, str(figure.must or ""), verdict)
    return drawn


def _plain(value: float) -> str:
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 100 else f"{value:.3f}"


def _parts(text: str) -> list[str]:
    parts = text.split(",")
    if unknown := set(parts) - resilience.PARTS.keys():
        raise argparse.ArgumentTypeError(f"there is no {', '.join(sorted(unknown))}")
    return parts


def main() -> int:
    arguments = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__.splitlines()[0])
    arguments.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(BENCHMARKS)}; default: all")
    arguments.add_argument("--quick", action="store_true", help="a short run: whether it works, not what it costs")
    arguments.add_argument("--requests", type=int, default=durability.REQUESTS, help="answers that durability wants")
    arguments.add_argument(
        "--parts", type=_parts, default=(), help=f"of resilience: {', '.join(resilience.PARTS)}; default: all"
    )
    arguments.add_argument("--json", action="store_true", help="print JSON in place of tables")
    given = arguments.parse_args()
    if unknown := set(given.names) - BENCHMARKS.keys():
        arguments.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(BENCHMARKS)}")
    results: list[Result] = []
    for name in given.names or BENCHMARKS:
        result = asyncio.run(BENCHMARKS[name](given))
        results.append(result)
        _RESULTS.mkdir(exist_ok=True)
        (_RESULTS / f"{name}.json").write_text(json.dumps(result.to_mapping(), indent=1) + "\n")
        if not given.json:
            # Piped into a file there is no terminal to fit.
            Console(width=None if sys.stdout.isatty() else 130).print(table(result))
    if given.json:
        print(json.dumps([result.to_mapping() for result in results], indent=1))
    return 0 if all(result.met for result in results) else 1


if __name__ == "__main__":
    sys.exit(main())
