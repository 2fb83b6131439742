import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from segformerpp.models import Metadata
from segformerpp.tasks.label_maps import from_logits
from segformerpp.tasks.segmentation import (
    fit,
    normalise,
    probabilities,
)

SIDES = st.integers(1, 70)


def resized(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What PyTorch makes of logits (K, h, w), in float64."""
    x = torch.from_numpy(logits).double()[None]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)[0].numpy()


@settings(max_examples=60, deadline=None)
@given(k=st.integers(1, 30), h=SIDES, w=SIDES, height=SIDES, width=SIDES, seed=st.integers(0, 9))
def test_label_map_equals_pytorch(
    k: int, h: int, w: int, height: int, width: int, seed: int
) -> None:
    logits = np.random.default_rng(seed).normal(size=(k, h, w)).astype(np.float32)
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


def test_strips_do_not_show() -> None:
    logits = np.random.default_rng(1).normal(size=(3, 5, 200)).astype(np.float32)
    narrow = from_logits(logits, (3000, 200))  # several strips
    expected = resized(logits, (3000, 200)).argmax(0)
    assert (narrow == expected).mean() > 0.9999


def test_probabilities() -> None:
    logits = np.random.default_rng(2).normal(scale=4, size=(7, 9, 11)).astype(np.float32)
    found = probabilities(logits, (33, 47))
    expected = torch.from_numpy(resized(logits, (33, 47))).softmax(0).numpy()
    assert found.dtype == np.float16
    np.testing.assert_allclose(found.astype(float), expected, atol=6e-4)


def test_normalise_equals_the_formula() -> None:
    image = np.random.default_rng(3).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    metadata = Metadata(mean=(100.0, 110.5, 120.25), std=(50.0, 60.0, 70.0))
    expected = (image - np.array(metadata.mean)) / np.array(metadata.std)
    x = normalise(image[:, ::-1], metadata)
    assert x.dtype == np.float32
    np.testing.assert_allclose(x, expected[:, ::-1].transpose(2, 0, 1), rtol=1e-6)


@pytest.mark.parametrize(
    ("own", "size", "least", "expected"),
    [
        ((40, 50), None, 32, (40, 50)),
        ((1, 1), None, 32, (32, 32)),
        ((20, 500), None, 32, (32, 500)),
        ((40, 50), (64, 96), 32, (64, 96)),
        ((40, 50), (8, 96), 64, (64, 96)),
    ],
)
def test_fitted_sizes(
    own: tuple[int, int], size: tuple[int, int] | None, least: int, expected: tuple[int, int]
) -> None:
    image = np.full((*own, 3), 200, np.uint8)
    fitted = fit(image, size, least)
    assert fitted.shape == (*expected, 3)
    assert (fitted == 200).all()


def test_shrinking_is_antialiased() -> None:
    checks = (np.indices((64, 64)).sum(0) % 2 * 255).astype(np.uint8)
    shrunk = fit(np.dstack([checks] * 3), (32, 32))
    assert abs(shrunk.astype(int) - 127).max() < 20


def test_pre_and_postprocessing_do_not_import_torch() -> None:
    code = (
        "import sys, segformerpp.tasks.segmentation, segformerpp.tasks.segmentation_result,"
        "segformerpp.tasks.windows, segformerpp.data.labels, segformerpp.runtimes;"
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
