import logging
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from segformerpp import tiling as tiling_module
from segformerpp.data.images import ImageSource
from segformerpp.errors import (
    CheckpointError,
    ImageError,
    MemoryLimitError,
    PlanError,
    UsageError,
)
from segformerpp.models import Metadata, Segformer, SegformerConfig
from segformerpp.plans import PRESETS, MergePlan
from segformerpp.predictor import Predictor
from segformerpp.tasks import label_maps, segmentation
from tests.predicting import agreement, exchange, picture, spy


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
        Predictor(random_model, runtime="onnxruntime")(picture(70, 70))  # needs about twice as much
        assert "70 x 70 pixels go in tiles" in caplog.text
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
