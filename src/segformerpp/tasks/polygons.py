"""The regions of a label map as polygons, in the form of COCO's annotations.

Outlines run along the edges of pixels, so that filling them gives the same pixels; OpenCV's own
contours run through the centres of the outermost pixels, which loses half a pixel all around.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from segformerpp.errors import UsageError

#: Regions of one class, and holes in them, that have fewer pixels than this are left out.
SMALLEST_REGION = 64
#: How far outlines may depart from the edges of the pixels, in pixels.
TOLERANCE = 1.0


@dataclass(frozen=True, slots=True)
class Region:
    """Pixels of one class that hang together, also at corners.

    Args:
        outline: (P, 2) float64: x, y in pixels, with (0, 0) the image's upper left corner. Holes
            are joined to it by lines of no width, there and back.
        area: its pixels, without those of the holes.
        box: x, y, width, height.
    """

    outline: np.ndarray
    area: int
    box: tuple[int, int, int, int]


def to_coco(
    label_map: np.ndarray,
    classes: Mapping[int, str],
    file_name: str,
    *,
    smallest: int = SMALLEST_REGION,
    tolerance: float = TOLERANCE,
    image_id: int = 1,
) -> dict[str, Any]:
    """A data set of one image in COCO's format (https://cocodataset.org/#format-data).

    An annotation is a region: pixels of one class that hang together, also at corners. Its
    ``segmentation`` is one polygon; a hole in it, which COCO's polygons do not know, is joined to
    the outline by a line of no width, so that tools that fill polygons leave it open. ``area`` and
    ``bbox`` are those of the pixels; ``iscrowd`` is 0. Annotations count from 1, the largest of
    each class first.

    Args:
        label_map: (H, W) class ids.
        classes: names by the ids that matter; these are the ids of the categories.
        file_name: the image's.
        smallest: regions and holes of fewer pixels are left out: the holes are filled.
        tolerance: how far outlines may depart from the edges of the pixels, in pixels.
        image_id: the image's number.

    Returns:
        ``info``, ``images``, ``categories`` and ``annotations``, of plain values.

    Raises:
        UsageError: if `smallest` or `tolerance` is below 0.
    """
    if smallest < 0:
        raise UsageError(f"smallest: pixels, from 0 up, not {smallest}")
    if not tolerance >= 0:
        raise UsageError(f"tolerance: pixels, from 0 up, not {tolerance}")
    height, width = label_map.shape
    annotations = [
        {
            "image_id": image_id,
            "category_id": class_id,
            "segmentation": [region.outline.round(2).ravel().tolist()],
            "area": region.area,
            "bbox": list(region.box),
            "iscrowd": 0,
        }
        for class_id in classes
        for region in regions(label_map == class_id, smallest, tolerance)
    ]
    return {
        "info": {"description": "regions that segformerpp predicted"},
        "images": [{"id": image_id, "file_name": file_name, "width": width, "height": height}],
        "categories": [{"id": i, "name": name, "supercategory": ""} for i, name in classes.items()],
        "annotations": [{"id": i, **annotation} for i, annotation in enumerate(annotations, 1)],
    }


def regions(mask: np.ndarray, smallest: int, tolerance: float) -> list[Region]:
    """The regions of a mask (H, W) bool, the largest first; see `to_coco`."""
    if not mask.any():
        return []
    count, numbers, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8))
    order = 1 + np.argsort(-stats[1:count, cv2.CC_STAT_AREA], kind="stable")
    found = []
    for number in order.tolist():
        x, y, w, h, area = stats[number].tolist()
        if area < smallest:
            break
        part = numbers[y : y + h, x : x + w] == number
        outer, *holes = _rings(part)
        areas = [round(_area(hole)) for hole in holes]
        area += sum(size for size in areas if size < smallest)
        holes = [hole for hole, size in zip(holes, areas, strict=True) if size >= smallest]
        rings = [_simplified(ring, tolerance) for ring in (outer, *holes)]
        found.append(Region(_joined(rings) + np.array((x, y)), area, (x, y, w, h)))
    return found


def _rings(part: np.ndarray) -> Iterator[np.ndarray]:
    """The outline of a region (h, w) bool, then those of its holes: (P, 2) int, x and y of edges.

    OpenCV's contours at twice the size pass through the half of a pixel that is nearest to the
    edge, and so tell which edge: in the odd half the one after the pixel, else the one before.
    Where they cut a corner, both ends name the corner itself.
    """
    doubled = part.repeat(2, axis=0).repeat(2, axis=1).view(np.uint8)
    contours, hierarchy = cv2.findContours(doubled, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    for i in sorted(range(len(contours)), key=lambda i: hierarchy[0, i, 3] >= 0):
        ring = (contours[i][:, 0].astype(np.int64) + 1) // 2
        ring = ring[(ring != np.roll(ring, 1, axis=0)).any(axis=1)]
        ahead, behind = np.roll(ring, -1, axis=0) - ring, ring - np.roll(ring, 1, axis=0)
        yield ring[_cross(ahead, behind) != 0]


def _simplified(ring: np.ndarray, tolerance: float) -> np.ndarray:
    """A ring with fewer points; itself where it is too thin to stay an area."""
    if tolerance:
        fewer = cv2.approxPolyDP(ring.astype(np.int32)[:, None], tolerance, closed=True)[:, 0]
        if len(fewer) > 2:
            return fewer.astype(np.float64)
    return ring.astype(np.float64)


def _joined(rings: list[np.ndarray]) -> np.ndarray:
    """One ring of an outline and its holes: (P, 2).

    From its leftmost point each hole is joined to what lies directly left of it. The leftmost holes
    go first, so that this is the outline or a hole that is part of it already.
    """
    outline, *holes = rings
    for hole in sorted(holes, key=lambda ring: ring[:, 0].min()):
        start = int(hole[:, 0].argmin())
        x, y = hole[start]
        after = np.roll(outline, -1, axis=0)
        rise = after[:, 1] - outline[:, 1]
        with np.errstate(divide="ignore", invalid="ignore"):
            share = (y - outline[:, 1]) / rise
            crossing = outline[:, 0] + share * (after[:, 0] - outline[:, 0])
        left = np.where((share >= 0) & (share <= 1) & (crossing <= x), crossing, -np.inf)
        edge = int(left.argmax())
        # Simplified outlines may have passed a hole by: then any point of theirs will do.
        bridge = np.array((left[edge], y)) if np.isfinite(left[edge]) else outline[edge]
        loop = np.roll(hole, -start, axis=0)
        outline = np.concatenate(
            (outline[: edge + 1], bridge[None], loop, loop[:1], bridge[None], outline[edge + 1 :])
        )
    return outline


def _area(ring: np.ndarray) -> float:
    """How many pixels a ring encloses (the shoelace formula)."""
    return abs(float(_cross(ring, np.roll(ring, -1, axis=0)).sum())) / 2


def _cross(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """(P, 2) x (P, 2) -> (P,)."""
    return a[:, 0] * b[:, 1] - a[:, 1] * b[:, 0]
