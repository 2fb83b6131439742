import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from segformerpp import tiling as tiling_module
from segformerpp.batching import Network
from segformerpp.data.images import ImageSource
from segformerpp.errors import (
    CheckpointError,
    ImageError,
    MemoryLimitError,
    PlanError,
    UsageError,
)
from segformerpp.merging import PRESETS, MergePlan
from segformerpp.models import Metadata, Segformer, SegformerConfig
from segformerpp.predictor import Predictor
from segformerpp.runtimes.openvino import OpenvinoRuntime
from segformerpp.tasks import label_maps, segmentation


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Something smooth enough for label maps to have areas."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height)))


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    return float((one == other).mean())


def spy(predict: Predictor) -> list[tuple[int, ...]]:
    """The shapes of what goes through the network from now on."""
    shapes: list[tuple[int, ...]] = []
    runtime = predict.runtime

    def run(x: np.ndarray) -> np.ndarray:
        shapes.append(x.shape)
        return runtime(x)

    exchange(predict, run)
    return shapes


def exchange(predict: Predictor, network: Network) -> None:
    """Let another network do the work."""
    predict._task = replace(predict._task, runtime=network)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def predict(random_model: Segformer) -> Predictor:
    return Predictor(random_model, device="cpu")


def test_equals_doing_it_by_hand(predict: Predictor, random_model: Segformer) -> None:
    image = picture(75, 98)
    result = predict(image)
    x = torch.from_numpy(segmentation.normalise(image, random_model.metadata))[None]
    with torch.no_grad():
        logits = F.interpolate(random_model(x), size=(75, 98), mode="bilinear")
    assert agreement(result.label_map, logits[0].argmax(0).numpy()) > 0.999
    assert len(np.unique(result.label_map)) > 2
    assert result.labels == random_model.metadata.labels
    assert result.palette == random_model.metadata.palette
    assert result.network_seconds > 0
    assert result.path is None
    np.testing.assert_array_equal(result.image, image)


def test_kinds_of_sources(predict: Predictor, tmp_path: Path) -> None:
    image = picture(64, 80)
    path = tmp_path / "x.png"
    Image.fromarray(image).save(path)
    expected = predict(image).label_map
    for source in (path, str(path), Image.fromarray(image)):
        np.testing.assert_array_equal(predict(source).label_map, expected)
    assert predict(path).path == predict(str(path)).path == path


@pytest.mark.parametrize("size", [(1, 1), (32, 700), (3, 200), (31, 33), (97, 35)])
@pytest.mark.parametrize("merge", ["none", "hq", "downsample"])
def test_any_size(random_model: Segformer, size: tuple[int, int], merge: str) -> None:
    result = Predictor(random_model, merge=merge, device="cpu")(picture(*size))
    assert result.label_map.shape == size


def test_network_size(random_model: Segformer) -> None:
    predict = Predictor(random_model, size=(64, 96), device="cpu")
    shapes = spy(predict)
    assert predict(picture(120, 50)).label_map.shape == (120, 50)
    assert shapes == [(1, 3, 64, 96)]


def test_probabilities(random_model: Segformer) -> None:
    for tile in (None, (48, 48)):
        result = Predictor(random_model, probabilities=True, tile=tile, device="cpu")(
            picture(70, 60)
        )
        assert result.probabilities is not None
        assert result.probabilities.shape == (11, 70, 60)
        np.testing.assert_allclose(result.probabilities.astype(float).sum(0), 1, atol=5e-3)
        highest = result.probabilities.max(0)
        chosen = np.take_along_axis(result.probabilities, result.label_map[None].astype(int), 0)[0]
        np.testing.assert_array_equal(chosen, highest)


def test_results_do_not_share_memory_with_their_source(predict: Predictor) -> None:
    image = np.array(picture(32, 40))
    result = predict(image)
    before = result.image.copy()
    image[:] = 0
    np.testing.assert_array_equal(result.image, before)


def test_the_model_given_is_not_touched(random_model: Segformer) -> None:
    model = random_model.__class__(random_model.config, random_model.metadata, "fast")
    model.train()
    predict = Predictor(model, merge="hq", device="cpu")
    assert (predict.merge_plan, model.merge_plan) == (PRESETS["hq"], PRESETS["fast"])
    assert model.training
    assert all(p.requires_grad for p in model.parameters())
    assert Predictor(model, device="cpu").merge_plan == PRESETS["fast"]


def test_checkpoints_by_name(random_checkpoint: Path, random_model: Segformer) -> None:
    predict = Predictor(random_checkpoint, merge="2x2", device="cpu", offline=True)
    assert predict.facts == {
        "model": str(random_checkpoint),
        "task": "segmentation",
        "batch": 1,
        "merge": "2x2",
        "runtime": "openvino",
        "precision": "f32",
        "device": "cpu",
        "threads": 1,
    }


# Windows.


def test_a_tile_as_large_as_the_image_changes_nothing(random_model: Segformer) -> None:
    image = picture(90, 110)
    whole = Predictor(random_model, tile=None, device="cpu")(image)
    for tile in ((90, 110), (500, 110), (4000, 4000)):
        tiled = Predictor(random_model, tile=tile, device="cpu")(image)
        np.testing.assert_array_equal(tiled.label_map, whole.label_map)


@pytest.mark.parametrize("merge", ["none", "fast", "downsample", "input_scale=0.7"])
def test_windows_lie_where_they_should(random_model: Segformer, merge: str) -> None:
    """With a network that sees only colours, windows give what the whole image gives."""
    scale = MergePlan.parse(merge).input_scale
    shapes = set()

    def network(x: np.ndarray) -> np.ndarray:
        shapes.add(x.shape)
        height, width = (-(-int(side * scale) // 4) for side in x.shape[2:])
        logits = np.full((len(x), 11, height, width), -9, np.float32)
        for image, planes in zip(x, logits, strict=True):
            for channel in range(3):
                planes[channel] = cv2.resize(
                    image[channel], (width, height), interpolation=cv2.INTER_AREA
                )
        return logits

    def label_map(**tiles: Any) -> np.ndarray:
        predict = Predictor(random_model, merge=merge, device="cpu", **tiles)
        exchange(predict, network)
        result = predict(picture(192, 272))
        assert result.network_seconds > 0
        return result.label_map

    whole, shape_of_whole = label_map(), shapes.pop()
    tiled = label_map(tile=(96, 128), overlap=32)
    assert agreement(whole, tiled) > (0.99 if scale in (1, 0.5) else 0.85)
    assert len(shapes) == 1
    assert shape_of_whole not in shapes


@pytest.mark.parametrize("merge", ["none", "fast", "downsample"])
def test_windows_of_the_network(random_model: Segformer, merge: str) -> None:
    result = Predictor(random_model, merge=merge, tile=(64, 64), device="cpu")(picture(99, 150))
    assert result.label_map.shape == (99, 150)
    assert len(np.unique(result.label_map)) > 1


def test_windows_in_batches(random_model: Segformer) -> None:
    image = picture(150, 150)
    one = Predictor(random_model, tile=(64, 64), device="cpu")(image)
    many = Predictor(random_model, tile=(64, 64), batch=4, device="cpu")(image)
    assert agreement(one.label_map, many.label_map) > 0.999


def test_tiles_where_memory_ends(
    random_model: Segformer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(tiling_module, "AUTO_TILE", 64)
    monkeypatch.setattr(tiling_module, "AUTO_TILE_BYTES", 190 * 100 * 100)
    predict = Predictor(random_model, device="cpu")
    with caplog.at_level(logging.INFO, "segformerpp"):
        predict(picture(100, 100))
        assert "tiles" not in caplog.text
        predict(picture(100, 120))
        assert "100 x 120 pixels go in tiles" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.INFO, "segformerpp"):
        Predictor(random_model, merge="downsample", device="cpu")(picture(180, 200))
        assert "tiles" not in caplog.text


def test_batches_where_memory_ends(
    random_model: Segformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiling_module, "AUTO_TILE", 48)
    monkeypatch.setattr(tiling_module, "AUTO_TILE_BYTES", 190 * 3 * 40 * 50)
    predict = Predictor(random_model, batch=8, device="cpu")
    shapes = spy(predict)
    list(predict.stream(picture(40, 50) for _ in range(5)))
    list(predict.stream(picture(40, 150) for _ in range(2)))
    assert shapes == [(3, 3, 40, 50), (2, 3, 40, 50), (1, 3, 40, 150), (1, 3, 40, 150)]
    shapes.clear()
    predict(picture(48, 300))  # in tiles
    assert {shape[0] for shape in shapes} == {2}
    predict = Predictor(random_model, batch=8, tile=None, device="cpu")
    shapes = spy(predict)
    list(predict.stream(picture(40, 150) for _ in range(2)))
    assert shapes == [(2, 3, 40, 150)]


def small_memory(predict: Predictor, pixels: int) -> None:
    """Let the network fail where more than so many pixels go through it together."""
    runtime = predict.runtime

    def run(x: np.ndarray) -> np.ndarray:
        if x[:, 0].size > pixels:
            raise MemoryLimitError(f"{x[:, 0].size} pixels do not fit")
        return runtime(x)

    exchange(predict, run)


@pytest.mark.parametrize("tile", [None, (80, 80)])
def test_images_that_do_not_fit_into_memory(random_model: Segformer, tile: Any) -> None:
    predict = Predictor(random_model, batch=3, tile=tile, device="cpu")
    small_memory(predict, 64 * 64)
    sizes = [*[(64, 64)] * 3, *[(90, 64)] * 2, (32, 32)]
    images: list[ImageSource] = [picture(*size) for size in sizes]
    failed: list[tuple[Any, ImageError]] = []
    results = list(predict.stream(images, lambda *what: failed.append(what)))
    assert [result.label_map.shape for result in results] == [*[(64, 64)] * 3, (32, 32)]
    assert all(source is image for (source, _), image in zip(failed, images[3:5], strict=True))
    assert str(failed[0][1]).startswith("image: ")
    assert str(failed[0][1]).endswith(" pixels do not fit")
    with pytest.raises(ImageError, match="do not fit"):
        predict(images[3])


@pytest.mark.parametrize(("where", "name"), [(segmentation, "fit"), (label_maps, "from_logits")])
def test_memory_that_ends_around_the_network(
    predict: Predictor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where: Any, name: str
) -> None:
    large = tmp_path / "large.png"
    Image.fromarray(picture(40, 40)).save(large)
    function = getattr(where, name)

    def fail(first: np.ndarray, *rest: Any) -> Any:
        if (40, 40) in (first.shape[:2], *rest):
            raise MemoryError
        return function(first, *rest)

    monkeypatch.setattr(where, name, fail)
    failed: list[str] = []
    images: list[ImageSource] = [picture(32, 32), large, picture(32, 32)]
    results = list(predict.stream(images, lambda _, error: failed.append(str(error))))
    assert len(results) == 2
    assert failed == [f"{large}: too large for the memory"]


# Streams.


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


def test_several_threads(predict: Predictor) -> None:
    images = [picture(40 + 8 * (i % 3), 64, seed=i) for i in range(12)]
    expected = [predict(image).label_map for image in images]
    with ThreadPoolExecutor(4) as pool:
        single = [result.label_map for result in pool.map(predict, images)]
        streams = list(pool.map(lambda _: list(predict.stream(images)), range(3)))
    for i in range(len(images)):
        np.testing.assert_array_equal(single[i], expected[i])
        for stream in streams:
            np.testing.assert_array_equal(stream[i].label_map, expected[i])


# What is refused.


@pytest.mark.parametrize(
    ("arguments", "error", "reason"),
    [
        ({"batch": 0}, UsageError, "batch: a whole number from 1 up, not 0"),
        ({"batch": 1.5}, UsageError, "batch: a whole number from 1 up, not 1.5"),
        ({"batch": "2"}, UsageError, "batch: a whole number from 1 up, not '2'"),
        ({"threads": 1.5}, UsageError, "threads: a whole number"),
        ({"size": (0, 5)}, UsageError, "size: height and width"),
        ({"size": 512}, UsageError, "size: height and width in pixels, from 1 up, not 512"),
        ({"size": (10**6, 10**6)}, UsageError, "size: at most 1073741824 pixels"),
        ({"tile": 64}, UsageError, "tile: height and width in pixels, from 32 up, not 64"),
        ({"tile": (16, 64)}, UsageError, "tile: .* from 32 up"),
        ({"tile": (64, 64), "overlap": 64}, UsageError, "overlap: "),
        ({"merge": "downsample", "tile": (32, 64)}, UsageError, "tile: .* from 64 up"),
        ({"merge": "bad"}, PlanError, "merge: 'bad'"),
        ({"runtime": "bad"}, UsageError, "runtime: one of"),
        ({"model": "no/such/model"}, CheckpointError, "no/such/model"),
    ],
)
def test_wrong_arguments(
    random_model: Segformer, arguments: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        Predictor(**{"model": random_model, "device": "cpu", **arguments})


@pytest.mark.parametrize(
    ("changes", "metadata", "reason"),
    [
        ({}, {"head_trained": False, "source": "mit-b0"}, "model: mit-b0 has a fresh decode head"),
        ({}, {"task": "pose"}, "which size"),
        ({"in_channels": 4}, {}, "model: reads RGB images, not 4 channels"),
    ],
)
def test_wrong_models(changes: dict[str, Any], metadata: dict[str, Any], reason: str) -> None:
    model = Segformer(SegformerConfig.of_size("b0", **changes), Metadata(**metadata))
    with pytest.raises(UsageError, match=reason):
        Predictor(model, device="cpu")


def test_numbers_of_numpy(random_model: Segformer) -> None:
    one, size = np.int64(1), np.array([64, 64])
    numbers: dict[str, Any] = {
        "size": size,
        "tile": size,
        "overlap": one,
        "batch": one,
        "threads": one,
    }
    predict = Predictor(random_model, device="cpu", **numbers)
    assert predict(picture(40, 40)).label_map.shape == (40, 40)
    assert predict.facts["batch"] == 1


def test_small_tiles_grow_with_extreme_plans(random_model: Segformer) -> None:
    predict = Predictor(random_model, merge=MergePlan(input_scale=0.02), device="cpu")
    assert predict(picture(40, 40)).label_map.shape == (40, 40)


def test_overlap_without_tiles_is_refused(random_model: Segformer) -> None:
    with pytest.raises(UsageError, match="overlap: only where there are tiles"):
        Predictor(random_model, tile=None, overlap=8, device="cpu")
