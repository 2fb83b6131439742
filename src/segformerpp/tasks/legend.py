"""Drawing a legend of class names and shares beside an image."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

_BACKGROUND, _TEXT, _FAINT = (255, 255, 255), (30, 30, 30), (110, 110, 110)
_LONGEST_NAME = 28


@dataclass(frozen=True, slots=True)
class LegendEntry:
    """A class: its name, RGB colour, and share of the image from 0 to 1."""

    name: str
    colour: tuple[int, int, int]
    share: float


def add_legend(image: Image.Image, entries: Sequence[LegendEntry]) -> Image.Image:
    """Put a legend beside an RGB image, below it where it is more than three times as wide as high.

    The text grows with the image; small images get more paper around them.
    """
    width, height = image.size
    size = max(round(math.sqrt(width * height) / 45), 13)
    font = ImageFont.load_default(size)
    names = [_short(entry.name) for entry in entries]
    shares = [_percent(entry.share) for entry in entries]
    line, gap, patch = round(1.7 * size), round(0.6 * size), round(1.1 * size)
    name_width = max(math.ceil(font.getlength(name)) for name in names)
    share_width = max(math.ceil(font.getlength(share)) for share in shares)
    column = patch + gap + name_width + 2 * gap + share_width + 3 * gap

    below = width > 3 * height
    if below:
        columns = min(max((width - gap) // column, 1), len(entries))
        rows = -(-len(entries) // columns)
    else:
        rows = max((height - 2 * gap) // line, min(len(entries), 16))
        columns = -(-len(entries) // rows)
        rows = min(rows, len(entries))
    panel = (columns * column + gap, rows * line + 2 * gap)
    if below:
        paper, corner = (max(width, panel[0]), height + panel[1]), (0, height)
    else:
        paper, corner = (width + panel[0], max(height, panel[1])), (width, 0)

    canvas = Image.new("RGB", paper, _BACKGROUND)
    canvas.paste(image)
    draw = ImageDraw.Draw(canvas)
    for i, (entry, name, share) in enumerate(zip(entries, names, shares, strict=True)):
        x = corner[0] + 2 * gap + (i // rows) * column
        y = corner[1] + gap + (i % rows) * line
        middle = y + line // 2
        box = (x, middle - patch // 2, x + patch, middle - patch // 2 + patch)
        draw.rectangle(box, fill=entry.colour, outline=_FAINT, width=max(size // 16, 1))
        x += patch + gap
        draw.text((x, middle), name, _TEXT, font, anchor="lm")
        x += name_width + 2 * gap + share_width
        draw.text((x, middle), share, _FAINT, font, anchor="rm")
    return canvas


def _short(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 3].rstrip() + "..."


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if share >= 0.0005 else "<0.1 %"
