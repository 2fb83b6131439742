from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segformerpp.errors import ImageError, UsageError
from segformerpp.evaluation.views import Views, segment
from segformerpp.models import Segformer
from segformerpp.predictor import Predictor

SAMPLE = Path(__file__).parents[2] / "samples" / "highway.png"


@pytest.fixture(scope="module")
def image() -> np.ndarray:
    return np.asarray(Image.open(SAMPLE).convert("RGB").resize((130, 70)))


def test_sizes() -> None:
    assert Views(scales=(0.5, 1, 1.5)).sizes((101, 50)) == [(51, 25), (101, 50), (152, 75)]
    assert Views((2,), size=(30, 40)).sizes((101, 50)) == [(60, 80)]
    assert Views(scales=(0.001,)).sizes((101, 50)) == [(1, 1)]
    assert Views().single
    assert not Views(flip=True).single
    assert not Views(scales=(0.5,)).single
    for wrong in (0, -1, 9, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="scales: factors from above 0 to 8, not"):
            Views(scales=(1, wrong))


@pytest.mark.parametrize("tile", [None, (64, 64)])
def test_views_are_averaged_as_by_hand(
    random_checkpoint: Path, image: np.ndarray, tile: tuple[int, int] | None
) -> None:
    """Beside the predictor's own probabilities, at each size and mirrored."""
    views = Views((0.75, 1, 1.5), flip=True)
    common: dict[str, Any] = {"runtime": "torch", "precision": "f32", "tile": tile}
    found, seconds = segment(Predictor(random_checkpoint, **common), image, views)
    total = np.zeros((11, 70, 130))
    for size in ((53, 98), (70, 130), (105, 195)):
        predict = Predictor(random_checkpoint, **common, size=size, probabilities=True)
        plain, mirrored = predict(image), predict(image[:, ::-1])
        assert plain.probabilities is not None
        assert mirrored.probabilities is not None
        total += plain.probabilities.astype(np.float64)
        total += mirrored.probabilities[..., ::-1].astype(np.float64)
    first, second = np.sort(total, 0)[-1:-3:-1]
    clear = first - second > 0.004  # theirs are rounded to 16 bits
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(found[clear], total.argmax(0)[clear])
    assert len(np.unique(found)) > 1
    assert seconds > 0


def test_scales_are_of_the_size_that_was_asked_for(
    random_model: Segformer, image: np.ndarray
) -> None:
    common: dict[str, Any] = {"runtime": "torch", "precision": "f32"}
    predict = Predictor(random_model, **common, size=(64, 96))
    found, _ = segment(predict, image, Views((0.5, 2), size=(64, 96)))
    total = np.zeros((11, 70, 130))
    for size in ((32, 48), (128, 192)):
        result = Predictor(random_model, **common, size=size, probabilities=True)(image)
        assert result.probabilities is not None
        total += result.probabilities
    first, second = np.sort(total, 0)[-1:-3:-1]
    clear = first - second > 0.002
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(found[clear], total.argmax(0)[clear])
    assert (found != predict(image).label_map).any()


def test_a_single_view_is_a_prediction(random_model: Segformer, image: np.ndarray) -> None:
    several: list[dict[str, Any]] = [{}, {"size": (64, 64)}, {"tile": (32, 64), "overlap": 8}]
    for options in several:
        predict = Predictor(random_model, merge="hq", runtime="torch", precision="f32", **options)
        expected = predict(image).label_map
        np.testing.assert_array_equal(segment(predict, image, Views())[0], expected)
        logits, _ = predict.logits(image)
        shape = (64, 64) if "size" in options else (70, 130)
        assert logits.shape == (11, -(-shape[0] // 4), -(-shape[1] // 4))


def test_logits_of_what_is_no_image(random_model: Segformer, tmp_path: Path) -> None:
    predict = Predictor(random_model, runtime="torch", precision="f32")
    with pytest.raises(ImageError, match=r"x\.png: no such file"):
        predict.logits(tmp_path / "x.png")


@pytest.mark.parametrize("size", [(0, 5), (10**6, 10**6)])
def test_logits_at_sizes_that_cannot_be(
    random_model: Segformer, image: np.ndarray, size: tuple[int, int]
) -> None:
    predict = Predictor(random_model, runtime="torch", precision="f32")
    with pytest.raises(UsageError, match=r"^size: "):
        predict.logits(image, size)
