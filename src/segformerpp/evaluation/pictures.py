"""Pictures of an evaluation: the images that came out worst, and which classes are confused."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from segformerpp.data.datasets import SegmentationDataset
from segformerpp.data.files import write_whole
from segformerpp.data.images import write_image
from segformerpp.data.labels import LabelSet
from segformerpp.data.masks import IGNORED
from segformerpp.evaluation.segmentation import Score
from segformerpp.evaluation.views import Views, segment
from segformerpp.predictor import Predictor
from segformerpp.tasks.legend import LegendEntry, add_legend
from segformerpp.tasks.segmentation_result import SegmentationResult

_RIGHT, _WRONG, _PAPER, _INK = (225, 225, 225), (214, 39, 40), (255, 255, 255), (30, 30, 30)
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
    errors = np.empty_like(image)
    errors[:] = (image.mean(axis=2, keepdims=True) * 0.5 + 110).astype(np.uint8)
    errors[wrong] = _WRONG
    errors[~counts] = image[~counts] // 3
    share = wrong.sum() / max(int(counts.sum()), 1)
    panels = {
        "image": image,
        "mask (dark: does not count)": truth,
        "prediction": _overlay(image, label_map, classes),
        f"wrong: {share:.1%} of what counts": errors,
    }
    height, width = _panel_size(image)
    size = max(round(height / 24), 12)
    font = ImageFont.load_default(size)
    strip = round(1.8 * size)
    page = Image.new("RGB", (2 * width + strip // 2, strip + 2 * (height + strip)), _PAPER)
    draw = ImageDraw.Draw(page)
    draw.text((4, strip // 2), title, _INK, font, anchor="lm")
    for i, (name, panel) in enumerate(panels.items()):
        x, y = (i % 2) * (width + strip // 2), strip + (i // 2) * (height + strip)
        draw.text((x + 4, y + strip // 2), name, _INK, font, anchor="lm")
        page.paste(Image.fromarray(panel).resize((width, height)), (x, y + strip))
    shown = np.bincount(np.concatenate([mask[counts], label_map[counts]]), minlength=IGNORED)
    order = [i for i in np.argsort(-shown, kind="stable") if shown[i]]
    entries = [
        LegendEntry(classes.labels[i], classes.palette[i], float((mask[counts] == i).mean()))
        for i in order
    ]
    return Image.fromarray(add_legend(np.asarray(page), entries)) if entries else page


def save_worst(
    predictor: Predictor,
    dataset: SegmentationDataset,
    score: Score,
    views: Views,
    folder: Path,
    count: int,
) -> list[Path]:
    """Write a picture of each of the images that came out worst, the worst one as ``01_...``.

    They are predicted again, because nobody knows before the end which ones to keep.

    Args:
        predictor: what predicts them.
        dataset: where they are from.
        score: what the predictor got right there.
        views: how it looked at them.
        folder: made if it is missing.
        count: how many at most.

    Returns:
        The files.

    Raises:
        ImageError: if an image cannot be read or predicted any more.
        OSError: if a file cannot be written.
    """
    known = {index: value for index, value in score.ious.items() if not math.isnan(value)}
    files = []
    for place, index in enumerate(sorted(known, key=lambda i: known[i])[:count], 1):
        image, mask = dataset.read(index)
        name, plan = dataset.pairs[index].image.stem, predictor.merge_plan.name
        title = f"{name}: IoU of its classes {known[index]:.1f} %, merge {plan}"
        label_map = segment(predictor, image, views)[0]
        picture = worst_case(image, mask, label_map, dataset.classes, title)
        files.append(folder / f"{place:02}_{name}.png")
        write_image(files[-1], picture)
    return files


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
