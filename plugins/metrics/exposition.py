"""Prometheus' text format 0.0.4 of readings."""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING

from plugins.metrics.catalog import CATALOG, PREFIX, Kind, Metric, Reading
from plugins.metrics.traffic import BOUNDS_MS, Spread

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric as Family

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_BOUNDS = (*(repr(bound / 1000) for bound in BOUNDS_MS), "+Inf")


def exposition(workers: Mapping[str, Iterable[Reading]], shared: Iterable[Reading]) -> bytes:
    """What the workers have, by their names, and what they share. Reads nothing else, so it may run on any thread."""
    from prometheus_client import generate_latest

    found: dict[str, list[tuple[tuple[str, ...], float | Spread]]] = defaultdict(list)
    for worker, readings in workers.items():
        for name, labels, value in readings:
            found[name].append(((*labels, worker), value))
    for name, labels, value in shared:
        found[name].append((labels, value))
    return generate_latest(_Collected([_family(metric, found[metric.name]) for metric in CATALOG]))


class _Collected:
    """What prometheus_client calls a registry."""

    def __init__(self, families: Sequence["Family"]) -> None:
        self._families = families

    def collect(self) -> Iterator["Family"]:
        yield from self._families


def _family(metric: Metric, readings: Iterable[tuple[tuple[str, ...], float | Spread]]) -> "Family":
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

    name = PREFIX + metric.name
    labels = metric.labels if metric.shared else (*metric.labels, "worker")
    if metric.kind is Kind.HISTOGRAM:
        histogram = HistogramMetricFamily(name, metric.text, labels=labels)
        for by, value in readings:
            assert isinstance(value, Spread)
            buckets = [*zip(_BOUNDS, accumulate(value.counts), strict=True)]
            histogram.add_metric(by, buckets=buckets, sum_value=value.total_ms / 1000)
        return histogram
    kind = CounterMetricFamily if metric.kind is Kind.COUNTER else GaugeMetricFamily
    family = kind(name, metric.text, labels=labels)
    for by, value in readings:
        assert not isinstance(value, Spread)
        family.add_metric(by, value)
    return family
