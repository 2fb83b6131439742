from pathlib import Path

import numpy as np
import pytest

from segformerpp.errors import ImageError, UsageError
from segformerpp.tuning.images import Images, divide, spread


def images(count: int, broken: int = -1) -> Images:
    def read(index: int) -> tuple[np.ndarray, None]:
        if index == broken:
            raise ImageError("broken")
        return np.full((2, 2, 3), index, np.uint8), None

    return Images(tuple(Path(str(i)) for i in range(count)), read, masked=False)


def test_no_image_is_for_both() -> None:
    searched, checked = divide(images(30), 100)
    names = [[int(p.name) for p in part.paths] for part in (searched, checked)]
    assert sorted(names[0] + names[1]) == list(range(30))
    assert names[1] == list(range(2, 30, 3))
    assert names[0] != sorted(names[0])
    assert all(searched.read(i)[0][0, 0, 0] == names[0][i] for i in range(20))
    assert [len(part) for part in divide(images(30), 4)] == [4, 4]
    with pytest.raises(UsageError, match="2 images are too few"):
        divide(images(2), 9)


def test_spread() -> None:
    assert spread(range(10), 4) == [0, 2, 5, 7]
    assert spread(range(3), 4) == [0, 1, 2]


def test_broken_ones_are_named_and_left_out() -> None:
    said: list[ImageError] = []
    assert len(images(4, broken=2).usable(said.append)) == 3
    assert len(said) == 1
