"""Doing work in other threads, in order and without piling it up."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def run_behind(calls: Iterable[Callable[[], T]], workers: int, waiting: int) -> Iterator[T]:
    """Make calls in other threads while the next ones are being got ready here.

    Args:
        calls: functions without arguments; taken from in the caller's thread.
        workers: how many run at a time.
        waiting: how many may be unfinished before no more are taken.

    Yields:
        What the calls return, in their order. The first exception is raised; then, or if the
        generator is closed, what has not started is dropped and what runs is waited for.
    """
    pool = ThreadPoolExecutor(workers, "segformerpp")
    futures: deque[Future[T]] = deque()
    try:
        for call in calls:
            futures.append(pool.submit(call))
            while futures and (futures[0].done() or len(futures) > waiting):
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)
