import numpy as np
import pytest

from segformerpp.arguments import checked_size, whole_number
from segformerpp.errors import UsageError


def test_whole_numbers() -> None:
    assert [whole_number("batch", value, 1) for value in (1, 7, np.int64(3), np.uint8(9))] == [
        *(1, 7, 3, 9)
    ]
    for wrong in (0, -1, 1.5, 2.0, "2", None, (1,)):
        with pytest.raises(UsageError, match="batch: a whole number from 1 up, not "):
            whole_number("batch", wrong, 1)
    with pytest.raises(UsageError, match="threads: a whole number from 1 to 8, not 9"):
        whole_number("threads", 9, 1, most=8)


def test_checked_size() -> None:
    for size in ((3, 4), [3, 4], np.array([3, 4]), (np.int64(3), 4)):
        found = checked_size("tile", size)
        assert found == (3, 4)
        assert [type(side) for side in found] == [int, int]
    for wrong in ((3,), (3, 0), (3.5, 4), (1, 2, 3), 512, "512", "51", None):
        with pytest.raises(UsageError, match="tile: height and width in pixels, from 1 up, not "):
            checked_size("tile", wrong)
