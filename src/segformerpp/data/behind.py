"""Doing work in other threads, in order and without piling it up."""

from __future__ import annotations

import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

T = TypeVar("T")
U = TypeVar("U")


def run_behind(
    calls: Iterable[Callable[[], T]], workers: int, waiting: int
) -> Generator[T, None, None]:
    """Make calls in other threads while the next ones are being got ready here.

    Args:
        calls: functions without arguments; taken from in the caller's thread.
        workers: how many run at a time.
        waiting: how many may be unfinished before no more are taken.

    Yields:
        What the calls return, in their order. The first exception is raised; then, or if the
        generator is closed, what has not started is dropped and what runs is waited for. If no
        more calls can be had because of an exception, it is raised after what was returned.
    """
    pool = ThreadPoolExecutor(workers, "segformerpp")
    futures: deque[Future[T]] = deque()
    failure: Exception | None = None
    calls = iter(calls)
    try:
        while True:
            try:
                futures.append(pool.submit(next(calls)))
            except StopIteration:
                break
            except Exception as error:
                failure = error
                break
            while futures and (futures[0].done() or len(futures) > waiting):
                yield futures.popleft().result()
        while futures:
            yield futures.popleft().result()
        if failure:
            raise failure
    finally:
        pool.shutdown(cancel_futures=True)


def run_ahead(
    function: Callable[[T], U], items: Iterable[T], workers: int, ahead: Callable[[U], int]
) -> Generator[U, None, None]:
    """Call a function on items in other threads, ahead of who takes the results.

    Args:
        function: what to call.
        items: what to call it on; taken from in the caller's thread.
        workers: how many run at a time.
        ahead: given the latest result, how many more may be waiting; two at first.

    Yields:
        The results in the order of the items. An exception of `items` is raised after the
        results of those before it.
    """
    pool = ThreadPoolExecutor(workers, "segformerpp")
    futures: deque[Future[U]] = deque()
    failure: Exception | None = None
    items, most = iter(items), 2
    try:
        while True:
            try:
                for item in itertools.islice(items, max(most - len(futures), 0)):
                    futures.append(pool.submit(function, item))
            except Exception as error:
                items, failure = iter(()), error
            if not futures:
                break
            result = futures.popleft().result()
            most = ahead(result)
            yield result
        if failure:
            raise failure
    finally:
        pool.shutdown(cancel_futures=True)


def read_ahead(items: Iterable[T], waiting: int) -> Generator[T, None, None]:
    """Take from an iterable in another thread, ahead of who takes the results.

    Args:
        items: what to take from; closed in that thread when there is no more need, if it can be.
        waiting: how many may be waiting.

    Yields:
        The items. An exception of `items` is raised after those before it.
    """
    ready: queue.Queue[tuple[T] | Exception | None] = queue.Queue(waiting)
    closed = threading.Event()

    def put(item: tuple[T] | Exception | None) -> None:
        while not closed.is_set():
            with suppress(queue.Full):
                ready.put(item, timeout=0.1)
                return

    def take() -> None:
        last: Exception | None = None
        iterator = iter(items)
        try:
            for item in iterator:
                put((item,))
                if closed.is_set():
                    break
        except Exception as error:
            last = error
        finally:
            if isinstance(iterator, Generator):
                iterator.close()
        put(last)

    thread = threading.Thread(target=take, name="segformerpp-reader", daemon=True)
    thread.start()
    try:
        while isinstance(entry := ready.get(), tuple):
            yield entry[0]
        if entry is not None:
            raise entry
    finally:
        closed.set()
        thread.join()
