import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from PIL import Image

from segformerpp.batching import Network
from segformerpp.data.images import ImageSource
from segformerpp.errors import (
    ImageError,
    MemoryLimitError,
    UsageError,
)
from segformerpp.models import Segformer
from segformerpp.predictor import Predictor
from segformerpp.runtimes.openvino import OpenvinoRuntime
from tests.predicting import agreement, picture, spy


@pytest.fixture(scope="module")
def predict(random_model: Segformer) -> Predictor:
    return Predictor(random_model, device="cpu")


def test_a_stream_equals_single_calls(random_model: Segformer, tmp_path: Path) -> None:
    sizes = [(40, 50), (40, 50), (64, 33), (40, 50), (150, 40), (40, 50), (40, 50), (40, 50)]
    images: list[ImageSource] = [picture(*size, seed=i) for i, size in enumerate(sizes)]
    Image.fromarray(np.asarray(images[3])).save(tmp_path / "x.png")
    images[3] = tmp_path / "x.png"
    for batch in (1, 3):
        predict = Predictor(random_model, batch=batch, tile=(96, 96), device="cpu")
        results = list(predict.stream(iter(images)))
        assert len(results) == len(images)
        for source, result in zip(images, results, strict=True):
            assert agreement(result.label_map, predict(source).label_map) > 0.998
            assert result.path == (source if isinstance(source, Path) else None)
    assert list(predict.stream([])) == []


class Streams:
    """Watches how many inputs are in the streams of a predictor's runtime; may refuse some."""

    def __init__(self, predict: Predictor, patch: pytest.MonkeyPatch, refused: int = 0) -> None:
        self.under_way, self.most, self.calls = 0, 0, 0
        self.shapes: list[tuple[int, ...]] = []
        self._lock, self._refused = threading.Lock(), refused
        runtime = cast(OpenvinoRuntime, predict.runtime)
        stream = runtime.stream

        def noted(shape: tuple[int, ...]) -> Network:
            network = stream(shape)
            assert network
            self.shapes.append(shape)
            return partial(self._call, network)

        patch.setattr(runtime, "stream", noted)

    def _call(self, network: Network, x: np.ndarray) -> np.ndarray:
        with self._lock:
            self.under_way += 1
            self.calls += 1
            self.most = max(self.most, self.under_way)
        try:
            time.sleep(0.05)
            if x.shape[2] == self._refused:
                raise MemoryLimitError("too much")
            return network(x)
        finally:
            with self._lock:
                self.under_way -= 1


@pytest.fixture(scope="module")
def two_threads(random_model: Segformer) -> Predictor:
    return Predictor(random_model, runtime="openvino", precision="f32", threads=2)


def test_many_images_go_in_streams(two_threads: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [picture(40 + 8 * (i % 2), 64, seed=i) for i in range(9)]
    expected = [two_threads(image).label_map for image in images]
    streams = Streams(two_threads, monkeypatch)
    for source in (images, iter(images)):
        results = list(two_threads.stream(source))
        for image, label_map, result in zip(images, expected, results, strict=True):
            assert agreement(result.label_map, label_map) > 0.998
            np.testing.assert_array_equal(result.image, image)
            assert 0.02 < result.network_seconds < 0.4  # half of at least 0.05
    assert (streams.most, streams.calls) == (2, 18)
    assert len(list(two_threads.stream(images[:3]))) == 3  # not worth it
    assert streams.calls == 18


def test_failures_among_streams(two_threads: Predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    """In order; and what does not fit beside others goes alone."""
    streams = Streams(two_threads, monkeypatch, refused=48)
    sizes = [32, 32, 48, 32, 0, 32, 48]
    images = [picture(size, 64) if size else Path("missing.png") for size in sizes]
    failed: list[Any] = []
    results = two_threads.stream(images, lambda source, _: failed.append(source))
    assert [len(result.label_map) for result in results] == [32, 32, 48, 32, 32, 48]
    assert failed == [Path("missing.png")]
    assert streams.calls == 6
    before = threading.active_count()
    stopped = two_threads.stream([picture(32, 64)] * 20)
    next(stopped)
    stopped.close()  # type: ignore[attr-defined]
    assert streams.under_way == 0
    assert streams.calls < 16
    assert threading.active_count() == before
    stopped = two_threads.stream([*[picture(32, 64)] * 5, Path("missing.png"), picture(32, 64)])
    assert len([next(stopped) for _ in range(5)]) == 5
    with pytest.raises(ImageError, match=r"missing\.png"):
        next(stopped)


def test_streams_are_for_two_sizes_at_a_time(
    two_threads: Predictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where more take turns they would be made anew all the time."""
    streams = Streams(two_threads, monkeypatch)
    sizes = [32, 40, 48, 32, 40, 48, 56, 56, 56]
    results = two_threads.stream(picture(size, 64) for size in sizes)
    assert [len(result.label_map) for result in results] == sizes
    assert streams.shapes == [(1, 3, size, 64) for size in (32, 40, 32, 40, 56, 56)]


def test_tiles_do_not_go_in_streams(
    random_model: Segformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    predict = Predictor(random_model, runtime="openvino", threads=2, tile=(64, 64))
    streams = Streams(predict, monkeypatch)
    sizes = [40, 90, 40, 40, 90]
    results = predict.stream(picture(size, 64) for size in sizes)
    assert [len(result.label_map) for result in results] == sizes
    assert streams.calls == 3


def test_batches_are_neighbours_of_equal_size(random_model: Segformer) -> None:
    predict = Predictor(random_model, batch=2, device="cpu")
    shapes = spy(predict)
    heights = [32, 32, 32, 40, 32, 48, 48]
    results = list(predict.stream(picture(height, 36) for height in heights))
    assert [len(result.label_map) for result in results] == heights
    assert [shape[0] for shape in shapes] == [2, 1, 1, 1, 2]


def test_bad_images_in_a_stream(predict: Predictor, tmp_path: Path) -> None:
    good = picture(32, 32)
    bad = tmp_path / "bad.png"
    bad.write_text("text")
    reported: list[tuple[Any, ImageError]] = []
    results = list(predict.stream([good, bad, good], lambda *what: reported.append(what)))
    assert len(results) == 2
    assert [source for source, _ in reported] == [bad]
    assert "not an image" in str(reported[0][1])
    with pytest.raises(ImageError, match=r"bad\.png"):
        predict(bad)


@pytest.mark.parametrize("batch", [1, 2, 5])
def test_results_before_an_error_are_not_lost(
    random_model: Segformer, tmp_path: Path, batch: int
) -> None:
    predict = Predictor(random_model, batch=batch, device="cpu")

    def images(end: Callable[[], ImageSource]) -> Iterator[ImageSource]:
        for _ in range(3):
            yield picture(32, 32)
        yield end()
        yield picture(32, 32)

    def raises() -> ImageSource:
        raise ValueError("no more")

    for end, error, reason in (
        (lambda: tmp_path / "missing.png", ImageError, r"missing\.png"),
        (raises, ValueError, "no more"),
    ):
        results = predict.stream(images(end))
        for _ in range(3):
            assert next(results).label_map.shape == (32, 32)
        with pytest.raises(error, match=reason):
            next(results)


def test_a_path_is_no_stream(predict: Predictor) -> None:
    for path in ("photos", Path("photos")):
        with pytest.raises(UsageError, match=r"images: many of them, .* not 'photos'"):
            predict.stream(path)  # type: ignore[arg-type]


def test_a_stream_takes_little_ahead(predict: Predictor) -> None:
    taken = 0

    def images() -> Iterator[np.ndarray]:
        nonlocal taken
        for _ in range(100):
            taken += 1
            yield picture(32, 32)

    before = threading.active_count()
    results = predict.stream(images())
    for _ in range(3):
        next(results)
    results.close()  # type: ignore[attr-defined]
    assert taken < 20
    assert threading.active_count() == before


def test_errors_of_the_source_are_passed_on(predict: Predictor) -> None:
    def images() -> Iterator[np.ndarray]:
        yield picture(32, 32)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(predict.stream(images()))
