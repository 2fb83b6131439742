"""What an explanation holds: it can plot and save itself."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from segformerpp.arguments import Size
from segformerpp.benchmark import plot as drawing
from segformerpp.benchmark.cost import StageCost
from segformerpp.data.files import write_whole
from segformerpp.explaining.groups import Grouping
from segformerpp.plans import MergePlan
from segformerpp.tasks.pose_result import LEAST_CONFIDENCE, PoseResult
from segformerpp.tasks.segmentation_result import SegmentationResult

_JPEG_QUALITY = 85


@dataclass(frozen=True, slots=True)
class Spent:
    """Multiply-accumulates of one image.

    Args:
        stages: of each stage.
        whole: of the whole network.
    """

    stages: Sequence[StageCost]
    whole: int

    @property
    def attention(self) -> list[float]:
        """GMACs of each stage's attention, with its spatial reduction and its matching."""
        return [(stage.attention + stage.matching) / 1e9 for stage in self.stages]


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Explanation:
    """What a plan merges on an image, what that saves, and what it changes.

    Args:
        name: of the image.
        model: its name.
        task: ``segmentation`` or ``pose``.
        plan: the merge plan.
        image: (H, W, 3) uint8: what the network saw; for poses the person.
        own_size: (H, W) of the image as it was read.
        groupings: of the blocks that were asked for.
        without, merged: what the network finds under ``none`` and under the plan: label maps of
            `image`, or keypoints in pixels of the image as it was read.
        cost_without, cost: what it costs.
        transform: for poses, (2, 3): from pixels of the image as it was read to those of `image`.
    """

    name: str
    model: str
    task: str
    plan: MergePlan
    image: np.ndarray
    own_size: Size
    groupings: tuple[Grouping, ...]
    without: SegmentationResult | PoseResult
    merged: SegmentationResult | PoseResult
    cost_without: Spent
    cost: Spent
    transform: np.ndarray | None = None

    def __repr__(self) -> str:
        return f"Explanation({self.name}, {self.model}, merge {self.plan.name})"

    @property
    def size(self) -> Size:
        """(H, W) of what the network saw."""
        return self.image.shape[0], self.image.shape[1]

    @property
    def changed(self) -> np.ndarray:
        """The pixels that merging labels otherwise: (H, W) bool. For segmentation."""
        assert isinstance(self.without, SegmentationResult)
        assert isinstance(self.merged, SegmentationResult)
        return self.without.label_map != self.merged.label_map

    @property
    def agreement(self) -> float:
        """Percent of the pixels that merging labels as before. For segmentation."""
        return 100 * (1 - float(self.changed.mean()))

    @property
    def moved(self) -> np.ndarray:
        """How far merging moves each keypoint, in pixels of the image as it was read: (K,)."""
        assert isinstance(self.without, PoseResult)
        assert isinstance(self.merged, PoseResult)
        difference = self.merged.keypoints[0, :, :2] - self.without.keypoints[0, :, :2]
        return np.hypot(difference[:, 0], difference[:, 1])

    @property
    def sure(self) -> np.ndarray:
        """The keypoints that the network is sure of, with merging and without: (K,) bool."""
        assert isinstance(self.without, PoseResult)
        assert isinstance(self.merged, PoseResult)
        confidences = self.without.keypoints[0, :, 2], self.merged.keypoints[0, :, 2]
        return np.minimum(*confidences) >= LEAST_CONFIDENCE

    @property
    def summary(self) -> str:
        """What merging changes, in one line."""
        if not isinstance(self.merged, PoseResult):
            return (
                f"{self.agreement:.2f} % of the pixels get the label that they get without merging"
            )
        moved, count = self.moved[self.sure], len(self.sure)
        if not moved.size:
            return f"no keypoint of {count} is found with a confidence of {LEAST_CONFIDENCE}"
        return (
            f"keypoints move by {moved.mean():.1f} pixels on average, by {moved.max():.1f} at most "
            f"({moved.size} of {count}: where the network is sure)"
        )

    def rows(self) -> list[dict[str, Any]]:
        """Rows of plain values, told apart by ``what``.

        ``image``: what merging changes (of keypoints those that are sure), and the cost of the
        whole network; ``keypoint``, for poses: how far each moved; ``stage``: the cost of each
        stage's attention; ``groups``: what
        was merged of one block's queries (``q``) or keys/values (``kv``).
        """
        facts = {
            "model": self.model,
            "task": self.task,
            "image": self.name,
            "size": f"{self.size[0]}x{self.size[1]}",
            "merge": self.plan.name,
        }
        rows = [*self._outcome_rows(), *self._stage_rows()]
        rows += [_grouping_row(grouping) for grouping in self.groupings]
        return [{"what": row.pop("what"), **facts, **row} for row in rows]

    def plot(self) -> Image.Image:
        """The whole explanation as one picture; what it shows is written in it.

        Raises:
            UsageError: if matplotlib is missing.
        """
        buffer = io.BytesIO()
        drawing.check(Path("figure.png"))
        self._draw(buffer, "png")
        return Image.open(buffer).convert("RGB")

    def save(self, path: str | Path) -> Path:
        """Write `plot` as a file, whole or not at all; missing folders are made.

        Args:
            path: ends in .png, .jpg, .svg or .pdf.

        Raises:
            UsageError: if it does not, or matplotlib is missing.
            OSError: if it cannot be written.
        """
        path = Path(path)
        drawing.check(path, "out", drawing.PHOTO_FORMATS)
        with write_whole(path) as file:
            self._draw(file, path.suffix[1:].lower())
        return path

    def _draw(self, file: Any, form: str) -> None:
        from segformerpp.explaining.figure import draw

        options: dict[str, Any] = {}
        if form in ("jpg", "jpeg"):
            options["pil_kwargs"] = {"quality": _JPEG_QUALITY}
        draw(self).savefig(file, format=form, **options)

    def _outcome_rows(self) -> list[dict[str, Any]]:
        row: dict[str, Any] = {"what": "image"}
        keypoints: list[dict[str, Any]] = []
        if isinstance(self.merged, PoseResult) and isinstance(self.without, PoseResult):
            moved, sure = self.moved, self.moved[self.sure]
            row["moved_px_mean"] = round(float(sure.mean()), 2) if sure.size else None
            row["moved_px_max"] = round(float(sure.max()), 2) if sure.size else None
            keypoints = [
                {
                    "what": "keypoint",
                    "keypoint": label,
                    "moved_px": round(float(distance), 2),
                    "confidence": round(float(point[2]), 4),
                    "confidence_none": round(float(before[2]), 4),
                }
                for label, distance, point, before in zip(
                    *(self.merged.labels, moved),
                    *(self.merged.keypoints[0], self.without.keypoints[0]),
                    strict=True,
                )
            ]
        else:
            row["agreement"] = round(self.agreement, 2)
        row["gmacs"] = round(self.cost.whole / 1e9, 3)
        row["gmacs_none"] = round(self.cost_without.whole / 1e9, 3)
        return [row, *keypoints]

    def _stage_rows(self) -> list[dict[str, Any]]:
        pairs = zip(self.cost.attention, self.cost_without.attention, strict=True)
        return [
            {
                "what": "stage",
                "stage": number,
                "attention_gmacs": round(merged, 4),
                "attention_gmacs_none": round(without, 4),
            }
            for number, (merged, without) in enumerate(pairs, 1)
        ]


def _grouping_row(grouping: Grouping) -> dict[str, Any]:
    joined = grouping.joined
    return {
        "what": "groups",
        "stage": grouping.stage,
        "block": grouping.block,
        "part": grouping.part,
        "mode": grouping.merge.mode,
        "grid": "x".join(map(str, grouping.group.shape)),
        "tokens": grouping.tokens,
        "groups": grouping.groups,
        "merged": grouping.merged,
        "alone": int(grouping.alone.sum()),
        "destinations": len(grouping.destinations),
        "largest_group": int(grouping.sizes.max()),
        "similarity": round(float(joined.mean()), 4) if joined.size else None,
        "reused": grouping.reused,
    }
