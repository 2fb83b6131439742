import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import segformerpp as sfpp
from segformerpp import runtimes
from segformerpp.data.behind import run_ahead
from segformerpp.errors import ImageError, UsageError
from segformerpp.models import Segformer
from segformerpp.reuse import FramesNetwork
from tests.models.test_segformer import tiny

X = np.random.default_rng(0).normal(size=(3, 1, 3, 131, 99)).astype(np.float32)
PLANS = ("hq", "kv12:mode=bsm,r=0.8,sx=2,sy=2,proportional=true q3:mode=bsm,r=1,sx=2,sy=2 reuse3=2")


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", ["torch", "openvino", "onnxruntime"])
def test_what_is_given_is_merged(name: str, plan: str) -> None:
    model = tiny()
    model.merge_plan = plan
    runtime = runtimes.matching(runtimes.create(model, name, "f32"))
    plain = runtime(X[0])
    logits, found = runtime.matched(X[0])
    np.testing.assert_array_equal(logits, plain)
    np.testing.assert_array_equal(runtime.matched(X[0], found)[0], plain)
    np.testing.assert_array_equal(runtime.matched(X[0], found)[0], plain)  # nothing was changed
    expected = runtimes.matching(runtimes.create(model, "torch", "f32"))
    other = expected.matched(X[1], expected.matched(X[0])[1])[0]
    np.testing.assert_allclose(runtime.matched(X[1], found)[0], other, rtol=1e-3, atol=1e-3)
    assert np.abs(other - runtime(X[1])).max() > 0.01  # it does merge otherwise


class Numbered:
    """A runtime that says which frame's matches it merged, by the frame's one value."""

    def __call__(self, x: np.ndarray) -> np.ndarray:
        raise AssertionError

    def matched(self, x: np.ndarray, given: Any = None) -> tuple[np.ndarray, Any]:
        found = x.ravel()[0] if given is None else given
        if found < 0:
            raise MemoryError
        return np.array([found]), found


@pytest.mark.parametrize(
    ("frames", "used"), [(1, [0, 1, 2, 3, 4]), (2, [0, 0, 2, 2, 4]), (9, [0, 0, 0, 0, 0])]
)
def test_so_many_frames_use_what_the_first_of_them_found(frames: int, used: list[int]) -> None:
    network = FramesNetwork(Numbered(), frames)  # type: ignore[arg-type]
    assert [int(network(np.full((1, 3, 4, 4), i))[0]) for i in range(5)] == used


def test_another_size_or_a_failure_begins_anew() -> None:
    network = FramesNetwork(Numbered(), 4)  # type: ignore[arg-type]
    sizes = [4, 4, 8, 8, 4]
    used = [int(network(np.full((1, 3, n, n), i))[0]) for i, n in enumerate(sizes)]
    assert used == [0, 0, 2, 2, 4]
    with pytest.raises(MemoryError):
        network(np.full((1, 3, 8, 8), -1))
    assert network(np.full((1, 3, 8, 8), 7))[0] == 7


def frames(count: int) -> Iterator[np.ndarray]:
    """A picture that drifts to the right."""
    big = np.random.default_rng(1).integers(0, 256, (12, 40, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    return (big[:, 6 * i : 6 * i + 128] for i in range(count))


@pytest.fixture(scope="module")
def predictors(random_model: Segformer) -> dict[int, sfpp.Predictor]:
    return {
        n: sfpp.Predictor(random_model, merge="fast", precision="f32", device="cpu", reuse_match=n)
        for n in (1, 3)
    }


def test_every_so_many_th_of_a_stream_is_exact(predictors: dict[int, sfpp.Predictor]) -> None:
    exact = [result.label_map for result in predictors[1].stream(frames(7))]
    maps = [result.label_map for result in predictors[3].stream(frames(7))]
    same = [bool((a == b).all()) for a, b in zip(exact, maps, strict=True)]
    assert [same[i] for i in (0, 3, 6)] == [True] * 3
    assert not all(same)
    again = [result.label_map for result in predictors[3].stream(frames(7))]
    np.testing.assert_array_equal(maps, again)
    # A frame by itself depends on nothing that ran before.
    np.testing.assert_array_equal(predictors[3](list(frames(2))[1]).label_map, exact[1])
    assert predictors[3].facts["reuse_match"] == 3
    assert "reuse_match" not in predictors[1].facts


def test_a_still_video_gives_the_same(predictors: dict[int, sfpp.Predictor]) -> None:
    still = [next(frames(1))] * 5
    expected = predictors[1](still[0]).label_map
    for result in predictors[3].stream(still):
        np.testing.assert_array_equal(result.label_map, expected)


def test_calls_in_threads_are_a_stream(
    predictors: dict[int, sfpp.Predictor], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever frame is prepared first: the network takes them in their order."""
    predictor = predictors[3]
    expected = [result.label_map for result in predictor.stream(frames(7))]
    prepare, second = predictor._prepare, threading.Event()
    started = iter(range(7))

    def uneven(*arguments: Any, **options: Any) -> Any:
        number = next(started)
        prepared = prepare(*arguments, **options)
        if number % 2:
            second.set()
        else:
            second.wait(0.2)
            second.clear()
        return prepared

    monkeypatch.setattr(predictor, "_prepare", uneven)
    calls = predictor.calls(frames(7))
    results = list(run_ahead(lambda call: call(), calls, 2, lambda _: 2))
    np.testing.assert_array_equal([result.label_map for result in results], expected)


def test_calls_that_fail_let_the_next_ones_go(predictors: dict[int, sfpp.Predictor]) -> None:
    images = [next(frames(1)), np.zeros((0, 4, 3), np.uint8), next(frames(1))]
    with ThreadPoolExecutor(3) as pool:
        results = [pool.submit(call) for call in predictors[3].calls(images)]
    assert isinstance(results[1].exception(), ImageError)
    assert results[2].exception() is None


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"reuse_match": 0}, "reuse_match: a whole number from 1 up, not 0"),
        ({"merge": "2x2"}, r"reuse_match: nothing is matched \(bsm\) in the plan 2x2"),
        ({"batch": 2}, "reuse_match: with a batch of 1"),
        ({"tile": (64, 64)}, "reuse_match: .* without tile"),
    ],
)
def test_what_does_not_go_together(
    random_model: Segformer, options: dict[str, Any], reason: str
) -> None:
    arguments: dict[str, Any] = {"merge": "hq", "device": "cpu", "reuse_match": 2} | options
    with pytest.raises(UsageError, match=reason):
        sfpp.Predictor(random_model, **arguments)


@pytest.mark.parametrize(("name", "precision"), [("torch-compiled", "f32"), ("openvino", "int8")])
def test_runtimes_that_cannot(name: str, precision: str) -> None:
    runtime: Any = SimpleNamespace(name=name, precision=precision)
    with pytest.raises(UsageError, match=f"onnxruntime in any .* not for {name} in {precision}"):
        runtimes.matching(runtime)
