from fractions import Fraction

import numpy as np
import pytest

from segformerpp.arguments import checked_size, parse_time, whole_number
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


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("12.5", Fraction(25, 2)),
        ("0", Fraction(0)),
        (".5", Fraction(1, 2)),
        ("90", Fraction(90)),
        ("1:30", Fraction(90)),
        ("2:01:00.25", Fraction(7260) + Fraction(1, 4)),
    ],
)
def test_times(text: str, seconds: Fraction) -> None:
    assert parse_time("start", text) == seconds


@pytest.mark.parametrize(
    "text", ["", "soon", "-1", "1:60", "1:99:00", "1:2:3:4", "1e3", "nan", "."]
)
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(UsageError, match=r"start: seconds, such as 12\.5, or H:MM:SS, not "):
        parse_time("start", text)
