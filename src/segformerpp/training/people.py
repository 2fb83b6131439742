"""Random changes of people and their keypoints, the usual ones for top-down pose estimation."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from segformerpp.data.poses import Person
from segformerpp.data.skeletons import Skeleton
from segformerpp.tasks.pose import PoseCodec
from segformerpp.training.augmentation import recolour

#: How often people are turned at all.
_TURNED = 0.6
#: By how much of its sides a box is shifted at most.
_SHIFT = 0.1
#: Half bodies need so many labelled keypoints in all, and this much room around their own.
_LEAST_KEYPOINTS, _ROOM = 8, 1.5
_LOWER = ("hip", "knee", "ankle", "heel", "toe")


@dataclass(frozen=True, slots=True)
class PoseAugmentation:
    """Half body, shift, zoom, rotation, mirror, colour.

    Args:
        codec: cuts people out.
        skeleton: of the keypoints.
        zoom: the least and the largest factor that people are made larger by.
        rotation: see `TrainSettings`; so are the others.
    """

    codec: PoseCodec
    skeleton: Skeleton
    zoom: tuple[float, float] = (0.75, 1.33)
    rotation: float = 40.0
    half_body: float = 0.3
    colour: float = 0.5

    def __call__(
        self, image: np.ndarray, person: Person, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """Cut a person out of an image (H, W, 3) uint8, changed.

        Returns:
            The input (h, w, 3) uint8, and the keypoints (K, 3) in it.
        """
        box = person.box
        if rng.random() < self.half_body:
            box = self._half(person, rng)
        box = np.concatenate((box[:2] + box[2:] * rng.uniform(-_SHIFT, _SHIFT, 2), box[2:]))
        zoom = float(np.exp(rng.uniform(*np.log(self.zoom))))
        turned = rng.random() < _TURNED
        rotation = float(rng.uniform(-self.rotation, self.rotation)) if turned else 0.0
        transform = self.codec.transform(box, rotation, zoom)
        keypoints = person.keypoints.astype(np.float64)
        keypoints[:, :2] = keypoints[:, :2] @ transform[:, :2].T + transform[:, 2]
        crop = self.codec.crop(image, transform)
        if rng.random() < 0.5:
            crop = crop[:, ::-1]
            keypoints[:, 0] = crop.shape[1] - 1 - keypoints[:, 0]
            keypoints = keypoints[list(self.skeleton.mirror)]
        return recolour(crop, self.colour, rng), keypoints

    def _half(self, person: Person, rng: np.random.Generator) -> np.ndarray:
        """The box of the upper or the lower half; the whole one where too little is labelled."""
        labelled = person.keypoints[:, 2] > 0
        lower = np.array([any(part in name for part in _LOWER) for name in self.skeleton.names])
        half = labelled & (lower if rng.random() < 0.5 else ~lower)
        if labelled.sum() < _LEAST_KEYPOINTS or half.sum() < 3:
            return person.box
        points = person.keypoints[half, :2].astype(np.float64)
        size = np.maximum(np.ptp(points, axis=0), 1) * _ROOM
        middle = (points.min(axis=0) + points.max(axis=0)) / 2
        return np.concatenate((middle - size / 2, size))
