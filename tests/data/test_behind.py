import threading
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest

from segformerpp.data.behind import run_behind


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


def test_closing_drops_what_has_not_started() -> None:
    before = threading.active_count()
    done: list[int] = []
    results = run_behind((partial(done.append, i) for i in range(100)), workers=2, waiting=4)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert len(done) < 10
    assert threading.active_count() == before
