import logging
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segformerpp import calibration
from segformerpp.calibration import Calibration
from segformerpp.errors import UsageError
from segformerpp.models import Metadata
from segformerpp.tasks.segmentation import normalise


def fill(folder: Path, count: int, size: tuple[int, int] = (40, 50)) -> None:
    for i in range(count):
        Image.fromarray(np.full((*size, 3), i, np.uint8)).save(folder / f"{i:03}.png")


def test_evenly_chosen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "MOST_IMAGES", 3)
    fill(tmp_path, 9)
    images = Calibration(tmp_path, Metadata())
    assert len(images) == 3
    taken = [int(x[0, 0, 0, 0]) for x in images.inputs((1, 1), pixels=True)]
    assert taken == [0, 4, 8]
    assert len(list(images.inputs((1, 1)))) == 3  # a second time


def test_shapes(tmp_path: Path) -> None:
    fill(tmp_path, 1)
    images, metadata = Calibration(tmp_path, Metadata()), Metadata()
    (x,) = images.inputs((32, 32), batch=2)
    assert x.shape == (2, 3, 40, 50)
    assert x.dtype == np.float32
    np.testing.assert_array_equal(x[1], normalise(np.zeros((40, 50, 3), np.uint8), metadata))
    shapes = {
        ((64, 32), None): (64, 50),
        ((32, 32), (36, 40)): (36, 40),
        ((60, 70), (60, 70)): (60, 70),
    }
    for (least, most), shape in shapes.items():
        (x,) = images.inputs(least, most, pixels=True)
        assert x.shape == (1, *shape, 3)
        assert x.dtype == np.uint8
    (x,) = Calibration(tmp_path, metadata, (48, 64)).inputs((32, 32))
    assert x.shape == (1, 3, 48, 64)


def test_the_fingerprint_changes_with_the_images(tmp_path: Path) -> None:
    fill(tmp_path, 2)
    first = Calibration(tmp_path, Metadata())
    assert Calibration(tmp_path, Metadata()).fingerprint == first.fingerprint
    assert Calibration(tmp_path, Metadata(), (48, 64)).fingerprint != first.fingerprint
    fill(tmp_path, 3)
    assert Calibration(tmp_path, Metadata()).fingerprint != first.fingerprint


def test_images_that_cannot_be_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "broken.png").write_bytes(b"no image")
    images = Calibration(tmp_path, Metadata())
    with pytest.raises(UsageError, match=r"calibrate: no image in .* can be read"):
        list(images.inputs((1, 1)))
    fill(tmp_path, 1)
    with caplog.at_level(logging.WARNING, "segformerpp"):
        assert len(list(Calibration(tmp_path, Metadata()).inputs((1, 1)))) == 1
    assert "left out of the calibration" in caplog.text
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no image in this folder"):
        Calibration(tmp_path / "empty", Metadata())
