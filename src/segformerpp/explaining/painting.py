"""Pictures of what was merged, as arrays."""

from __future__ import annotations

import colorsys
from dataclasses import dataclass

import cv2
import numpy as np

from segformerpp.explaining.groups import Grouping

#: Of the margin that no token covers, and of pixels that are marked.
_UNCOVERED, _CHANGED = (255, 255, 255), (230, 0, 60)
_BORDER = np.array((255, 255, 255), np.uint8)
_OPACITY, _CLOSE_OPACITY = 0.6, 0.42
#: Tokens along the longer side of a close-up.
_CLOSE_TOKENS = 20


@dataclass(frozen=True, slots=True)
class Window:
    """A part of an image, in pixels."""

    top: float
    left: float
    height: float
    width: float


def whole(image: np.ndarray) -> Window:
    """All of an image (H, W, 3)."""
    return Window(0, 0, image.shape[0], image.shape[1])


def covers(image: np.ndarray, grouping: Grouping) -> bool:
    """Whether there is a token for every pixel."""
    sides = zip(image.shape[:2], grouping.group.shape, grouping.cell, strict=True)
    return all(count * cell >= side - 1e-6 for side, count, cell in sides)


def palette(grouping: Grouping) -> np.ndarray:
    """A colour for each group, neighbours far apart: (M, 3) uint8."""
    # Multiples of the golden ratio spread hues evenly, however many there are.
    hues = np.arange(grouping.groups) * 0.618034 % 1
    values = 0.75 + 0.25 * (np.arange(grouping.groups) * 0.754878 % 1)
    colours = [colorsys.hsv_to_rgb(h, 0.8, v) for h, v in zip(hues, values, strict=True)]
    return np.rint(255 * np.array(colours)).astype(np.uint8)


def tinted(
    image: np.ndarray, grouping: Grouping, window: Window, shape: tuple[int, int], close: bool
) -> np.ndarray:
    """A part of an image with a tint for each group.

    Args:
        image: (H, W, 3) uint8 that was merged.
        grouping: how.
        window: the part to show.
        shape: (h, w) of the picture.
        close: whether to leave the image its colours, and to draw lines between groups.

    Returns:
        (h, w, 3) uint8.
    """
    picture = _cut(image, window, shape)
    if not close:
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)[..., None]
        picture = np.repeat(grey, 3, axis=2)
    rows, columns = _tokens(grouping, window, shape)
    covered = (rows >= 0)[:, None] & (columns >= 0)
    group = grouping.group[rows][:, columns]
    in_group = covered & ~grouping.alone[rows][:, columns]
    colours = palette(grouping)[group]
    opacity = _CLOSE_OPACITY if close else _OPACITY
    mixed = cv2.addWeighted(picture, 1 - opacity, colours, opacity, 0)
    painted = np.where(in_group[..., None], mixed, picture)
    painted[~covered] = _UNCOVERED
    if close:
        painted[_borders(np.where(covered, group, -1))] = _BORDER
    return painted


def close_up(image: np.ndarray, grouping: Grouping) -> Window:
    """Some tokens where the image is the most varied, in the image's proportions."""
    height, width = image.shape[:2]
    share = min(_CLOSE_TOKENS * max(grouping.cell) / max(height, width), 1)
    # In whole tokens, so that none is cut off.
    sides = [
        min(max(round(side * share / cell), 1) * cell, side)
        for side, cell in zip((height, width), grouping.cell, strict=True)
    ]
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY).astype(np.float32)
    detail = np.abs(cv2.Laplacian(grey, cv2.CV_32F))
    kernel = (max(int(sides[1]), 1), max(int(sides[0]), 1))
    total = cv2.boxFilter(detail, -1, kernel, anchor=(0, 0), borderType=cv2.BORDER_CONSTANT)
    ends = [int(side - part) + 1 for side, part in zip((height, width), sides, strict=True)]
    top, left = np.unravel_index(total[: ends[0], : ends[1]].argmax(), (ends[0], ends[1]))
    corner = [at // cell * cell for at, cell in zip((top, left), grouping.cell, strict=True)]
    return Window(float(corner[0]), float(corner[1]), sides[0], sides[1])


def marked(image: np.ndarray, changed: np.ndarray) -> np.ndarray:
    """An image in pale grey, with some pixels marked: (H, W, 3) uint8."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)[..., None]
    pale = np.repeat((0.5 * grey + 110).astype(np.uint8), 3, axis=2)
    pale[changed] = _CHANGED
    return pale


def _cut(image: np.ndarray, window: Window, shape: tuple[int, int]) -> np.ndarray:
    """Resize a part of an image."""
    top, left = int(window.top), int(window.left)
    part = image[
        top : top + max(round(window.height), 1), left : left + max(round(window.width), 1)
    ]
    shrinks = shape[0] < part.shape[0]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(part, shape[::-1], interpolation=method)


def _tokens(
    grouping: Grouping, window: Window, shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The row and the column of the token under each pixel of a picture; -1 where none is."""
    found = []
    for start, length, cell, pixels, count in zip(
        (window.top, window.left),
        (window.height, window.width),
        grouping.cell,
        shape,
        grouping.group.shape,
        strict=True,
    ):
        at = start + (np.arange(pixels) + 0.5) * length / pixels
        index = (at // cell).astype(np.int64)
        found.append(np.where(index < count, index, -1))
    return found[0], found[1]


def _borders(group: np.ndarray) -> np.ndarray:
    """The pixels beside another group: (h, w) bool."""
    edge = np.zeros(group.shape, bool)
    across, down = group[:, 1:] != group[:, :-1], group[1:] != group[:-1]
    edge[:, 1:] |= across
    edge[:, :-1] |= across
    edge[1:] |= down
    edge[:-1] |= down
    return edge
