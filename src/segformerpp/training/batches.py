"""Batches of training images that depend on the seed and the number of the batch alone.

Nothing of what ran before matters, so a run that was killed goes on with the very batches that it
would have seen, and two processes see together what one with twice the batch does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from segformerpp.arguments import Size, parse_size
from segformerpp.data.datasets import Sample, SegmentationDataset
from segformerpp.data.masks import IGNORED
from segformerpp.errors import UsageError
from segformerpp.models.config import Metadata
from segformerpp.tasks.segmentation import normalise
from segformerpp.training.augmentation import Augmentation, mix_classes
from segformerpp.training.settings import TrainSettings


class Batch(NamedTuple):
    """What goes into a step.

    Attributes:
        images: normalised (B, 3, H, W) float32.
        masks: training ids (B, H, W) uint8, 255 ignored.
        number: of the batch, counted from 0 over the whole run.
    """

    images: Tensor
    masks: Tensor
    number: int


class _Draw(NamedTuple):
    """Which image to take, and where in the run: the batch and the place in it."""

    batch: int
    place: int
    image: int


@dataclass(frozen=True)
class _Augmented(Dataset[tuple[np.ndarray, np.ndarray, int]]):
    dataset: SegmentationDataset
    augmentation: Augmentation
    class_mix: float
    metadata: Metadata
    seed: int

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, draw: _Draw) -> tuple[np.ndarray, np.ndarray, int]:
        rng = np.random.default_rng((self.seed, 1, draw.batch, draw.place))
        image, mask = self.augmentation(*self.dataset.read(draw.image), rng)
        if rng.random() < self.class_mix:
            other = self.dataset.read(int(rng.integers(len(self.dataset))))
            image, mask = mix_classes((image, mask), self.augmentation(*other, rng), rng)
        return normalise(image, self.metadata), mask, draw.batch


@dataclass(frozen=True)
class _Draws(Sampler[list[_Draw]]):
    """All images in random order, then all in another, and so on.

    Args:
        images: how many there are.
        batch: images of each process.
        batches: of the whole run.
        start: the number of the first batch.
        rank, world: this process and how many there are.
    """

    images: int
    batch: int
    batches: int
    start: int
    rank: int
    world: int
    seed: int

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[list[_Draw]]:
        lap, order = -1, np.empty(0, np.int64)
        together = self.batch * self.world
        for number in range(self.start, self.batches):
            draws = []
            for place in range(self.rank * self.batch, (self.rank + 1) * self.batch):
                this_lap, at = divmod(number * together + place, self.images)
                if this_lap != lap:
                    lap = this_lap
                    order = np.random.default_rng((self.seed, 0, lap)).permutation(self.images)
                draws.append(_Draw(number, place, int(order[at])))
            yield draws


def loader(
    dataset: SegmentationDataset,
    augmentation: Augmentation,
    metadata: Metadata,
    *,
    batch: int,
    batches: int,
    start: int = 0,
    seed: int,
    workers: int,
    rank: int = 0,
    world: int = 1,
    class_mix: float = 0.0,
) -> DataLoader[Any]:
    """The batches of a run, for one of its processes.

    Args:
        dataset: where images come from.
        augmentation: what happens to them.
        metadata: for the normalisation.
        batch: images of each process.
        batches: of the whole run.
        start: how many are behind us already.
        seed: of all random numbers.
        workers: processes that read and change images; 0 for none.
        rank: of this process.
        world: how many processes there are.
        class_mix: see `TrainSettings`.
    """
    return DataLoader(
        _Augmented(dataset, augmentation, class_mix, metadata, seed),
        batch_sampler=_Draws(len(dataset), batch, batches, start, rank, world, seed),
        num_workers=workers,
        collate_fn=partial(_collate, size=augmentation.crop),
        pin_memory=torch.cuda.is_available(),
    )


class Images(pl.LightningDataModule):
    """What Lightning asks for the images of a run.

    Args:
        settings: of the run.
        train_set: what to train on.
        val_set: what to validate on.
        metadata: for the normalisation.
    """

    def __init__(
        self,
        settings: TrainSettings,
        train_set: SegmentationDataset,
        val_set: SegmentationDataset | None,
        metadata: Metadata,
    ) -> None:
        super().__init__()
        self.settings, self.train_set, self.val_set = settings, train_set, val_set
        self.metadata = metadata

    def train_dataloader(self) -> DataLoader[Any]:
        """From the step on that the run has reached."""
        assert self.trainer is not None
        s = self.settings
        scale = s.min_scale, s.max_scale
        crop = parse_size("crop", s.crop)
        return loader(
            self.train_set,
            Augmentation(crop, scale, s.max_class_share, s.balanced_crops, s.colour),
            self.metadata,
            batch=s.batch,
            batches=s.steps * s.accumulate,
            start=self.trainer.global_step * s.accumulate,
            seed=s.seed,
            workers=s.workers,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            class_mix=s.class_mix,
        )

    def val_dataloader(self) -> DataLoader[Any] | list[Any]:
        """The images that fall to this process.

        Raises:
            UsageError: if there are fewer images than processes.
        """
        assert self.trainer is not None
        if self.val_set is None:
            return []
        world = self.trainer.world_size
        if len(self.val_set) < world:
            raise UsageError(f"val_split: {len(self.val_set)} images for {world} processes")
        own = _Whole(self.val_set, range(self.trainer.global_rank, len(self.val_set), world))
        return DataLoader(own, batch_size=None, collate_fn=_as_it_is)


@dataclass(frozen=True)
class _Whole(Dataset[Sample]):
    """Whole images, some of a dataset's."""

    dataset: SegmentationDataset
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset.read(self.indices[index])


def _as_it_is(sample: Any) -> Any:
    return sample


def _collate(samples: list[tuple[np.ndarray, np.ndarray, int]], size: Size) -> Batch:
    """Images smaller than the crop get mean colour around them, which is 0, and masks 255."""
    images = np.zeros((len(samples), 3, *size), np.float32)
    masks = np.full((len(samples), *size), IGNORED, np.uint8)
    for i, (image, mask, _) in enumerate(samples):
        images[i, :, : mask.shape[0], : mask.shape[1]] = image
        masks[i, : mask.shape[0], : mask.shape[1]] = mask
    tensor = torch.from_numpy(images).contiguous(memory_format=torch.channels_last)
    return Batch(tensor, torch.from_numpy(masks), samples[0][2])
