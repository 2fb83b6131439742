"""Reading masks: what a file holds, as training ids."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segformerpp.data.images import open_image, reason
from segformerpp.errors import ImageError, UsageError

#: The id of pixels that do not count.
IGNORED = 255

Encode = Callable[[np.ndarray], np.ndarray]
Colour = tuple[int, int, int]

_NUMBERS = ("1", "L", "P", "I", "I;16", "I;16B", "I;16L")
_COLOURS = ("RGB", "RGBA")
#: What Pillow multiplies grey of 2 and 4 bits with in PNG.
_SCALES = {2: 85, 4: 17}
#: How many of the values that are unknown an error names.
_NAMED = 5


def read_mask(path: Path, size: tuple[int, int], encode: Encode) -> np.ndarray:
    """The training ids (H, W) uint8 of a mask file.

    Args:
        path: an image of numbers (8 or 16 bits, or indices into a palette), or of RGB colours.
        size: (H, W) of the image that it belongs to.
        encode: from what the file holds, numbers (H, W) or colours (H, W, 3), to training ids.

    Raises:
        ImageError: if it cannot be read, has another size, or values that are unknown.
    """
    try:
        data = path.read_bytes()
        with open_image(data) as file:
            if file.mode not in (*_NUMBERS, *_COLOURS):
                raise ImageError(f"a mask holds numbers or RGB colours, not {file.mode}")
            values = np.asarray(file)[..., :3] if file.mode in _COLOURS else np.asarray(file)
        if data.startswith(b"\x89PNG") and data[25] == 0 and data[24] in _SCALES:  # grey, and bits
            values = values // _SCALES[data[24]]
        if values.shape[:2] != size:
            own, image = ("x".join(map(str, shape)) for shape in (values.shape[:2], size))
            raise ImageError(f"the mask is {own}, its image {image}")
        return encode(values)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from None
    except Exception as error:  # whatever a decoder makes of a broken file
        raise ImageError(f"{path}: cannot be read as a mask: {reason(error)}") from None


def from_ids(ids: Sequence[int], ignored: Sequence[int] = (IGNORED,)) -> Encode:
    """For masks of numbers: `ids` in the order of the classes, and those that do not count.

    Raises:
        UsageError: if there are more classes than ids in 8 bits.
    """
    if len(ids) > IGNORED:
        raise UsageError(f"masks: of at most {IGNORED} classes, not {len(ids)}")
    table = np.full(2 + max([*ids, *ignored]), -1, np.int16)  # the last for all that are larger
    table[list(ignored)] = IGNORED
    table[list(ids)] = np.arange(len(ids))
    return _FromIds(table)


def from_colours(classes: Mapping[Colour, int], ignored: Sequence[Colour] = ()) -> Encode:
    """For masks of RGB colours: the training id of each, and those that do not count."""
    of_code = {_code(np.array(colour)).item(): number for colour, number in classes.items()}
    of_code |= {_code(np.array(colour)).item(): IGNORED for colour in ignored}
    codes = np.array(sorted(of_code))
    return _FromColours(codes, np.array([of_code[code] for code in codes.tolist()], np.uint8))


def either(numbers: Encode, colours: Encode | None) -> Encode:
    """For masks of numbers, and where `colours` is given of colours too."""
    return numbers if colours is None else _Either(numbers, colours)


# Classes and not closures: data loaders send them to their processes.


@dataclass(frozen=True, eq=False)
class _FromIds:
    table: np.ndarray

    def __call__(self, values: np.ndarray) -> np.ndarray:
        if values.ndim != 2:
            raise ImageError("the mask holds colours, not a number for each pixel")
        values = values.astype(np.int64)
        found = self.table[np.clip(values, -1, len(self.table) - 1)]
        _refuse_unknown(found < 0, values)
        return found.astype(np.uint8)


@dataclass(frozen=True, eq=False)
class _FromColours:
    codes: np.ndarray
    ids: np.ndarray

    def __call__(self, values: np.ndarray) -> np.ndarray:
        if values.ndim != 3:
            raise ImageError("the mask holds numbers, not colours")
        wanted = _code(values)
        place = np.searchsorted(self.codes, wanted).clip(max=len(self.codes) - 1)
        _refuse_unknown(self.codes[place] != wanted, values)
        return self.ids[place]


@dataclass(frozen=True, eq=False)
class _Either:
    numbers: Encode
    colours: Encode

    def __call__(self, values: np.ndarray) -> np.ndarray:
        return self.colours(values) if values.ndim == 3 else self.numbers(values)


def _code(colours: np.ndarray) -> np.ndarray:
    """Colours (..., 3) as numbers (...)."""
    red, green, blue = (colours[..., channel].astype(np.int64) for channel in range(3))
    return red << 16 | green << 8 | blue


def _refuse_unknown(unknown: np.ndarray, values: np.ndarray) -> None:
    if not unknown.any():
        return
    some, counts = np.unique(values[unknown], axis=0, return_counts=True)
    named = [
        f"{value.tolist()} ({count} pixels)"
        for value, count in zip(some[:_NAMED], counts[:_NAMED], strict=True)
    ]
    more = f" and {len(some) - _NAMED} others" if len(some) > _NAMED else ""
    raise ImageError(f"no class has the value {', '.join(named)}{more}")
