"""What networks are trained on: images with masks, and people with heatmaps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from segformerpp.data.datasets import SegmentationDataset
from segformerpp.data.masks import IGNORED
from segformerpp.data.poses import PoseDataset
from segformerpp.models.config import Metadata
from segformerpp.tasks.pose import PoseCodec
from segformerpp.tasks.segmentation import normalise
from segformerpp.training.augmentation import Augmentation, mix_classes
from segformerpp.training.people import PoseAugmentation


@dataclass(frozen=True, slots=True)
class SegmentationSamples:
    """Images with masks.

    Args:
        dataset: where they come from.
        augmentation: what happens to them.
        metadata: for the normalisation.
        class_mix: see `TrainSettings`.
    """

    dataset: SegmentationDataset
    augmentation: Augmentation
    metadata: Metadata
    class_mix: float = 0.0

    def __len__(self) -> int:
        return len(self.dataset)

    def draw(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """A normalised image (3, H, W) float32 and its mask (H, W) uint8."""
        image, mask = self.augmentation(*self.dataset.read(index), rng)
        if rng.random() < self.class_mix:
            other = self.dataset.read(int(rng.integers(len(self.dataset))))
            image, mask = mix_classes((image, mask), self.augmentation(*other, rng), rng)
        return normalise(image, self.metadata), mask

    def collate(self, samples: Sequence[Sequence[np.ndarray]]) -> tuple[Tensor, Tensor]:
        """Images smaller than the crop get mean colour around them, which is 0, and masks 255."""
        size = self.augmentation.crop
        images = np.zeros((len(samples), 3, *size), np.float32)
        masks = np.full((len(samples), *size), IGNORED, np.uint8)
        for i, (image, mask) in enumerate(samples):
            images[i, :, : mask.shape[0], : mask.shape[1]] = image
            masks[i, : mask.shape[0], : mask.shape[1]] = mask
        return _channels_last(images), torch.from_numpy(masks)


@dataclass(frozen=True, slots=True)
class PoseSamples:
    """People, cut out, with heatmaps of their keypoints.

    Args:
        dataset: where they come from.
        augmentation: what happens to them.
        codec: makes the heatmaps.
        metadata: for the normalisation.
    """

    dataset: PoseDataset
    augmentation: PoseAugmentation
    codec: PoseCodec
    metadata: Metadata

    def __len__(self) -> int:
        return len(self.dataset)

    def draw(self, index: int, rng: np.random.Generator) -> tuple[np.ndarray, ...]:
        """A normalised image (3, H, W), heatmaps (K, h, w), weights (K,): all float32."""
        image, person = self.dataset.read(index)
        crop, keypoints = self.augmentation(image, person, rng)
        heatmaps, weights = self.codec.encode(keypoints[:, :2], keypoints[:, 2] > 0)
        return normalise(crop, self.metadata), heatmaps, weights

    def collate(self, samples: Sequence[Sequence[np.ndarray]]) -> tuple[Tensor, ...]:
        """Put them together."""
        images, *targets = (np.stack(parts) for parts in zip(*samples, strict=True))
        return _channels_last(images), *(torch.from_numpy(part) for part in targets)


def _channels_last(images: np.ndarray) -> Tensor:
    return torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
