"""The network alone, which the benchmarks of folders and videos compare with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

import segformerpp as sfpp
from segformerpp import runtimes
from segformerpp.benchmark.timing import Timing
from segformerpp.runtimes import ParallelRuntime

_ALONE, _IN_STREAMS = "network", "network in streams"


def candidates(
    predictor: sfpp.Predictor, x: np.ndarray, count: int
) -> dict[str, Callable[[], list[float]]]:
    """What takes its seconds for each of so many images: one after the other, and in streams."""
    found: dict[str, Callable[[], list[float]]] = {
        _ALONE: partial(_one_by_one, predictor, x, count)
    }
    if parallel := runtimes.parallel(predictor.runtime):
        found[_IN_STREAMS] = partial(_in_streams, parallel, x, count)
    return found


def fastest(timings: Mapping[str, Timing]) -> Timing:
    """The better of what `candidates` were timed to take."""
    return min(
        (timings[key] for key in (_ALONE, _IN_STREAMS) if key in timings),
        key=lambda timing: timing.median,
    )


def _one_by_one(predictor: sfpp.Predictor, x: np.ndarray, count: int) -> list[float]:
    start = time.perf_counter()
    for _ in range(count):
        predictor.runtime(x)
    return [(time.perf_counter() - start) / count]


def _in_streams(runtime: ParallelRuntime, x: np.ndarray, count: int) -> list[float]:
    start = time.perf_counter()
    with ThreadPoolExecutor(runtime.streams) as pool:
        list(pool.map(runtime.in_stream, [x] * count))
    return [(time.perf_counter() - start) / count]
