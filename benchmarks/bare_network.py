"""The network alone, which the benchmarks of folders and videos compare with."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np

import segformerpp as sfpp
from segformerpp import runtimes
from segformerpp.batching import Network
from segformerpp.benchmark.timing import Timing

_ALONE, _IN_STREAMS = "network", "network in streams"


def candidates(
    predictor: sfpp.Predictor, x: np.ndarray, count: int
) -> dict[str, Callable[[], list[float]]]:
    """What takes its seconds for each of so many images: one after the other, and in streams."""
    found: dict[str, Callable[[], list[float]]] = {
        _ALONE: partial(_one_by_one, predictor, x, count)
    }
    parallel = runtimes.parallel(predictor.runtime)
    if parallel and (stream := parallel.stream(x.shape)):
        found[_IN_STREAMS] = partial(_in_streams, stream, parallel.streams, x, count)
    return found


def fastest(timings: Mapping[str, Timing]) -> tuple[str, Timing]:
    """The faster of what `candidates` were timed to take, and its name."""
    names = [name for name in (_ALONE, _IN_STREAMS) if name in timings]
    best = min(names, key=lambda name: timings[name].median)
    return best, timings[best]


def _one_by_one(predictor: sfpp.Predictor, x: np.ndarray, count: int) -> list[float]:
    start = time.perf_counter()
    for _ in range(count):
        predictor.runtime(x)
    return [(time.perf_counter() - start) / count]


def _in_streams(network: Network, streams: int, x: np.ndarray, count: int) -> list[float]:
    start = time.perf_counter()
    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(network, [x] * count))
    return [(time.perf_counter() - start) / count]
