"""That `make bench` works at all; what it measures is for a quiet machine."""

from __future__ import annotations

import pytest

from benchmarks import overhead

pytestmark = [pytest.mark.live, pytest.mark.timeout(300)]


async def test_the_overhead_benchmark_measures_both_proxies():
    result = await overhead.measure(overhead.QUICK, [overhead.Load(1), overhead.Load(2, stream=True)], more=False)
    values = {figure.name: figure.value for figure in result.figures}
    assert values["memory, bare"] > 100
    assert values["start-up until the first answer, bare"] > 0
    for kind in ("answers, 1 connection", "streams, 2 connections"):
        # A proxy that did nothing, or everything twice, would lie outside.
        assert 0.3 < values[f"CPU a request, {kind}"] < 3
        assert values[f"throughput, {kind}, bare"] > 0
    assert "p50 added, answers, 1 connection" in values
