import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segformerpp.models import Metadata
from segformerpp.tasks.segmentation import (
    fit,
    normalise,
    probabilities,
)


def resized(logits: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """What PyTorch makes of logits (K, h, w), in float64."""
    x = torch.from_numpy(logits).double()[None]
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)[0].numpy()


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
