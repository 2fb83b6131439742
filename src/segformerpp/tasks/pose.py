"""Top-down pose around the network: a person's box to its input, heatmaps to keypoints.

Coordinates are x, y with pixel centres at whole numbers. Two codings of them are in use. In `msra`
(Xiao et al., *Simple Baselines*, 2018) a heatmap pixel is four input pixels and target peaks sit on
whole pixels; `udp` (Huang et al., *The Devil is in the Details*, 2020) measures by the distances
between pixels, so that mirrored heatmaps need no shift, and peaks sit where the keypoints are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, cast, get_args

import cv2
import numpy as np
from numpy.typing import ArrayLike

from segformerpp.arguments import Size
from segformerpp.errors import UsageError

if TYPE_CHECKING:
    from segformerpp.models import Metadata

Coding = Literal["udp", "msra"]
Refinement = Literal["dark", "quarter", "none"]

#: A person's box is taken this much larger, as the field does.
PADDING = 1.25
#: Input pixels on a side of a heatmap pixel.
STRIDE = 4


@dataclass(frozen=True, slots=True)
class PoseCodec:
    """How keypoints become heatmaps and back.

    Args:
        size: (H, W) of the network's input.
        sigma: of the Gaussians, in heatmap pixels.
        coding: ``udp`` or ``msra``.

    Raises:
        UsageError: if the coding is unknown, or sigma is not positive.
    """

    size: Size
    sigma: float = 2.0
    coding: Coding = "udp"

    def __post_init__(self) -> None:
        if self.coding not in get_args(Coding):
            raise UsageError(f"coding: one of {', '.join(get_args(Coding))}, not {self.coding!r}")
        if not self.sigma > 0:
            raise UsageError(f"sigma: more than 0, not {self.sigma}")

    @property
    def heatmap_size(self) -> Size:
        """(h, w) of the heatmaps: what the network gives for this input."""
        return (self.size[0] - 1) // STRIDE + 1, (self.size[1] - 1) // STRIDE + 1

    @property
    def scale(self) -> np.ndarray:
        """Input pixels of a heatmap pixel, in x and y: (2,) float64."""
        if self.coding == "msra":
            return np.array([STRIDE, STRIDE], np.float64)
        (height, width), (rows, columns) = self.size, self.heatmap_size
        return np.array([(width - 1) / max(columns - 1, 1), (height - 1) / max(rows - 1, 1)])

    def transform(self, box: np.ndarray, rotation: float = 0.0, zoom: float = 1.0) -> np.ndarray:
        """The affine map from the image to the input that fills it with a padded box.

        Args:
            box: (4,): x, y of the upper left corner, width, height. It is widened to the input's
                proportions, and padded.
            rotation: turns the person by so many degrees around the box's centre.
            zoom: makes the person so much larger.

        Returns:
            (2, 3) float64.

        Raises:
            UsageError: if the box is not of finite numbers, with a width and height above 0.
        """
        box = checked_box(box)
        height, width = self.size
        wide = max(box[2], box[3] * width / height) * PADDING / zoom
        less = 1 if self.coding == "udp" else 0
        factor = (width - less) / wide
        angle = np.deg2rad(rotation)
        turn = factor * np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
        middle = np.array([width - less, height - less]) / 2
        return np.column_stack((turn, middle - turn @ (box[:2] + box[2:] / 2)))

    def crop(self, image: np.ndarray, transform: np.ndarray) -> np.ndarray:
        """Cut a person out, bilinear, black outside: (H, W, 3) uint8 -> (h, w, 3) uint8."""
        return cv2.warpAffine(image, transform, self.size[::-1], flags=cv2.INTER_LINEAR)

    def encode(self, keypoints: np.ndarray, visible: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Gaussian target heatmaps, with a peak of 1.

        Args:
            keypoints: (K, 2) in input pixels.
            visible: (K,) bool: which of them are labelled.

        Returns:
            Heatmaps (K, h, w) float32, and weights (K,) float32: 1 for keypoints that are labelled
            and lie in the heatmap, else 0.
        """
        rows, columns = self.heatmap_size
        at = keypoints / self.scale
        if self.coding == "msra":
            at = np.floor(at + 0.5)
        inside = (at >= -0.5).all(axis=1) & (at < np.array([columns, rows]) - 0.5).all(axis=1)
        weights = (np.asarray(visible, bool) & inside).astype(np.float32)
        across, down = (
            np.exp(-((np.arange(n) - at[:, axis, None]) ** 2) / (2 * self.sigma**2))
            for axis, n in enumerate((columns, rows))
        )
        heatmaps = down[:, :, None] * across[:, None, :] * weights[:, None, None]
        return heatmaps.astype(np.float32), weights

    def decode(self, heatmaps: np.ndarray, refinement: Refinement = "dark") -> np.ndarray:
        """Find the peaks.

        Args:
            heatmaps: (P, K, h, w) float32.
            refinement: below the pixel: ``dark``, from the slope and curvature of the logarithm
                of the smoothed heatmap (Zhang et al., *DARK*, 2020); ``quarter``, a quarter of a
                pixel towards the larger neighbour; or ``none``.

        Returns:
            (P, K, 3) float32: x, y in input pixels, and the confidence, which is the height of
            the peak.
        """
        people, joints, rows, columns = heatmaps.shape
        flat = heatmaps.reshape(people * joints, rows, columns)
        y, x = np.divmod(flat.reshape(len(flat), -1).argmax(axis=1), columns)
        at = np.stack((x, y), axis=1).astype(np.float64)
        if refinement == "quarter":
            at += 0.25 * _towards_larger(flat, x, y)
        elif refinement == "dark":
            at += _newton(flat, x, y, self.sigma)
        found = np.empty((people, joints, 3), np.float32)
        found[..., :2] = (at * self.scale).reshape(people, joints, 2)
        found[..., 2] = flat[np.arange(len(flat)), y, x].reshape(people, joints)
        return found

    def mirror(self, heatmaps: np.ndarray, swaps: tuple[int, ...]) -> np.ndarray:
        """Turn the heatmaps of a mirrored input into those of the input itself.

        Args:
            heatmaps: (P, K, h, w).
            swaps: what each keypoint is in a mirror; see `Skeleton.mirror`.
        """
        heatmaps = heatmaps[:, list(swaps), :, ::-1]
        if self.coding == "msra":  # whose heatmap pixels are not centred on their input pixels
            heatmaps = np.concatenate((heatmaps[..., :1], heatmaps[..., :-1]), axis=-1)
        return heatmaps


def codec_of(metadata: Metadata) -> PoseCodec:
    """The codec that a pose model was trained with.

    Raises:
        UsageError: if the model does not say for which input size it was made.
    """
    if metadata.image_size is None:
        raise UsageError("model: does not say which size of input it was trained with; give a size")
    return PoseCodec(metadata.image_size, metadata.sigma, cast("Coding", metadata.coding))


def checked_box(box: ArrayLike) -> np.ndarray:
    """Take a box (x, y, width, height) as (4,) float64.

    Raises:
        UsageError: if it is not of four finite numbers, with a width and height above 0.
    """
    try:
        values = np.asarray(box, np.float64)
    except (TypeError, ValueError):
        values = np.empty(0)
    if values.shape != (4,) or not np.isfinite(values).all() or min(values[2:]) <= 0:
        shown = values.tolist() if values.size else box
        raise UsageError(f"box: x, y, width, height with the last two above 0, not {shown}")
    return values


def to_image(keypoints: np.ndarray, transform: np.ndarray) -> np.ndarray:
    """Bring keypoints (K, 3) from input pixels back to the image's; confidences stay."""
    back = cv2.invertAffineTransform(transform)
    found = keypoints.copy()
    found[:, :2] = keypoints[:, :2] @ back[:, :2].T + back[:, 2]
    return found


def _towards_larger(maps: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The signs of the slopes in x and y: (N, 2); 0 at the edges."""
    every = np.arange(len(maps))
    signs = np.zeros((len(maps), 2))
    rows, columns = maps.shape[1:]
    inner = (x > 0) & (x < columns - 1) & (y > 0) & (y < rows - 1)
    n, u, v = every[inner], x[inner], y[inner]
    signs[inner, 0] = np.sign(maps[n, v, u + 1] - maps[n, v, u - 1])
    signs[inner, 1] = np.sign(maps[n, v + 1, u] - maps[n, v - 1, u])
    return signs


def _newton(maps: np.ndarray, x: np.ndarray, y: np.ndarray, sigma: float) -> np.ndarray:
    """The step from each peak pixel to the top of the parabola through it: (N, 2).

    Smoothing mends the several peaks of a real heatmap. Near an edge it would see what is not
    there and move the peak, so it is left out where the Gaussian reaches beyond.
    """
    rows, columns = maps.shape[1:]
    steps = np.zeros((len(maps), 2))
    side = 2 * round(3 * sigma) + 1
    for i, (heatmap, u, v) in enumerate(zip(maps, x, y, strict=True)):
        part, reach = heatmap, min(u, v, columns - 1 - u, rows - 1 - v)
        # At an edge, from the parabola one pixel inside.
        inner = np.array([np.clip(u, 1, columns - 2), np.clip(v, 1, rows - 2)])
        moved = inner - (u, v)
        u, v = inner
        if reach > side // 2:
            top, left = v - side // 2 - 1, u - side // 2 - 1
            part = heatmap[top : top + side + 2, left : left + side + 2]
            part = cv2.GaussianBlur(part, (side, side), sigma, borderType=cv2.BORDER_ISOLATED)
            u = v = side // 2 + 1
        near = np.log(np.maximum(part[v - 1 : v + 2, u - 1 : u + 2], 1e-10).astype(np.float64))
        slope = np.array([near[1, 2] - near[1, 0], near[2, 1] - near[0, 1]]) / 2
        mixed = (near[2, 2] - near[2, 0] - near[0, 2] + near[0, 0]) / 4
        curve = np.array(
            [
                [near[1, 2] - 2 * near[1, 1] + near[1, 0], mixed],
                [mixed, near[2, 1] - 2 * near[1, 1] + near[0, 1]],
            ]
        )
        # Only at a top: both curvatures negative. Further than a pixel away it is another peak.
        if curve[0, 0] < 0 and np.linalg.det(curve) > 0:
            steps[i] = np.clip(moved - np.linalg.solve(curve, slope), -1, 1)
    return steps
