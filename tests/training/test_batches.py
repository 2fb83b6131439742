import pickle
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from segformerpp.data.datasets import SegmentationDataset, open_dataset
from segformerpp.models import Metadata
from segformerpp.training.augmentation import Augmentation
from segformerpp.training.batches import Batch, loader
from segformerpp.training.samples import SegmentationSamples


def make_camvid(root: Path, splits: dict[str, int], size: tuple[int, int] = (48, 64)) -> Path:
    """A dataset of noise that can be learnt: a bright and a dark part, in CamVid's layout."""
    rng = np.random.default_rng(0)
    for split, count in splits.items():
        for folder in (root / split, root / f"{split}annot"):
            folder.mkdir(parents=True)
        for i in range(count):
            mask = np.zeros(size, np.uint8)
            mask[:, int(rng.integers(10, 50)) :] = 1
            mask[:2] = 11
            image = rng.integers(0, 100, (*size, 3)) + 150 * (mask == 1)[..., None]
            Image.fromarray(image.astype(np.uint8)).save(root / split / f"{i}.png")
            Image.fromarray(mask).save(root / f"{split}annot" / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> SegmentationDataset:
    root = make_camvid(tmp_path_factory.mktemp("camvid"), {"train": 5})
    return open_dataset("camvid", root, "train")


def samples(dataset: SegmentationDataset, crop: tuple[int, int]) -> SegmentationSamples:
    return SegmentationSamples(dataset, Augmentation(crop), Metadata())


def batches(dataset: SegmentationDataset, **kwargs: int) -> Iterator[Batch]:
    values = {"batch": 2, "batches": 7, "seed": 3, "workers": 0, **kwargs}
    return iter(loader(samples(dataset, (80, 32)), **values))


def test_what_is_in_a_batch(dataset: SegmentationDataset) -> None:
    found = list(batches(dataset))
    assert [batch.number for batch in found] == list(range(7))
    for batch in found:
        assert batch.images.shape == (2, 3, 80, 32)
        assert batch.targets[0].shape == (2, 80, 32)
        assert batch.targets[0].dtype == torch.uint8
        assert set(batch.targets[0].unique().tolist()) <= {0, 1, 255}
        outside = (batch.images == 0).all(dim=1)
        assert outside.any()
        assert (batch.targets[0][outside] == 255).all()


@pytest.mark.parametrize("workers", [0, 1])
def test_goes_on_as_if_unbroken(dataset: SegmentationDataset, workers: int) -> None:
    unbroken = list(batches(dataset))[4:]
    for a, b in zip(unbroken, batches(dataset, start=4, workers=workers), strict=True):
        assert a.number == b.number
        assert torch.equal(a.images, b.images)
        assert torch.equal(a.targets[0], b.targets[0])


def test_two_processes_see_what_one_does(dataset: SegmentationDataset) -> None:
    parts = [batches(dataset, batch=1, rank=rank, world=2) for rank in (0, 1)]
    for whole, *halves in zip(batches(dataset), *parts, strict=True):
        assert torch.equal(whole.images, torch.cat([half.images for half in halves]))
        assert torch.equal(whole.targets[0], torch.cat([half.targets[0] for half in halves]))


def test_every_image_is_seen_before_one_is_seen_again(dataset: SegmentationDataset) -> None:
    drawn = samples(dataset, (8, 8))
    sampler = loader(drawn, batch=2, batches=10, seed=0, workers=0).batch_sampler
    images = [draw.image for draws in sampler for draw in draws]  # type: ignore[union-attr]
    laps = [tuple(images[i : i + 5]) for i in range(0, 20, 5)]
    assert all(sorted(lap) == [0, 1, 2, 3, 4] for lap in laps)
    assert len(set(laps)) > 1


def test_loaders_can_be_sent_to_processes(dataset: SegmentationDataset) -> None:
    """As is done where processes are not forked."""
    made = loader(samples(dataset, (8, 8)), batch=1, batches=1, seed=0, workers=0)
    sent = pickle.loads(pickle.dumps((made.dataset, made.collate_fn)))
    assert len(sent[0]) == 5
