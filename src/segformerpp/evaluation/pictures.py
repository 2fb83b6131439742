"""Pictures of an evaluation: images that came out badly, and which classes are confused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segformerpp.arguments import Size
from segformerpp.data.files import write_whole
from segformerpp.data.labels import LabelSet
from segformerpp.data.masks import IGNORED
from segformerpp.metrics.pose import distances
from segformerpp.tasks.legend import LegendEntry, add_legend
from segformerpp.tasks.pose_result import PoseResult
from segformerpp.tasks.segmentation_result import SegmentationResult

_WRONG, _PAPER, _INK = (214, 39, 40), (255, 255, 255), (30, 30, 30)
_CORRECT = (31, 140, 60)
#: Sides of the four panels are at most this, in pixels.
_LARGEST_PANEL = 720
#: Numbers are written into the cells of a confusion matrix with at most this many classes.
_MOST_NUMBERED = 25


def worst_case(
    image: np.ndarray, mask: np.ndarray, label_map: np.ndarray, classes: LabelSet, title: str
) -> Image.Image:
    """Image, mask, prediction and errors in one picture, with a legend.

    Args:
        image: (H, W, 3) uint8.
        mask: true ids (H, W), 255 where a pixel does not count.
        label_map: predicted ids (H, W).
        classes: names and colours.
        title: a line above.
    """
    counts = mask != IGNORED
    truth = _overlay(image, np.where(counts, mask, 0), classes)
    truth[~counts] = image[~counts] // 3
    wrong = counts & (label_map != mask)
    errors = _faded(image)
    errors[wrong] = _WRONG
    errors[~counts] = image[~counts] // 3
    share = wrong.sum() / max(int(counts.sum()), 1)
    panels = {
        "image": image,
        "mask (dark: does not count)": truth,
        "prediction": _overlay(image, label_map, classes),
        f"wrong: {share:.1%} of what counts": errors,
    }
    page = _page(panels, _panel_size(image), title)
    shown = np.bincount(np.concatenate([mask[counts], label_map[counts]]), minlength=IGNORED)
    order = [i for i in np.argsort(-shown, kind="stable") if shown[i]]
    entries = [
        LegendEntry(classes.labels[i], classes.palette[i], float((mask[counts] == i).mean()))
        for i in order
    ]
    return Image.fromarray(add_legend(np.asarray(page), entries)) if entries else page


def worst_poses(
    result: PoseResult, keypoints: np.ndarray, threshold: float, title: str
) -> Image.Image:
    """Image, labelled and found keypoints and errors in one picture, with a legend.

    Args:
        result: what was found.
        keypoints: (P, K, 3): x, y of the labelled ones, with 0 in the last column for those that
            are not.
        threshold: the largest distance of correct keypoints, in parts of the box's larger side.
        title: a line above.
    """
    height, width = size = _panel_size(result.image)
    # Drawn at the panel's size: lines on a small image would be as coarse as its pixels.
    large = np.asarray(Image.fromarray(result.image).resize((width, height)))
    factors = np.array([width, height]) / result.image.shape[1::-1]

    def scaled(points: np.ndarray) -> np.ndarray:
        return np.concatenate(((points[..., :2] + 0.5) * factors - 0.5, points[..., 2:]), axis=-1)

    boxes = np.tile(factors, 2) * result.boxes
    truth = scaled(keypoints)
    truth[..., 2] = keypoints[..., 2] > 0
    found = replace(result, image=large, keypoints=scaled(result.keypoints), boxes=boxes)
    errors = _faded(large)
    people = zip(result.keypoints, keypoints, result.boxes, strict=True)
    far = np.stack([distances(*person) for person in people])
    ends = np.rint(np.stack((truth[..., :2], found.keypoints[..., :2]))).clip(-9999, 29999)
    for person, joint in np.argwhere(np.isfinite(far)):
        colour = _CORRECT if far[person, joint] <= threshold else _WRONG
        start, end = ends[:, person, joint].astype(int).tolist()
        cv2.line(errors, start, end, colour, 2, cv2.LINE_AA)
        cv2.circle(errors, start, 5, (255, 255, 255), -1, cv2.LINE_AA)
        cv2.circle(errors, start, 5, colour, 1, cv2.LINE_AA)
        cv2.circle(errors, end, 5, colour, -1, cv2.LINE_AA)
    right = float(np.mean(far[np.isfinite(far)] <= threshold))
    panels = {
        "image": large,
        "labelled": np.array(replace(found, keypoints=truth).plot(boxes=True)),
        "found (the fainter the less sure)": np.array(found.plot(boxes=True)),
        "from labelled (white) to found": errors,
    }
    page = _page(panels, size, title)
    entries = [
        LegendEntry(f"within {threshold:g} of the box", _CORRECT, right),
        LegendEntry("further away", _WRONG, 1 - right),
    ]
    return Image.fromarray(add_legend(np.asarray(page), entries))


def _page(panels: Mapping[str, np.ndarray], size: Size, title: str) -> Image.Image:
    """Four panels (H, W, 3), each with its name above, two by two below a title.

    Args:
        panels: by their names.
        size: (h, w) that they are shown at.
        title: of the page.
    """
    height, width = size
    large = max(round(height / 24), 12)
    font = ImageFont.load_default(large)
    strip = round(1.8 * large)
    page = Image.new("RGB", (2 * width + strip // 2, strip + 2 * (height + strip)), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((4, strip // 2), title, _INK, font, anchor="lm")
    for i, (name, panel) in enumerate(panels.items()):
        x, y = (i % 2) * (width + strip // 2), strip + (i // 2) * (height + strip)
        draw.text((x + 4, y + strip // 2), name, _INK, font, anchor="lm")
        page.paste(Image.fromarray(panel).resize((width, height)), (x, y + strip))
    return page


def _faded(image: np.ndarray) -> np.ndarray:
    """An image (H, W, 3) in light grey, for what is drawn on it to be seen."""
    grey = (image.mean(axis=2, keepdims=True) * 0.5 + 110).astype(np.uint8)
    return np.repeat(grey, 3, axis=2)


def _overlay(image: np.ndarray, label_map: np.ndarray, classes: LabelSet) -> np.ndarray:
    result = SegmentationResult(label_map, classes.labels, classes.palette, image)
    return np.array(result.plot(alpha=0.6, legend=False))


def _panel_size(image: np.ndarray) -> tuple[int, int]:
    height, width = image.shape[:2]
    factor = _LARGEST_PANEL / max(height, width)
    return max(round(height * factor), 1), max(round(width * factor), 1)


def plot_confusion(
    counts: Sequence[np.ndarray], titles: Sequence[str], labels: Sequence[str], path: Path
) -> None:
    """Draw confusion matrices side by side: of each true class, where its pixels went.

    Args:
        counts: (K, K) each, true class by predicted class.
        titles: one for each.
        labels: names of the classes.
        path: file to write, ending as `benchmark.plot.FORMATS` has it.
    """
    from matplotlib.figure import Figure

    k = len(labels)
    side = 2.2 + 0.42 * k if k <= _MOST_NUMBERED else 12
    figure = Figure(figsize=(side * len(counts) + 0.6, side), layout="constrained")
    axes = figure.subplots(1, len(counts), squeeze=False)[0]
    for axis, table, title in zip(axes, counts, titles, strict=True):
        of_class = table.sum(1, keepdims=True)
        shares = np.where(of_class > 0, 100 * table / np.maximum(of_class, 1), np.nan)
        drawn = axis.imshow(shares, vmin=0, vmax=100, cmap="Blues")
        axis.set_title(title, fontsize=10)
        axis.set_xlabel("predicted")
        small = 8 if k <= _MOST_NUMBERED else 4
        axis.set_xticks(range(k), labels, rotation=90, fontsize=small)
        axis.set_yticks(range(k), labels, fontsize=small)
        if k <= _MOST_NUMBERED:
            for (y, x), share in np.ndenumerate(shares):
                if share >= 0.5:
                    colour = "white" if share > 60 else "black"
                    text = f"{share:.0f}"
                    axis.text(x, y, text, ha="center", va="center", fontsize=7, color=colour)
    axes[0].set_ylabel("true")
    figure.colorbar(drawn, ax=axes, label="% of the pixels of the true class", shrink=0.7)
    with write_whole(path) as file:
        figure.savefig(file, format=path.suffix[1:].lower(), dpi=150)
