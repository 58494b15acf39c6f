"""What a benchmark reports: figures with an interval and the bound they must keep."""

from __future__ import annotations

import math
import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True, slots=True)
class Spread:
    """A median and the interval that holds the true one with at least 95 % confidence."""

    median: float
    low: float
    high: float


def spread(values: Sequence[float]) -> Spread:
    """The median with its distribution-free interval from order statistics.

    The k-th smallest and k-th largest value enclose the true median unless fewer than k of n values fall on one side
    of it, which the binomial distribution gives exactly. Below six values the interval is the whole range, with less
    confidence than 95 %.
    """
    ordered, n = sorted(values), len(values)
    below, k = 0.0, 0
    while k < n // 2 and (below := below + math.comb(n, k) / 2**n) <= 0.025:
        k += 1
    k = max(k, 1)
    return Spread(statistics.median(ordered), ordered[k - 1], ordered[n - k])


@dataclass(frozen=True, slots=True)
class Bound:
    """What a figure must keep. `within_noise`: it is enough that the interval reaches the bound."""

    sign: Literal["<=", ">=", "=="]
    value: float
    within_noise: bool = False

    def __str__(self) -> str:
        return f"{self.sign} {self.value:g}" + (" within noise" if self.within_noise else "")


@dataclass(frozen=True, slots=True)
class Figure:
    """One number of a benchmark. `low` and `high` are the interval, where there is one."""

    name: str
    value: float
    unit: str = ""
    low: float | None = None
    high: float | None = None
    must: Bound | None = None

    @classmethod
    def of(cls, name: str, values: Sequence[float], unit: str = "", must: Bound | None = None) -> Figure:
        """The median of repeated measurements, with its interval."""
        if len(values) == 1:
            return cls(name, values[0], unit, must=must)
        found = spread(values)
        return cls(name, found.median, unit, found.low, found.high, must)

    @property
    def met(self) -> bool | None:
        """Whether the bound is kept; None where there is none."""
        if self.must is None:
            return None
        if self.must.sign == "==":
            return self.value == self.must.value
        at_most = self.must.sign == "<="
        edge = self.low if at_most else self.high
        value = edge if self.must.within_noise and edge is not None else self.value
        return value <= self.must.value if at_most else value >= self.must.value


@dataclass(frozen=True, slots=True)
class Result:
    """One benchmark's figures, and the machine they are from."""

    name: str
    figures: Sequence[Figure]
    seconds: float
    machine: Mapping[str, Any] = field(default_factory=lambda: machine())

    @property
    def met(self) -> bool:
        """Whether every figure that has a bound keeps it."""
        return all(figure.met is not False for figure in self.figures)

    def to_mapping(self) -> dict[str, Any]:
        """Plain values for JSON."""
        figures = [
            asdict(figure) | {"must": str(figure.must) if figure.must else None, "met": figure.met}
            for figure in self.figures
        ]
        return {"name": self.name, "seconds": self.seconds, "machine": dict(self.machine), "figures": figures}


def machine() -> dict[str, Any]:
    """What the figures depend on: processor, cores, memory, and the versions that matter."""
    cpuinfo, meminfo = Path("/proc/cpuinfo"), Path("/proc/meminfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    memory = meminfo.read_text().split()[1] if meminfo.exists() else "0"
    return {
        "processor": models[0] if models else platform.processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(int(memory) / 2**20),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "litellm": version("litellm"),
    }
