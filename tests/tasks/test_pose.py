from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segformerpp.data.skeletons import skeleton
from segformerpp.errors import UsageError
from segformerpp.models import Metadata
from segformerpp.tasks.pose import PADDING, PoseCodec, checked_box, codec_of, to_image

SIZES = st.sampled_from([(64, 48), (96, 96), (384, 288), (65, 50)])
SEEDS = st.integers(0, 2**32 - 1)


@settings(max_examples=50)
@given(size=SIZES, sigma=st.sampled_from([1.5, 2.0, 3.0]), seed=SEEDS)
def test_what_is_encoded_is_decoded(size: tuple[int, int], sigma: float, seed: int) -> None:
    codec = PoseCodec(size, sigma)
    height, width = size
    points = np.random.default_rng(seed).uniform(0, (width - 1, height - 1), (6, 2))
    heatmaps, weights = codec.encode(points, np.ones(6))
    assert heatmaps.shape == (6, *codec.heatmap_size)
    assert (weights == 1).all()
    found = codec.decode(heatmaps[None])[0]
    # Less than a tenth of an input pixel, at edges too.
    np.testing.assert_allclose(found[:, :2], points, atol=0.1)
    assert (found[:, 2] > 0.8).all()


@settings(max_examples=30)
@given(seed=SEEDS)
def test_whole_pixels_within_half_a_heatmap_pixel(seed: int) -> None:
    codec = PoseCodec((128, 96), coding="msra")
    points = np.random.default_rng(seed).uniform(0, (91, 123), (6, 2))
    heatmaps, _ = codec.encode(points, np.ones(6))
    for refinement in ("none", "quarter", "dark"):
        found = codec.decode(heatmaps[None], refinement)[0]
        assert np.abs(found[:, :2] - points).max() <= 2 + (refinement == "quarter")


def test_encoding_by_hand() -> None:
    codec = PoseCodec((17, 33), sigma=1.5)
    points = np.array([[10.0, 7.0], [-3.0, 4.0], [5.0, 5.0]])
    heatmaps, weights = codec.encode(points, np.array([True, True, False]))
    assert codec.heatmap_size == (5, 9)
    assert weights.tolist() == [1, 0, 0]
    assert not heatmaps[1:].any()
    for y in range(5):
        for x in range(9):
            square = (x - 10 * 8 / 32) ** 2 + (y - 7 * 4 / 16) ** 2
            assert heatmaps[0, y, x] == pytest.approx(np.exp(-square / (2 * 1.5**2)))


def _decode(codec: PoseCodec, heatmap: np.ndarray, refinement: str) -> list[float]:
    """Without vectors and smoothing, as the papers have it."""
    rows, columns = heatmap.shape
    y, x = max(np.ndindex(rows, columns), key=lambda at: heatmap[at])
    dx = dy = 0.0
    if refinement == "quarter" and 0 < x < columns - 1 and 0 < y < rows - 1:
        dx = 0.25 * np.sign(float(heatmap[y, x + 1]) - float(heatmap[y, x - 1]))
        dy = 0.25 * np.sign(float(heatmap[y + 1, x]) - float(heatmap[y - 1, x]))
    across, down = codec.scale
    return [(x + dx) * across, (y + dy) * down, heatmap[y, x]]


@pytest.mark.parametrize("refinement", ["none", "quarter"])
@pytest.mark.parametrize("coding", ["udp", "msra"])
def test_decoding_equals_brute_force(refinement: Any, coding: Any) -> None:
    codec = PoseCodec((64, 48), coding=coding)
    heatmaps = np.random.default_rng(0).random((3, 5, 16, 12), np.float32)
    found = codec.decode(heatmaps, refinement)
    for person in range(3):
        for joint in range(5):
            expected = _decode(codec, heatmaps[person, joint], refinement)
            np.testing.assert_allclose(found[person, joint], expected, rtol=1e-6)


def test_smoothing_mends_split_peaks() -> None:
    """Where the highest pixel is noise beside the middle of a broad bump."""
    codec = PoseCodec((128, 128), sigma=2.0)
    heatmaps, _ = codec.encode(np.array([[60.0, 64.0]]), np.ones(1))
    noisy = heatmaps + np.random.default_rng(0).normal(0, 0.05, heatmaps.shape)
    errors = {
        kind: np.linalg.norm(codec.decode(noisy[None], kind)[0, 0, :2] - (60, 64))
        for kind in ("none", "dark")
    }
    assert errors["dark"] < 1 < errors["none"]


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_flat_heatmaps(value: float) -> None:
    found = PoseCodec((64, 64)).decode(np.full((1, 2, 16, 16), value, np.float32))
    assert np.isfinite(found).all()
    assert (found[..., 2] == value).all()


@settings(max_examples=50)
@given(
    box=st.tuples(*[st.floats(-50, 200)] * 2, *[st.floats(1, 300)] * 2),
    rotation=st.floats(-90, 90),
    coding=st.sampled_from(["udp", "msra"]),
)
def test_there_and_back(box: tuple[float, ...], rotation: float, coding: Any) -> None:
    codec = PoseCodec((192, 144), coding=coding)
    transform = codec.transform(np.array(box), rotation)
    points = np.array([[0, 0], [143, 0], [143, 191], [70.3, 20.7]])
    keypoints = np.column_stack((points, np.ones(4)))
    there = to_image(keypoints, transform)
    back = there[:, :2] @ transform[:, :2].T + transform[:, 2]
    np.testing.assert_allclose(back, points, atol=0.01)
    # The padded box fills the input in one of the directions.
    size = np.linalg.norm(there[1, :2] - there[0, :2]), np.linalg.norm(there[2] - there[1])
    less = 1 if coding == "udp" else 0
    factor = (144 - less) / 143
    wide = max(box[2], box[3] * 144 / 192) * PADDING
    assert size[0] * factor == pytest.approx(wide, rel=1e-3)


def test_crops_show_what_the_transform_says() -> None:
    image = np.zeros((90, 120, 3), np.uint8)
    image[40, 70] = 255
    codec = PoseCodec((192, 144))
    transform = codec.transform(np.array([50.0, 20.0, 40.0, 40.0]))
    crop = codec.crop(image, transform)
    y, x = np.unravel_index(crop[..., 0].argmax(), crop.shape[:2])
    expected = transform[:, :2] @ (70, 40) + transform[:, 2]
    np.testing.assert_allclose((x, y), expected, atol=1)


@settings(max_examples=20)
@given(seed=SEEDS)
def test_mirrored_heatmaps(seed: int) -> None:
    """Heatmaps of the mirrored input, mirrored back, are those of the input."""
    codec, swaps = PoseCodec((96, 64)), skeleton("lsp").mirror
    points = np.random.default_rng(seed).uniform(0, (63, 95), (14, 2))
    mirrored = np.column_stack((63 - points[:, 0], points[:, 1]))[list(swaps)]
    heatmaps = codec.encode(points, np.ones(14))[0]
    back = codec.mirror(codec.encode(mirrored, np.ones(14))[0][None], swaps)[0]
    np.testing.assert_allclose(back, heatmaps, atol=1e-5)


def test_mirroring_shifts_by_a_pixel_where_peaks_sit_on_whole_pixels() -> None:
    """Input 4 x of 64 pixels becomes 63 - 4 x in a mirror: heatmap 16 - x, not 15 - x."""
    codec = PoseCodec((64, 64), coding="msra")
    heatmaps = codec.encode(np.array([[20.0, 8.0]]), np.ones(1))[0]
    mirrored = codec.encode(np.array([[63 - 20.0, 8.0]]), np.ones(1))[0]
    back = codec.mirror(mirrored[None], (0,))[0]
    np.testing.assert_allclose(back[..., 1:], heatmaps[..., 1:], atol=1e-6)


@pytest.mark.parametrize(
    "box",
    [(0, 0, 0, 5), (0, 0, 5, -1), (0, 0, 5), (0, 0, float("nan"), 2), "face", (1e400, 0, 1, 1)],
)
def test_boxes_that_are_none(box: Any) -> None:
    with pytest.raises(UsageError, match=r"^box: x, y, width, height"):
        checked_box(box)


def test_codec_of_a_model() -> None:
    data = Metadata(task="pose", image_size=(64, 48), sigma=3.0, coding="msra")
    assert codec_of(data) == PoseCodec((64, 48), 3.0, "msra")
    with pytest.raises(UsageError, match="which size"):
        codec_of(Metadata(task="pose"))
    for change in ({"sigma": 0.0}, {"coding": "other"}):
        with pytest.raises(UsageError):
            PoseCodec((64, 64), **change)
