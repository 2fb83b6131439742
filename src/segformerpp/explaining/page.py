"""A page that is filled from the top down, and is as long as what is on it."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure
from matplotlib.text import Text

from segformerpp.arguments import Size

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes

_DPI, _PICTURE_DPI = 110, 160
#: Inches. Sizes of pictures are (height, width).
_MARGIN, _GAP, _RIGHT, _LEGEND_LINE = 0.4, 0.25, 0.6, 0.22
_LARGEST, _LEAST = (3.4, 4.5), (0.8, 2.9)
_INK, _FAINT = "0.1", "0.4"
_POINTS_PER_INCH, _LINE_SPACING = 72, 1.4
#: Width of a letter in parts of its height, on average and a little more.
_LETTER = 0.53


class Page:
    """A figure whose parts are placed in inches; pictures stand in rows of three.

    Args:
        size: (H, W) in pixels of the image that the pictures show.

    Attributes:
        width: of the page.
        inner: the same without margins.
        lefts: the left edges of the three pictures.
        panel: (height, width) of a picture.
        top: where the next part goes, from the upper edge down.
    """

    def __init__(self, size: Size) -> None:
        scale = min(most / side for most, side in zip(_LARGEST, size, strict=True))
        height, width = (max(side * scale, least) for side, least in zip(size, _LEAST, strict=True))
        self.panel = height, width
        self.lefts = tuple(_MARGIN + n * (width + _GAP) for n in range(3))
        self.inner = 3 * width + 2 * _GAP + _RIGHT
        self.width, self.top = self.inner + 2 * _MARGIN, _MARGIN
        self._figure = Figure(dpi=_DPI)
        self._place: list[Callable[[float], None]] = []

    @property
    def picture_shape(self) -> tuple[int, int]:
        """(h, w) in pixels of a picture that fills its axes."""
        height, width = self.panel
        return round(height * _PICTURE_DPI), round(width * _PICTURE_DPI)

    def section(self, title: str, text: str = "") -> None:
        """Begin a part of the page."""
        self.top += 0.3
        self.text(title, 12.5, weight="bold")
        if text:
            self.text(self.wrapped(text, 9.5), 9.5, color=_FAINT)

    def wrapped(self, text: str, size: float) -> str:
        """Break text into lines of the page's width, about."""
        letters = self.inner * _POINTS_PER_INCH / (_LETTER * size)
        return "\n".join(textwrap.wrap(text, int(letters)))

    def text(self, text: str, size: float, **style: Any) -> None:
        """Write lines, of so many points, and go on below them."""
        style = {"color": _INK, "linespacing": _LINE_SPACING, **style}
        made = self._figure.text(0, 0, text, fontsize=size, va="top", **style)
        at, top = _MARGIN / self.width, self.top
        self._place.append(lambda height: made.set_position((at, 1 - top / height)))
        self.top += size / _POINTS_PER_INCH * _LINE_SPACING * (1 + text.count("\n"))

    def axes(self, left: float, width: float, height: float) -> Axes:
        """Make axes at `top`, which stays."""
        made = self._figure.add_axes((0, 0, 1, 1), label=str(len(self._place)))
        box = (left / self.width, width / self.width)
        self._place.append(partial(_put, made, box, self.top, height))
        return made

    def picture(self, number: int) -> Axes:
        """Make axes without ticks for one of the three pictures, 0 to 2."""
        made = self.axes(self.lefts[number], self.panel[1], self.panel[0])
        made.set_xticks([])
        made.set_yticks([])
        return made

    def legend(self, handles: Sequence[Artist], columns: int) -> None:
        """Explain colours and marks in so many columns, and go on below."""
        rows = -(-len(handles) // columns)
        axis = self.axes(_MARGIN, self.inner, _LEGEND_LINE * rows)
        axis.axis("off")
        axis.legend(
            handles=handles,
            ncols=columns,
            loc="upper left",
            bbox_to_anchor=(0, 1),
            borderaxespad=0,
            borderpad=0,
            frameon=False,
            fontsize=9,
            columnspacing=1.4,
        )
        self.top += _LEGEND_LINE * rows

    def finish(self) -> Figure:
        """The figure, cut off below `top`."""
        height = self.top + _MARGIN
        self._figure.set_size_inches(self.width, height)
        for place in self._place:
            place(height)
        for text in self._figure.findobj(Text):
            text.set_parse_math(False)  # names may have dollar signs
        return self._figure


def _put(
    axis: Axes, box: tuple[float, float], top: float, height: float, page_height: float
) -> None:
    left, width = box
    axis.set_position((left, 1 - (top + height) / page_height, width, height / page_height))
