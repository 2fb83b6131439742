"""Draw what each merging strategy does to a small piece of `samples/highway.png`.

    python docs/make_drawings.py

The tokens here are pixels, their features are the colours, and the groups are those that the
package itself finds: the drawings in `docs/merging.md` cannot differ from the code.
"""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from segformerpp.merging.match import match
from segformerpp.plans import BipartiteMatching, Merge, Neighbour1d, Neighbour2d

HERE = Path(__file__).parent
GRID = (8, 12)
CELL, GAP, TOP, BOTTOM = 40, 30, 34, 30
INK, LINE, MARK = (20, 20, 20), (255, 255, 255), (230, 30, 30)
DRAWINGS: dict[str, tuple[Merge, str]] = {
    "bsm": (BipartiteMatching(r=0.6, sx=4, sy=4), "bsm  r=0.6 sx=4 sy=4"),
    "n1d": (Neighbour1d(s=5), "n1d  s=5"),
    "n2d": (Neighbour2d(sx=2, sy=2), "n2d  sx=2 sy=2"),
}


def tokens() -> np.ndarray:
    """A piece of the sample image as (h, w, 3) colours in 0..1."""
    with Image.open(HERE.parent / "samples" / "highway.png") as image:
        piece = image.convert("RGB").crop((380, 200, 860, 520))
    return np.asarray(piece.resize((GRID[1], GRID[0]), Image.Resampling.BOX)) / 255


def panel(
    canvas: ImageDraw.ImageDraw, left: int, title: str, colours: np.ndarray, group: np.ndarray
) -> None:
    """One token grid: its colours, and a line wherever two neighbours are in different groups."""
    canvas.text((left, 6), title, INK, ImageFont.load_default(17))
    h, w = GRID
    for y, x in np.ndindex(h, w):
        box = [left + x * CELL, TOP + y * CELL, left + (x + 1) * CELL - 1, TOP + (y + 1) * CELL - 1]
        canvas.rectangle(box, fill=tuple(int(255 * v) for v in colours[y, x]))
    for y, x in np.ndindex(h, w):
        x0, y0 = left + x * CELL, TOP + y * CELL
        if x + 1 < w and group[y, x] != group[y, x + 1]:
            canvas.line([x0 + CELL, y0, x0 + CELL, y0 + CELL], LINE, 2)
        if y + 1 < h and group[y, x] != group[y + 1, x]:
            canvas.line([x0, y0 + CELL, x0 + CELL, y0 + CELL], LINE, 2)


def draw(name: str, merge: Merge, title: str) -> None:
    """Write one drawing: tokens, groups, and what every token reads after unmerging."""
    colours = tokens()
    x = torch.from_numpy(colours).flatten(0, 1)[None]
    features = x - x.mean(dim=1, keepdim=True)  # else every colour points the same way
    found = match(merge, features, GRID)
    assert found is not None
    merged = found.merge(x)
    count = merged.shape[1]
    group = found.unmerge(torch.arange(count, dtype=torch.float64).view(1, -1, 1))
    group_map = group.view(GRID).long().numpy()
    after = found.unmerge(merged).view(*GRID, 3).numpy()
    hues = np.random.default_rng(3).permutation(count) / count
    palette = np.array([colorsys.hsv_to_rgb(hue, 0.6, 0.92) for hue in hues])
    sizes = np.bincount(group_map.ravel())
    shades = np.where((sizes > 1)[:, None], palette, 0.92)

    width = 3 * GRID[1] * CELL + 4 * GAP
    image = Image.new("RGB", (width, TOP + GRID[0] * CELL + BOTTOM), "white")
    canvas = ImageDraw.Draw(image)
    step = GRID[1] * CELL + GAP
    n = GRID[0] * GRID[1]
    each = np.arange(n).reshape(GRID)
    panel(canvas, GAP, f"{n} tokens", colours, each)
    panel(canvas, GAP + step, f"{title}: {count} groups", shades[group_map], group_map)
    panel(canvas, GAP + 2 * step, "after unmerging", after, each)
    note = "white lines part the groups; equal colours: one group"
    if isinstance(merge, BipartiteMatching):
        for y in range(0, GRID[0] // merge.sy * merge.sy, merge.sy):
            for x0 in range(0, GRID[1] // merge.sx * merge.sx, merge.sx):
                cy = TOP + y * CELL + CELL // 2
                for left in (GAP, GAP + step):
                    cx = left + x0 * CELL + CELL // 2
                    canvas.ellipse([cx - 8, cy - 8, cx + 8, cy + 8], fill=MARK, outline=LINE)
        note = "red: destinations; equal colours: one group; grey: kept as they are"
    canvas.text((GAP, TOP + GRID[0] * CELL + 6), note, INK, ImageFont.load_default(15))
    path = HERE / "images" / f"{name}.png"
    path.parent.mkdir(exist_ok=True)
    image.save(path, optimize=True)


if __name__ == "__main__":
    for name, (merge, title) in DRAWINGS.items():
        draw(name, merge, title)
