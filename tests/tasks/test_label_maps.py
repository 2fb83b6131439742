import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from segformerpp.tasks import label_maps
from segformerpp.tasks.label_maps import from_logits

SIDES = st.integers(1, 70)


def resized(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What PyTorch makes of logits (K, h, w), in float64."""
    x = torch.from_numpy(logits).double()[None]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)[0].numpy()


@settings(max_examples=100, deadline=None)
@given(
    k=st.integers(1, 30), h=SIDES, w=SIDES, height=SIDES, width=SIDES, seed=st.integers(0, 9),
    strip=st.sampled_from([2**16, 200, 1]), pixels=st.sampled_from([2**16, 100, 1]),
)  # fmt: skip
def test_label_map_equals_pytorch(
    k: int, h: int, w: int, height: int, width: int, seed: int, strip: int, pixels: int
) -> None:
    logits = np.random.default_rng(seed).normal(size=(k, h, w)).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(label_maps, "_STRIP_LOGITS", strip)
        patch.setattr(label_maps, "_PIXELS", pixels)
        label_map = from_logits(logits, (height, width))
    expected = resized(logits, (height, width))
    chosen = np.take_along_axis(expected, label_map[None].astype(int), axis=0)[0]
    assert label_map.dtype == np.uint8
    # Where the labels differ there must have been a tie.
    np.testing.assert_allclose(chosen, expected.max(axis=0), atol=1e-5)


@pytest.mark.parametrize("size", [(160, 256), (101, 333), (41, 63), (30, 17)])
def test_label_map_of_areas_equals_pytorch(size: tuple[int, int]) -> None:
    rough = torch.from_numpy(np.random.default_rng(3).normal(size=(1, 9, 4, 5)))
    logits = F.interpolate(rough, size=(40, 64), mode="bicubic")[0].float().numpy()
    corners = np.stack([logits.argmax(0)[y : 39 + y, x : 63 + x] for y in (0, 1) for x in (0, 1)])
    assert 0.5 < (corners == corners[0]).all(0).mean() < 0.95  # there is something to leave out
    assert (from_logits(logits, size) == resized(logits, size).argmax(0)).mean() > 0.9999


def test_large_label_map_equals_pytorch_in_float32() -> None:
    logits = np.random.default_rng(0).normal(size=(19, 96, 160)).astype(np.float32)
    expected = F.interpolate(torch.from_numpy(logits)[None], size=(384, 640), mode="bilinear")
    agreement = from_logits(logits, (384, 640)) == expected[0].argmax(0).numpy()
    assert agreement.mean() > 0.99999


@pytest.mark.parametrize(("count", "dtype"), [(256, np.uint8), (257, np.uint16), (700, np.uint16)])
def test_many_classes(count: int, dtype: type) -> None:
    logits = np.zeros((count, 2, 3), np.float32)
    logits[-1] = 1
    label_map = from_logits(logits, (4, 4))
    assert label_map.dtype == dtype
    assert (label_map == count - 1).all()


def test_of_equal_logits_the_lower_class_wins() -> None:
    assert (from_logits(np.ones((5, 2, 2), np.float32), (7, 7)) == 0).all()


def test_channels_may_come_last() -> None:
    logits = np.random.default_rng(1).normal(size=(5, 20, 30)).astype(np.float32)
    last = np.ascontiguousarray(logits.transpose(1, 2, 0)).transpose(2, 0, 1)
    np.testing.assert_array_equal(from_logits(last, (80, 120)), from_logits(logits, (80, 120)))
