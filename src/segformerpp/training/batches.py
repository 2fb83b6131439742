"""Batches of training images that depend on the seed and the number of the batch alone.

Nothing of what ran before matters, so a run that was killed goes on with the very batches that it
would have seen, and two processes see together what one with twice the batch does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from segformerpp.data.datasets import SegmentationDataset
from segformerpp.data.poses import Person, PoseDataset
from segformerpp.errors import UsageError
from segformerpp.training.settings import TrainSettings


class Batch(NamedTuple):
    """What goes into a step.

    Attributes:
        images: normalised (B, 3, H, W) float32.
        targets: what the loss takes beside the network's outputs: masks (B, H, W) uint8 of
            training ids, 255 ignored; or heatmaps (B, K, h, w) and weights (B, K), both float32.
        number: of the batch, counted from 0 over the whole run.
    """

    images: Tensor
    targets: tuple[Tensor, ...]
    number: int


class Samples(Protocol):
    """What a network is trained on, before it goes into batches."""

    def __len__(self) -> int: ...

    def draw(self, index: int, rng: np.random.Generator) -> Sequence[np.ndarray]:
        """A normalised image (3, H, W) and what belongs to it, changed at random."""

    def collate(self, samples: Sequence[Sequence[np.ndarray]]) -> tuple[Tensor, ...]:
        """Images (B, 3, H, W) and their targets."""


class _Draw(NamedTuple):
    """Which image to take, and where in the run: the batch and the place in it."""

    batch: int
    place: int
    image: int


@dataclass(frozen=True)
class _Drawn(Dataset[tuple[Sequence[np.ndarray], int]]):
    samples: Samples
    seed: int

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, draw: _Draw) -> tuple[Sequence[np.ndarray], int]:
        rng = np.random.default_rng((self.seed, 1, draw.batch, draw.place))
        return self.samples.draw(draw.image, rng), draw.batch


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
    samples: Samples,
    *,
    batch: int,
    batches: int,
    start: int = 0,
    seed: int,
    workers: int,
    rank: int = 0,
    world: int = 1,
) -> DataLoader[Any]:
    """The batches of a run, for one of its processes.

    Args:
        samples: what to train on.
        batch: images of each process.
        batches: of the whole run.
        start: how many are behind us already.
        seed: of all random numbers.
        workers: processes that read and change images; 0 for none.
        rank: of this process.
        world: how many processes there are.
    """
    return DataLoader(
        _Drawn(samples, seed),
        batch_sampler=_Draws(len(samples), batch, batches, start, rank, world, seed),
        num_workers=workers,
        collate_fn=partial(_collate, samples=samples),
        pin_memory=torch.cuda.is_available(),
    )


class Images(pl.LightningDataModule):
    """What Lightning asks for the images of a run.

    Args:
        settings: of the run.
        samples: what to train on.
        val_set: what to validate on.
    """

    def __init__(
        self,
        settings: TrainSettings,
        samples: Samples,
        val_set: SegmentationDataset | PoseDataset | None,
    ) -> None:
        super().__init__()
        self.settings, self.samples, self.val_set = settings, samples, val_set

    def train_dataloader(self) -> DataLoader[Any]:
        """From the step on that the run has reached."""
        assert self.trainer is not None
        s = self.settings
        return loader(
            self.samples,
            batch=s.batch,
            batches=s.steps * s.accumulate,
            start=self.trainer.global_step * s.accumulate,
            seed=s.seed,
            workers=s.workers,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
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
class _Whole(Dataset[Any]):
    """Whole images, some of a dataset's, with masks, or with a person's box and keypoints."""

    dataset: SegmentationDataset | PoseDataset
    indices: Sequence[int]

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        image, what = self.dataset.read(self.indices[index])
        return (image, what.box, what.keypoints) if isinstance(what, Person) else (image, what)


def _as_it_is(sample: Any) -> Any:
    return sample


def _collate(drawn: list[tuple[Sequence[np.ndarray], int]], samples: Samples) -> Batch:
    images, *targets = samples.collate([sample for sample, _ in drawn])
    return Batch(images, tuple(targets), drawn[0][1])
