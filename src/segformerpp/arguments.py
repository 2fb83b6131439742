"""Checking the numbers and sizes that users pass as arguments."""

from __future__ import annotations

import math
import operator
import re
from fractions import Fraction
from typing import Any

from segformerpp.errors import UsageError

Size = tuple[int, int]  # (H, W)


def whole_number(name: str, value: Any, least: int, most: float = math.inf) -> int:
    """Take any kind of whole number, NumPy's too, if it lies in `least` .. `most`.

    Raises:
        UsageError: which names the argument and what would be right.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = least - 1
    if not least <= number <= most:
        upper = "up" if most == math.inf else f"to {most}"
        raise UsageError(f"{name}: a whole number from {least} {upper}, not {value!r}")
    return number


def checked_size(name: str, size: Any, least: int = 1) -> Size:
    """Take a size (H, W) of whole numbers from `least` up.

    Raises:
        UsageError: which names the argument and what would be right.
    """
    try:
        height, width = (operator.index(side) for side in size)
    except (TypeError, ValueError):
        height = width = least - 1
    if min(height, width) < least:
        raise UsageError(f"{name}: height and width in pixels, from {least} up, not {size!r}")
    return height, width


def parse_size(key: str, text: str) -> tuple[int, int]:
    """Read height x width, such as ``512x1024``; `key` names the option in errors.

    Raises:
        UsageError: if it is none.
    """
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip().lower())
    if not match:
        raise UsageError(f"{key}: height x width in pixels, such as 512x1024, not {text!r}")
    return int(match[1]), int(match[2])


def parse_time(key: str, text: str) -> Fraction:
    """Read seconds, such as ``12.5``, or ``H:MM:SS``, ``MM:SS``; `key` names the option in errors.

    Raises:
        UsageError: if it is none.
    """
    match = re.fullmatch(r"(?:(?:(\d+):)?([0-5]?\d):)?(\d+(?:\.\d*)?|\.\d+)", text.strip())
    if not match or (match[2] is not None and Fraction(match[3]) >= 60):
        raise UsageError(f"{key}: seconds, such as 12.5, or H:MM:SS, not {text!r}")
    return int(match[1] or 0) * 3600 + int(match[2] or 0) * 60 + Fraction(match[3])
