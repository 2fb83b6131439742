from pathlib import Path

import numpy as np
import pytest

from segformerpp.errors import UsageError
from segformerpp.tuning.images import Images, divide, spread, with_noise


def images(count: int) -> Images:
    def read(index: int) -> tuple[np.ndarray, None]:
        return np.full((2, 2, 3), index, np.uint8), None

    return Images(tuple(Path(str(i)) for i in range(count)), read)


def test_no_image_is_for_both() -> None:
    searched, checked = divide(images(30), 100)
    names = [[int(p.name) for p in part.paths] for part in (searched, checked)]
    assert sorted(names[0] + names[1]) == list(range(30))
    assert sorted(names[1]) == list(range(2, 30, 3))
    assert all(part != sorted(part) for part in names)
    assert all(searched.read(i)[0][0, 0, 0] == names[0][i] for i in range(20))
    assert [len(part) for part in divide(images(30), 4)] == [4, 4]
    with pytest.raises(UsageError, match="2 images are too few"):
        divide(images(2), 9)


def test_spread() -> None:
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread(range(3), 4) == [0, 1, 2]


def test_noise() -> None:
    def read(index: int) -> tuple[np.ndarray, int]:
        return np.full((64, 64, 3), 128 * index, np.uint8), index

    plain = Images((Path("0"), Path("1")), read)
    assert with_noise(plain, 0) is plain
    (dark, zero), (grey, one) = map(with_noise(plain, 10).read, (0, 1))
    assert (zero, one) == (0, 1)
    assert dark.dtype == np.uint8
    assert dark.shape == (64, 64, 3)
    assert 9.5 < grey.std() < 10.5
    assert abs(grey.mean() - 128) < 0.5
    assert dark.min() == 0 < dark.max() < 60
    assert (with_noise(plain, 10).read(1)[0] == grey).all()
