"""A training run from its settings to its weights."""

from __future__ import annotations

import logging
import math
import os
import time
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

from segformerpp.arguments import parse_size
from segformerpp.checkpoints import save_pretrained
from segformerpp.data.datasets import SegmentationDataset
from segformerpp.data.poses import PoseDataset
from segformerpp.errors import ImageError, UsageError
from segformerpp.models import Segformer
from segformerpp.runtimes.pytorch import accelerators
from segformerpp.tasks.pose import codec_of
from segformerpp.training.augmentation import Augmentation
from segformerpp.training.batches import Images, Samples
from segformerpp.training.keeping import RESUME, Keeper, WholeFiles
from segformerpp.training.losses import class_weights
from segformerpp.training.module import PoseModule, SegmentationModule, TrainingModule
from segformerpp.training.network import build, meaning
from segformerpp.training.people import PoseAugmentation
from segformerpp.training.samples import PoseSamples, SegmentationSamples
from segformerpp.training.settings import TrainSettings

logger = logging.getLogger(__name__)

#: Settings that a run may go on with other values of.
_FREE = frozenset(
    (
        *("root", "out", "steps", "epochs", "device", "workers", "bad_images"),
        *("save_every", "log_every", "patience", "pictures"),
    )
)
_PRECISIONS = {"f32": "32-true", "bf16": "bf16-mixed", "f16": "16-mixed"}
_MOST_COUNTED = 500


def train(
    settings: TrainSettings,
    train_set: SegmentationDataset | PoseDataset,
    val_set: SegmentationDataset | PoseDataset | None,
    *,
    resume: bool = False,
    report: Callable[[str], None] = logger.info,
    advance: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train a SegFormer.

    Into the folder `settings.out` go ``best`` and ``last``, which `load` reads, ``logs`` for
    TensorBoard and as CSV, and ``resume.ckpt``.

    Args:
        settings: how.
        train_set: what to train on.
        val_set: what to choose the best weights on; None to keep the last.
        resume: whether to go on from ``resume.ckpt`` where there is one. The outcome is that of an
            unbroken run.
        report: told in a line what each validation found.
        advance: called after each step, of an earlier run too.

    Returns:
        ``model``, the folder with the best weights; ``miou`` or, for poses, ``pck_0.1``, theirs in
        percent, None if nothing was validated; ``steps``; ``seconds`` of this call; ``images``, of
        which people are counted for poses; ``merge``.

    Raises:
        UsageError: if settings do not go together, or are not those of the run to go on with.
        ImageError: if an image cannot be read.
        KeyboardInterrupt: if interrupted.
    """
    refuse_taken(settings, resume)
    out = Path(settings.out)
    checkpoint = out / RESUME
    settings = with_steps(settings, len(train_set))
    model = build(settings, meaning(settings, train_set))
    module, samples = _task(settings, model, train_set)
    data = {"images": len(train_set), "labels": list(model.metadata.labels)}
    identity = {**asdict(settings), **data}
    keeper = Keeper(out, settings, identity, report, advance, validates=bool(val_set))
    trainer = _trainer(settings, keeper)
    images = Images(settings, samples, val_set)
    started = time.perf_counter()
    goes_on = resume and checkpoint.exists()
    if goes_on:
        _check_same(checkpoint, identity)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            path = checkpoint if goes_on else None
            trainer.fit(module, datamodule=images, ckpt_path=path, weights_only=True)
        except SystemExit:  # what Lightning makes of Ctrl-C
            raise KeyboardInterrupt from None
        except ImageError as error:  # of a worker with its traceback
            raise ImageError(str(error).splitlines()[-1].rpartition("ImageError: ")[2]) from None
        if val_set and keeper.validated != trainer.global_step:
            trainer.validate(module, datamodule=images, verbose=False)
    if trainer.is_global_zero:
        save_pretrained(module.averaged, out / "last")
    validated = module.best >= 0  # not without validation, nor where no pixel counts in it
    return {
        "model": str(out / ("best" if validated else "last")),
        "merge": module.model.merge_plan.name,
        "steps": trainer.global_step,
        "images": len(train_set),
        module.metric: round(module.best, 2) if validated else None,
        "seconds": round(time.perf_counter() - started, 1),
    }


def refuse_taken(settings: TrainSettings, resume: bool) -> None:
    """Refuse to write over another run.

    Raises:
        UsageError: if there is one in `settings.out` that is not to go on.
    """
    out = Path(settings.out)
    if not resume and (out / RESUME).exists():
        raise UsageError(f"out: {out} holds a run already; go on with it (resume), or take another")


def with_steps(settings: TrainSettings, images: int) -> TrainSettings:
    """The settings with the steps that `epochs` of so many images are, if these decide.

    Raises:
        UsageError: if these are too few for the warm-up.
    """
    if not settings.epochs:
        return settings
    together = settings.batch * settings.accumulate * _world(settings)
    return replace(settings, epochs=0, steps=math.ceil(settings.epochs * images / together))


def _task(
    settings: TrainSettings, model: Segformer, train_set: SegmentationDataset | PoseDataset
) -> tuple[TrainingModule, Samples]:
    """What is particular to segmentation, or to poses.

    Raises:
        UsageError: if the crop is too small for the network, or the plan is none for poses.
    """
    s, data = settings, model.metadata
    crop, least = parse_size("crop", s.crop), model.min_image_size
    if min(crop) < least:
        raise UsageError(f"crop: at least {least} pixels on each side here, not {s.crop}")
    scale = s.min_scale, s.max_scale
    if isinstance(train_set, PoseDataset):
        if model.merge_plan.input_scale != 1:
            raise UsageError("merge: plans that shrink the image are for models that segment")
        codec = codec_of(data)
        people = PoseAugmentation(
            codec, train_set.skeleton, scale, s.rotation, s.half_body, s.colour
        )
        return PoseModule(model, s), PoseSamples(train_set, people, codec, data)
    augmentation = Augmentation(crop, scale, s.max_class_share, s.balanced_crops, s.colour)
    samples = SegmentationSamples(train_set, augmentation, data, s.class_mix)
    return SegmentationModule(model, s, _weights(s, train_set)), samples


def _world(settings: TrainSettings) -> int:
    """How many processes there are, or will be."""
    local = os.environ.get("LOCAL_WORLD_SIZE", settings.devices)
    return int(os.environ.get("WORLD_SIZE", local))


def _trainer(settings: TrainSettings, keeper: Keeper) -> pl.Trainer:
    # Of what PyTorch knows, Lightning's auto takes these two.
    cards = {"cuda", "mps"} & set(accelerators())
    on_processor = settings.device == "cpu" or (settings.device == "auto" and not cards)
    if settings.precision == "f16" and on_processor:
        raise UsageError("precision: PyTorch has no fast f16 on the CPU; use bf16 or f32")
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
    local = int(os.environ.get("LOCAL_WORLD_SIZE", settings.devices))
    world = _world(settings)
    every = settings.val_every * settings.accumulate
    logs = Path(settings.out) / "logs"
    loggers: list[Logger] = [
        CSVLogger(logs, name="csv"),
        TensorBoardLogger(logs, name="tensorboard", version=""),
    ]
    try:
        return pl.Trainer(
            accelerator="gpu" if settings.device == "cuda" else settings.device,
            devices=local,
            num_nodes=max(world // local, 1),
            strategy="ddp" if world > 1 else "auto",
            sync_batchnorm=world > 1 and torch.cuda.is_available() and settings.device != "cpu",
            precision=_PRECISIONS[settings.precision],  # type: ignore[arg-type]
            max_steps=settings.steps,
            max_epochs=-1,
            accumulate_grad_batches=settings.accumulate,
            gradient_clip_val=settings.clip or None,
            val_check_interval=every if keeper.validates else None,
            check_val_every_n_epoch=None,
            num_sanity_val_steps=0,
            logger=loggers,
            log_every_n_steps=settings.log_every,
            callbacks=[keeper],
            plugins=[WholeFiles()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            use_distributed_sampler=False,
        )
    except (MisconfigurationException, ValueError) as error:
        raise UsageError(f"device: {settings.device}, devices: {local}: {error}") from None


def _weights(settings: TrainSettings, dataset: SegmentationDataset) -> torch.Tensor | None:
    if settings.class_weights == "none":
        return None
    counts = np.zeros(256, np.int64)
    for i in range(0, len(dataset), math.ceil(len(dataset) / _MOST_COUNTED)):
        counts += np.bincount(dataset.read(i)[1].ravel(), minlength=256)
    return class_weights(counts[: len(dataset.classes.labels)])


def _check_same(checkpoint: Path, now: Mapping[str, Any]) -> None:
    """Refuse to go on with another run's settings, or other data.

    Raises:
        UsageError: which names what differs.
    """
    saved = torch.load(checkpoint, map_location="cpu", weights_only=True, mmap=True)["settings"]
    other = [f"{key} was {saved[key]!r}" for key in now if now[key] != saved.get(key, now[key])]
    other = [text for text in other if text.split()[0] not in _FREE]
    if other:
        raise UsageError(f"resume: not the run in {checkpoint.parent}: {', '.join(other)}")
