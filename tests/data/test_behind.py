import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from segformerpp.data.behind import read_ahead, run_ahead, run_behind


def test_results_come_in_order() -> None:
    def work(i: int) -> int:
        time.sleep(0.002 * (i % 3))
        return i

    calls = (partial(work, i) for i in range(30))
    assert list(run_behind(calls, workers=4, waiting=5)) == list(range(30))
    assert list(run_behind(iter([]), workers=1, waiting=1)) == []


def test_no_more_are_taken_than_may_wait() -> None:
    taken = 0
    release = threading.Event()

    def calls() -> Iterator[Callable[[], bool]]:
        nonlocal taken
        for _ in range(10):
            taken += 1
            if taken == 4:
                threading.Timer(0.05, release.set).start()
            yield release.wait

    results = run_behind(calls(), workers=2, waiting=3)
    assert next(results)
    assert taken == 4
    assert len(list(results)) == 9


def test_errors_stop_the_rest() -> None:
    done: list[int] = []

    def work(i: int) -> int:
        if i == 2:
            raise ValueError("two")
        done.append(i)
        return i

    with pytest.raises(ValueError, match="two"):
        list(run_behind((partial(work, i) for i in range(100)), workers=1, waiting=2))
    assert len(done) < 10


def test_when_no_more_can_be_had_what_was_done_comes_first() -> None:
    def calls() -> Iterator[Callable[[], int]]:
        for i in range(5):
            yield partial(int, i)
        raise ValueError("five")

    found = []
    with pytest.raises(ValueError, match="five"):  # noqa: PT012
        for i in run_behind(calls(), workers=2, waiting=9):
            found.append(i)
    assert found == list(range(5))


def test_ahead() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for i in range(30):
            taken.append(i)
            yield i

    results = run_ahead(lambda i: i * i, items(), workers=3, ahead=lambda square: 1 + square // 16)
    for i in range(30):
        assert next(results) == i * i
        assert len(taken) <= i + 2 + (i - 1) ** 2 // 16
    assert list(results) == []
    assert list(run_ahead(abs, iter([]), workers=1, ahead=lambda _: 1)) == []


def test_ahead_of_an_error() -> None:
    def items() -> Iterator[int]:
        yield from range(5)
        raise ValueError("five")

    before = threading.active_count()
    found = []
    with pytest.raises(ValueError, match="five"):  # noqa: PT012
        for i in run_ahead(abs, items(), workers=2, ahead=lambda _: 9):
            found.append(i)
    assert found == list(range(5))
    assert threading.active_count() == before


def test_closing_drops_what_has_not_started() -> None:
    before = threading.active_count()
    done: list[int] = []
    results = run_behind((partial(done.append, i) for i in range(100)), workers=2, waiting=4)
    next(results)
    results.close()
    assert len(done) < 10
    assert threading.active_count() == before


def test_reading_ahead() -> None:
    taken = 0

    def items() -> Iterator[int]:
        nonlocal taken
        while taken < 100:
            taken += 1
            yield taken

    ahead = read_ahead(items(), waiting=3)
    assert next(ahead) == 1
    while taken < 5:
        time.sleep(0.01)
    time.sleep(0.1)
    assert taken == 5  # three wait, and one is held by who would put it there
    assert list(ahead) == list(range(2, 101))


def test_reading_ahead_closes_what_it_reads_from() -> None:
    closed = threading.Event()

    def items() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    ahead = read_ahead(items(), waiting=2)
    assert next(ahead) == 1
    ahead.close()
    assert closed.is_set()


def test_an_error_comes_after_what_was_read() -> None:
    def items() -> Iterator[int]:
        yield 1
        yield 2
        raise ValueError("broken")

    got: list[int] = []
    with pytest.raises(ValueError, match="broken"):
        got.extend(read_ahead(items(), waiting=5))
    ahead = read_ahead(items(), waiting=5)
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(ValueError, match="broken"):
        next(ahead)
