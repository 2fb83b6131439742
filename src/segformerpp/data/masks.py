"""Reading masks: what a file holds, as training ids."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from segformerpp.errors import ImageError

#: The id of pixels that do not count.
IGNORED = 255

Encode = Callable[[np.ndarray], np.ndarray]


def read_mask(path: Path, size: tuple[int, int], encode: Encode) -> np.ndarray:
    """The training ids (H, W) uint8 of a mask file.

    Args:
        path: the file.
        size: (H, W) of the image that it belongs to.
        encode: from what the file holds, (H, W) ids or (H, W, 3) colours, to training ids; raises
            `ImageError` where it knows a value not.

    Raises:
        ImageError: if it cannot be read, has another size, or values that are unknown.
    """
    try:
        with Image.open(path) as file:
            values = np.asarray(file)
    except (OSError, ValueError, SyntaxError) as error:
        raise ImageError(f"{path}: cannot be read as a mask: {error}") from None
    if values.shape[:2] != size:
        own, image = ("x".join(map(str, shape)) for shape in (values.shape[:2], size))
        raise ImageError(f"{path}: the mask is {own}, its image {image}")
    try:
        return encode(values)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None


def from_ids(ids: Sequence[int], ignored: Sequence[int] = (IGNORED,)) -> Encode:
    """For masks of numbers: `ids` in the order of the classes, and those that do not count."""
    table = np.full(1 + max(*ids, *ignored), -1, np.int16)
    table[list(ignored)] = IGNORED
    table[list(ids)] = np.arange(len(ids))

    def encode(values: np.ndarray) -> np.ndarray:
        if values.ndim != 2:
            raise ImageError("colours where the mask should have a number for each pixel")
        found = table[np.minimum(values, len(table) - 1)]
        unknown = (found < 0) | (values >= len(table))
        if unknown.any():
            some = ", ".join(map(str, np.unique(values[unknown])[:5]))
            raise ImageError(f"no class has the number {some}")
        return found.astype(np.uint8)

    return encode
