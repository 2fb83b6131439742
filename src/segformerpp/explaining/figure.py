"""The figure of an explanation: labels or keypoints, groups, cost, on one page."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, Rectangle

from segformerpp.arguments import Size
from segformerpp.explaining import painting
from segformerpp.explaining.groups import Grouping
from segformerpp.explaining.outcome import draw_keypoints, draw_labels
from segformerpp.explaining.page import Page
from segformerpp.plans.strategies import merge_to
from segformerpp.tasks.pose_result import PoseResult

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from segformerpp.explaining.explanation import Explanation

#: Inches.
_COST = 2.1
_FAINT = "0.4"
_PARTS = {"q": "queries", "kv": "keys/values"}
_TINT = "#c8552b"


def draw(explanation: Explanation) -> Figure:
    """Draw an explanation."""
    page = Page(explanation.size)
    _draw_title(page, explanation)
    if isinstance(explanation.merged, PoseResult):
        draw_keypoints(page, explanation)
    else:
        draw_labels(page, explanation)
    if explanation.groupings:
        _draw_key(page, explanation)
    else:
        page.section("Nothing is merged", "The plan shrinks the image, and that is all it does.")
    for grouping in explanation.groupings:
        _draw_grouping(page, explanation, grouping)
    _draw_cost(page, explanation)
    return page.finish()


def _draw_title(page: Page, explanation: Explanation) -> None:
    plan, (height, width), own = explanation.plan, explanation.size, explanation.own_size
    name = plan.name if plan.name != str(plan) else "this plan"
    page.text(f"What {name} merges in {_shortened(explanation.name)}", 17, weight="bold")
    seen = f"{height} x {width} pixels"
    if isinstance(explanation.merged, PoseResult):
        seen = f"person cut out at {seen} from {own[0]} x {own[1]}"
    elif own != explanation.size:
        seen = f"computed at {seen}; the image has {own[0]} x {own[1]}"
    lines = [f"model {_shortened(explanation.model)}, {explanation.task}, {seen}"]
    lines.append(f"plan {plan.name}" + ("" if plan.name == str(plan) else f" = {plan}"))
    page.text("\n".join(page.wrapped(line, 10) for line in lines), 10, color=_FAINT)


def _draw_key(page: Page, explanation: Explanation) -> None:
    text = (
        "Tokens are what the network computes attention with, each for a square of the image. The "
        "plan averages similar or neighbouring ones into one before attention, and gives all of "
        "them that one's result."
    )
    page.section("Which tokens are merged", text)
    page.top += 0.08
    key: list[Artist] = [
        Patch(color=_TINT, alpha=0.7, label="one tint: tokens that become one"),
        Patch(color="0.65", label="no tint (grey on the left and right): stays as it is"),
    ]
    if any(len(grouping.destinations) for grouping in explanation.groupings):
        key.append(_dot("destination, which others join"))
    if not all(painting.covers(explanation.image, g) for g in explanation.groupings):
        key.append(Patch(fc="white", ec="0.6", label="white: too narrow for a token"))
    page.legend(key, len(key))
    page.top -= 0.1


def _draw_grouping(page: Page, explanation: Explanation, grouping: Grouping) -> None:
    share = f"{100 * grouping.merged / grouping.tokens:.0f} %"
    page.section(
        f"Stage {grouping.stage}, block {grouping.block}, {_PARTS[grouping.part]}: "
        f"{grouping.tokens} tokens become {grouping.groups} ({share} fewer)",
        _described(grouping),
    )
    if not grouping.merged:
        return
    page.top += 0.25
    image = explanation.image
    everything, part = painting.whole(image), painting.close_up(image, grouping)
    axes = [page.picture(number) for number in range(3)]
    titles = ["groups", "close-up of the frame on the left"]
    for axis, window, close, title in zip(
        axes, (everything, part), (False, True), titles, strict=False
    ):
        axis.imshow(
            painting.tinted(image, grouping, window, page.picture_shape, close),
            extent=_extent(window),
            aspect="auto",
        )
        _draw_dots(axis, grouping, window, 16 if close else 2.5)
        axis.set_title(title, fontsize=9.5, loc="left")
    corner = (part.left, part.top)
    for colour, line in (("black", 3.0), ("white", 1.4)):
        axes[0].add_patch(Rectangle(corner, part.width, part.height, ec=colour, fc="none", lw=line))
    _draw_similarity(page, axes[2], grouping, explanation.size)
    page.top += page.panel[0]


def _described(grouping: Grouping) -> str:
    """What a grouping is, in a line."""
    keys = {k: v for k, v in (merge_to(grouping.merge) or {}).items() if k != "mode"}
    strategy = " ".join([grouping.merge.mode, *(f"{k}={v}" for k, v in keys.items())])
    h, w = grouping.group.shape
    cells = " x ".join(f"{side:g}" for side in grouping.cell)
    text = f"{strategy}; a grid of {h} x {w} tokens, one for {cells} pixels"
    if not grouping.merged:
        return f"{text}, of which nothing is merged"
    several = grouping.sizes[grouping.sizes > 1]
    sizes = f"{several.min()} to {several.max()}" if np.ptp(several) else f"{several[0]}"
    text += f"; {len(several)} group{'s' * (len(several) != 1)} of {sizes} tokens"
    alone = int(grouping.alone.sum())
    text += f", {alone} kept as they were" if alone else ""
    return text + ("; found by an earlier block (reuse)" if grouping.reused else "")


def _draw_dots(axis: Axes, grouping: Grouping, window: painting.Window, size: float) -> None:
    """The destinations that lie in a window."""
    y, x = ((grouping.destinations + 0.5) * grouping.cell).T
    axis.scatter(x, y, s=size, c="white", edgecolors="black", linewidths=0.2 + size / 40)
    axis.set_xlim(window.left, window.left + window.width)
    axis.set_ylim(window.top + window.height, window.top)


def _draw_similarity(page: Page, axis: Axes, grouping: Grouping, size: Size) -> None:
    (h, w), (height, width) = grouping.group.shape, grouping.cell
    low = math.floor(20 * float(np.percentile(grouping.joined, 2))) / 20
    # Else a picture in which all are alike would show nothing but noise.
    shown = axis.imshow(
        grouping.similarity,
        extent=(0, w * width, h * height, 0),
        aspect="auto",
        interpolation="nearest",
        cmap=colormaps["viridis"].with_extremes(bad="0.85"),
        vmin=min(low, 0.95),
        vmax=1,
    )
    axis.set(xlim=(0, size[1]), ylim=(size[0], 0))
    target = "its destination" if len(grouping.destinations) else "its group's average"
    mean = float(grouping.joined.mean())
    title = f"token similarity to {target}; mean {mean:.2f}"
    axis.set_title(title, fontsize=9.5, loc="left")
    bar = page.axes(page.lefts[2] + page.panel[1] + 0.08, 0.12, page.panel[0])
    axis.figure.colorbar(shown, cax=bar)
    bar.tick_params(labelsize=8)
    bar.set_ylabel("cosine similarity", fontsize=8)


def _draw_cost(page: Page, explanation: Explanation) -> None:
    merged, without = explanation.cost.attention, explanation.cost_without.attention
    name = explanation.plan.name if len(explanation.plan.name) < 20 else "the plan"
    whole = explanation.cost.whole / 1e9, explanation.cost_without.whole / 1e9
    page.section(
        f"Attention costs {sum(merged):.3g} GMACs instead of {sum(without):.3g} "
        f"({_change(sum(merged), sum(without))})",
        "GMACs: 10^9 multiply-accumulates, of all blocks of a stage, with spatial reduction and "
        f"with finding out what to merge. The whole network: {whole[0]:.3g} instead of "
        f"{whole[1]:.3g} GMACs ({_change(*whole)}).",
    )
    page.top += 0.1
    axis = page.axes(page.lefts[0] + 0.6, page.inner - 0.6, _COST)
    longest = max(*merged, *without)
    series = (("none", without, -0.19, "0.7"), (name, merged, 0.19, "#2a7ab0"))
    for label, values, offset, colour in series:
        places = np.arange(len(values)) + offset
        axis.barh(places, values, 0.36, color=colour, label=label)
        for y, value, before in zip(places, values, without, strict=True):
            text = f" {value:.3g}" + (f" ({_change(value, before)})" if offset > 0 else "")
            axis.text(value + 0.002 * longest, y, text, va="center", fontsize=9)
    axis.set_xlim(0, 1.15 * longest)
    axis.set_yticks(range(len(merged)), [f"stage {n}" for n in range(1, len(merged) + 1)])
    axis.invert_yaxis()
    axis.set_xlabel("GMACs", fontsize=9)
    axis.tick_params(labelsize=9)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(loc="lower right", frameon=False, fontsize=9)
    page.top += _COST + 0.3


def _change(value: float, before: float) -> str:
    return "as before" if value == before else f"{100 * (value / before - 1):+.0f} %"


def _extent(window: painting.Window) -> tuple[float, float, float, float]:
    bottom, right = window.top + window.height, window.left + window.width
    return window.left, right, bottom, window.top


def _dot(label: str) -> Line2D:
    style = {"marker": "o", "ls": "", "mfc": "white", "mec": "black", "ms": 5}
    return Line2D([], [], label=label, **style)  # type: ignore[arg-type]


def _shortened(text: str, most: int = 60) -> str:
    return text if len(text) <= most else "..." + text[3 - most :]
