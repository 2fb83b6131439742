"""The result of finding people's keypoints: it can plot and save itself."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from segformerpp.data.files import write_whole
from segformerpp.data.images import write_image
from segformerpp.data.labels import Palette
from segformerpp.data.skeletons import Links
from segformerpp.tasks.segmentation_result import output_paths

#: What `PoseResult.save` can write, and how the names of the files end.
POSE_OUTPUTS = {"keypoints": "_keypoints.json", "overlay": "_overlay.png"}
#: Keypoints of less confidence are not drawn.
LEAST_CONFIDENCE = 0.2


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class PoseResult:
    """Where the keypoints of the people in an image are.

    Args:
        keypoints: (P, K, 3) float32: x, y in image pixels, with pixel centres at whole numbers,
            and the confidence, about 0 to 1.
        boxes: (P, 4): x, y, width, height of each person.
        labels: the K names.
        skeleton: pairs of keypoints with a line between them.
        palette: the RGB colour of each keypoint.
        image: (H, W, 3) uint8 RGB, as read.
        path: the file that the image came from, if it did.
        network_seconds: how long the network took for this image; where several went through it
            at the same time, its share of the threads.
    """

    keypoints: np.ndarray
    boxes: np.ndarray
    labels: tuple[str, ...]
    skeleton: Links
    palette: Palette
    image: np.ndarray
    path: Path | None = None
    network_seconds: float = 0.0

    def __repr__(self) -> str:
        height, width = self.image.shape[:2]
        people = "1 person" if len(self.keypoints) == 1 else f"{len(self.keypoints)} people"
        return f"PoseResult({self.path or 'image'}, {height}x{width}: {people})"

    @property
    def scores(self) -> np.ndarray:
        """The mean confidence of each person's keypoints: (P,)."""
        return self.keypoints[..., 2].mean(axis=1)

    def row(self) -> dict[str, Any]:
        """What a JSON row says of it: ``network_ms``, ``people``, their ``scores``."""
        return {
            "network_ms": round(1000 * self.network_seconds, 3),
            "people": len(self.keypoints),
            "scores": [round(float(score), 4) for score in self.scores],
        }

    def plot(self, least: float = LEAST_CONFIDENCE, boxes: bool = False) -> Image.Image:
        """The image with the skeletons laid over it, the fainter the less sure.

        Args:
            least: keypoints of less confidence are left out.
            boxes: whether to draw the people's boxes too.
        """
        return Image.fromarray(self._overlay(least, boxes))

    def to_coco(self, image_id: int = 0) -> list[dict[str, Any]]:
        """COCO's results, one for each person: ``keypoints`` is x, y, confidence, and so on.

        Args:
            image_id: the image's number in the annotations.
        """
        return [
            {
                "image_id": image_id,
                "category_id": 1,
                "keypoints": [round(float(value), 3) for value in keypoints.ravel()],
                "bbox": [round(float(value), 3) for value in box],
                "score": round(float(score), 4),
            }
            for keypoints, box, score in zip(self.keypoints, self.boxes, self.scores, strict=True)
        ]

    def save(
        self, folder: str | Path, stem: str, what: Iterable[str] = ("keypoints", "overlay")
    ) -> list[Path]:
        """Write files, each whole or not at all; missing folders are made.

        Args:
            folder: where to.
            stem: what the names start with; may contain subfolders.
            what: any of ``keypoints`` (``<stem>_keypoints.json``: `to_coco`) and ``overlay``
                (`plot`).

        Returns:
            The paths written.

        Raises:
            UsageError: if there is no such output.
            OSError: if a file cannot be written.
        """
        writers: dict[str, Callable[[Path], None]] = {
            "keypoints": self._write_keypoints,
            "overlay": lambda path: write_image(path, self._overlay(LEAST_CONFIDENCE, False)),
        }
        paths = output_paths(folder, stem, what, POSE_OUTPUTS)
        for key, path in paths.items():
            writers[key](path)
        return list(paths.values())

    def _write_keypoints(self, path: Path) -> None:
        with write_whole(path) as file:
            file.write(json.dumps(self.to_coco()).encode() + b"\n")

    def _overlay(self, least: float, boxes: bool) -> np.ndarray:
        overlay = self.image.copy()
        for keypoints, box in zip(self.keypoints, self.boxes, strict=True):
            # Lines as wide as suits the person, not the image.
            width = max(round(max(box[2:]) / 100), 1)
            if boxes:
                corners = np.rint([box[:2], box[:2] + box[2:]]).astype(int).tolist()
                cv2.rectangle(overlay, corners[0], corners[1], (255, 255, 255), width, cv2.LINE_AA)
            points = np.rint(keypoints[:, :2]).clip(-9999, 29999).astype(int).tolist()
            sure = keypoints[:, 2] >= least
            for a, b in self.skeleton:
                if sure[a] and sure[b]:
                    colour = _between(self.palette[a], self.palette[b])
                    opacity = min(0.4 + min(keypoints[a, 2], keypoints[b, 2]), 1)
                    _line(overlay, points[a], points[b], colour, width, float(opacity))
            for point, colour, shown in zip(points, self.palette, sure, strict=True):
                if shown:
                    cv2.circle(overlay, point, width + 2, (255, 255, 255), -1, cv2.LINE_AA)
                    cv2.circle(overlay, point, width + 1, colour, -1, cv2.LINE_AA)
        return overlay


def _between(a: tuple[int, int, int], b: tuple[int, int, int]) -> tuple[int, int, int]:
    """The colour half-way."""
    red, green, blue = ((x + y) // 2 for x, y in zip(a, b, strict=True))
    return red, green, blue


def _line(
    image: np.ndarray,
    start: list[int],
    end: list[int],
    colour: tuple[int, int, int],
    width: int,
    opacity: float,
) -> None:
    low = np.maximum(np.minimum(start, end) - 2 * width, 0)
    high = np.maximum(np.maximum(start, end) + 2 * width, 0)
    part = image[low[1] : high[1], low[0] : high[0]]
    if part.size:
        before = part.copy()
        cv2.line(image, start, end, colour, width, cv2.LINE_AA)
        part[:] = cv2.addWeighted(part, opacity, before, 1 - opacity, 0)
