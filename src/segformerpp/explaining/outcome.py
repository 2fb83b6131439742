"""What merging changes of a result, drawn: labels, keypoints."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import cv2
import numpy as np
from matplotlib.patches import Patch

from segformerpp.arguments import Size
from segformerpp.explaining import painting
from segformerpp.tasks.pose_result import LEAST_CONFIDENCE, PoseResult
from segformerpp.tasks.segmentation_result import SegmentationResult

if TYPE_CHECKING:
    from segformerpp.explaining.explanation import Explanation
    from segformerpp.explaining.page import Page

_MOST_CLASSES, _LONGEST_NAME = 24, 24
#: Inches for the names of keypoints.
_NAMES = 1.0


def draw_labels(page: Page, explanation: Explanation) -> None:
    """Both label maps, and the pixels where they differ."""
    without, merged = explanation.without, explanation.merged
    assert isinstance(without, SegmentationResult)
    assert isinstance(merged, SegmentationResult)
    page.section(explanation.summary)
    page.top += 0.25
    count = int(explanation.changed.sum())
    pictures = {
        "labels without merging (none)": np.asarray(without.plot(legend=False)),
        "labels with the plan": np.asarray(merged.plot(legend=False)),
        f"red: {count} pixels whose label changes": painting.marked(
            explanation.image, explanation.changed
        ),
    }
    for number, (title, picture) in enumerate(pictures.items()):
        axis = page.picture(number)
        axis.imshow(picture, aspect="auto")
        axis.set_title(title, fontsize=9.5, loc="left")
    page.top += page.panel[0] + 0.1
    shares = np.maximum(without.shares, merged.shares)
    present = [i for i in np.argsort(-shares, kind="stable") if shares[i]][:_MOST_CLASSES]
    page.legend(
        [
            Patch(
                color="#{:02x}{:02x}{:02x}".format(*merged.palette[i]),
                label=merged.labels[i][:_LONGEST_NAME],
            )
            for i in present
        ],
        int(page.inner // 1.7),
    )


def draw_keypoints(page: Page, explanation: Explanation) -> None:
    """Both skeletons, and how far each keypoint moved."""
    without, merged, moved = explanation.without, explanation.merged, explanation.moved
    assert isinstance(without, PoseResult)
    assert isinstance(merged, PoseResult)
    page.section(
        explanation.summary.capitalize(),
        "Pixels of the image as it was read. Blue: the person's left side, orange: the right one.",
    )
    page.top += 0.25
    titles = ("keypoints without merging (none)", "keypoints with the plan")
    for number, (title, result) in enumerate(zip(titles, (without, merged), strict=True)):
        axis = page.picture(number)
        axis.imshow(_skeleton(explanation, result, page.picture_shape), aspect="auto")
        axis.set_title(title, fontsize=9.5, loc="left")
    axis = page.axes(page.lefts[2] + _NAMES, page.panel[1] - _NAMES, page.panel[0])
    sure = explanation.sure
    colours = [np.array(c) / 255 if s else "0.8" for c, s in zip(merged.palette, sure, strict=True)]
    axis.barh(range(len(moved)), moved, 0.7, color=colours)
    for y, distance in enumerate(moved):
        axis.text(distance, y, f" {distance:.1f}", va="center", fontsize=8)
    axis.set_yticks(range(len(moved)), [label.replace("_", " ") for label in merged.labels])
    axis.set_xlim(0, 1.2 * max(float(moved.max()), 1e-3))
    axis.invert_yaxis()
    axis.tick_params(labelsize=8)
    axis.spines[["top", "right"]].set_visible(False)
    doubt = "" if sure.all() else f" (grey: confidence < {LEAST_CONFIDENCE})"
    axis.set_title(f"pixels moved{doubt}", fontsize=9.5, loc="left")
    page.top += page.panel[0] + 0.25


def _skeleton(explanation: Explanation, result: PoseResult, shape: Size) -> np.ndarray:
    """A person with the skeleton, enlarged: (h, w, 3) uint8."""
    assert explanation.transform is not None
    height, width = explanation.size
    factor = np.array([shape[1] / width, shape[0] / height])
    linear, offset = explanation.transform[:, :2], explanation.transform[:, 2]
    keypoints = result.keypoints.copy()
    seen = keypoints[0, :, :2] @ linear.T + offset
    keypoints[0, :, :2] = (seen + 0.5) * factor - 0.5
    enlarged = cv2.resize(explanation.image, shape[::-1], interpolation=cv2.INTER_CUBIC)
    box = np.array([[0, 0, shape[1] / 2, shape[0] / 2]])
    return np.asarray(replace(result, keypoints=keypoints, image=enlarged, boxes=box).plot())
