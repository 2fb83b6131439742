"""Drawing a legend of class names and shares beside an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw, ImageFont

_BACKGROUND, _TEXT, _FAINT = (255, 255, 255), (30, 30, 30), (110, 110, 110)
_LONGEST_NAME = 28


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """A class: its name, RGB colour, and share of the image from 0 to 1."""

    name: str
    colour: tuple[int, int, int]
    share: float


def add_legend(image: np.ndarray, entries: Sequence[LegendEntry]) -> np.ndarray:
    """Put a legend beside an image, or below it if it is more than three times as wide as high.

    The text grows with the image, down to a size that can still be read; small images get more
    paper around them.

    Args:
        image: (H, W, 3) uint8 RGB; keeps its size, in the top left corner.
        entries: the classes in the order to list them.

    Returns:
        Image and legend, (h, w, 3) uint8.
    """
    height, width = image.shape[:2]
    below = width > 3 * height
    panel = _draw(entries, height, width, below)
    h, w = panel.shape[:2]
    paper = (height + h, max(width, w)) if below else (max(height, h), width + w)
    canvas = np.full((*paper, 3), _BACKGROUND, np.uint8)
    canvas[:height, :width] = image
    if below:
        canvas[height:, :w] = panel
    else:
        canvas[:h, width:] = panel
    return canvas


def _draw(entries: Sequence[LegendEntry], height: int, width: int, below: bool) -> np.ndarray:
    """The legend for an image of this size: (h, w, 3) uint8."""
    size = max(round(math.sqrt(width * height) / 45), 13)
    font = ImageFont.load_default(size)
    names = [_short(entry.name) for entry in entries]
    shares = [_percent(entry.share) for entry in entries]
    line, gap, patch = round(1.7 * size), round(0.6 * size), round(1.1 * size)
    name_width = max(math.ceil(font.getlength(name)) for name in names)
    share_width = max(math.ceil(font.getlength(share)) for share in shares)
    column = patch + gap + name_width + 2 * gap + share_width + 3 * gap

    if below:
        columns = min(max((width - gap) // column, 1), len(entries))
        rows = -(-len(entries) // columns)
    else:
        rows = min(max((height - 2 * gap) // line, 16), len(entries))
        columns = -(-len(entries) // rows)

    panel = Image.new("RGB", (columns * column + gap, rows * line + 2 * gap), _BACKGROUND)
    draw = ImageDraw.Draw(panel)
    for i, (entry, name, share) in enumerate(zip(entries, names, shares, strict=True)):
        x = 2 * gap + (i // rows) * column
        y = gap + (i % rows) * line
        middle = y + line // 2
        box = (x, middle - patch // 2, x + patch, middle - patch // 2 + patch)
        draw.rectangle(box, fill=entry.colour, outline=_FAINT, width=max(size // 16, 1))
        x += patch + gap
        draw.text((x, middle), name, _TEXT, font, anchor="lm")
        x += name_width + 2 * gap + share_width
        draw.text((x, middle), share, _FAINT, font, anchor="rm")
    return np.asarray(panel)


def _short(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3].rstrip() + "..."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "<0.1 %"
