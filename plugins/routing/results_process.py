"""The process that works out the results of an experiment: what it needs takes 100 MB, which end with it.

It reads an `Order`, pickled, from stdin, and writes JSON to stdout: `{"results": ...}`, or `{"missing": "..."}` where
what it needs is not installed.
"""

import pickle
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast

import orjson

from custom_router.experiments.metrics import Period


@dataclass(frozen=True, slots=True)
class Order:
    """What `custom_router.experiments.statistics.results` takes; the experiment as JSON."""

    experiment: dict[str, Any]
    periods: Sequence[Period]
    now: datetime
    crossed: int


def work_out(order: Order) -> dict[str, Any]:
    """What is written to stdout."""
    from core.errors import StatisticsMissing
    from core.settings.models import Experiment
    from custom_router.experiments.statistics import results

    try:
        found = results(Experiment.model_validate(order.experiment), order.periods, order.now, crossed=order.crossed)
    except StatisticsMissing as error:
        return {"missing": str(error)}
    return {"results": found.to_json()}


def main() -> None:
    # Written by the proxy that has started this process.
    order = cast("Order", pickle.load(sys.stdin.buffer))  # noqa: S301
    # Infinite bounds become null.
    sys.stdout.buffer.write(orjson.dumps(work_out(order), option=orjson.OPT_SERIALIZE_NUMPY))


if __name__ == "__main__":
    main()
