"""The network that a run trains, its optimiser, and the learning rates."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

import torch

from segformerpp.arguments import parse_size
from segformerpp.checkpoints import load
from segformerpp.data.datasets import SegmentationDataset
from segformerpp.data.poses import PoseDataset
from segformerpp.models import SIZES, Metadata, Segformer, SegformerConfig
from segformerpp.models.heads import DecodeHead
from segformerpp.training.settings import TrainSettings

logger = logging.getLogger(__name__)


def meaning(settings: TrainSettings, dataset: SegmentationDataset | PoseDataset) -> Metadata:
    """What a network's outputs mean that is trained on a dataset."""
    source = f"trained by segformerpp on {dataset.name}, from {settings.model}"
    size = parse_size("crop", settings.crop)
    if isinstance(dataset, PoseDataset):
        skeleton = dataset.skeleton
        return Metadata(
            task="pose",
            labels=skeleton.names,
            palette=skeleton.palette,
            image_size=size,
            source=source,
            skeleton=skeleton.links,
            sigma=settings.sigma,
            coding=settings.coding,
        )
    return Metadata(
        labels=dataset.classes.labels,
        palette=dataset.classes.palette,
        image_size=size,
        reduce_labels=dataset.reduce_labels,
        source=source,
    )


def build(settings: TrainSettings, metadata: Metadata) -> Segformer:
    """The network to train.

    Args:
        settings: of the run.
        metadata: what its outputs are to mean; see `meaning`.

    Raises:
        CheckpointError: if it is to start from one that cannot be loaded.
        PlanError: if the merge plan is not understood.
    """
    rates: dict[str, Any] = {"drop_path": settings.drop_path, "dropout": settings.dropout}
    torch.manual_seed(settings.seed)
    outputs = len(metadata.labels)
    if settings.model in SIZES:
        config = SegformerConfig.of_size(
            settings.model, num_outputs=outputs, head_kind=settings.head_kind, **rates
        )
        model = Segformer(config, metadata)
    else:
        start = load(settings.model)
        old, config = start.metadata, replace(start.config, num_outputs=outputs, **rates)
        fresh: tuple[str, ...] = ()
        if not old.head_trained and not _has_learnt(start.head):
            config, fresh = replace(config, head_kind=settings.head_kind), ("head.",)
        elif (
            old.task != metadata.task
            or old.labels not in ((), metadata.labels)
            or start.config.num_outputs != outputs
        ):
            fresh = ("head.classifier.",)
            logger.warning("%s: has other classes: the classifier starts afresh", settings.model)
        metadata = replace(metadata, mean=old.mean, std=old.std, license=old.license)
        model = Segformer(config, metadata, start.merge_plan)
        kept = {k: v for k, v in start.state_dict().items() if not k.startswith(fresh)}
        model.load_state_dict(kept, strict=not fresh)
    if settings.merge:
        model.merge_plan = settings.merge
    model.encoder.gradient_checkpointing = settings.checkpointing
    return model


def _has_learnt(head: DecodeHead) -> bool:
    """Whether a batch has ever gone through it in training: one that `load` made has seen none."""
    mean = head.fuse_norm.running_mean
    return mean is not None and bool(mean.any())


def adamw(model: Segformer, settings: TrainSettings) -> torch.optim.AdamW:
    """AdamW; the head learns at its own rate, and biases and norms do not decay."""
    groups = []
    for part, factor in ((model.encoder, 1.0), (model.head, settings.head_lr_factor)):
        parameters = list(part.parameters())
        rate, decay = settings.lr * factor, settings.weight_decay
        matrices = [p for p in parameters if p.ndim > 1]
        vectors = [p for p in parameters if p.ndim <= 1]
        groups += [
            {"params": matrices, "lr": rate, "weight_decay": decay},
            {"params": vectors, "lr": rate, "weight_decay": 0.0},
        ]
    return torch.optim.AdamW(groups)


def rate_at(step: int, settings: TrainSettings) -> float:
    """The learning rate in a step, as a share of the highest."""
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    held = settings.warmup + settings.hold * (settings.steps - settings.warmup)
    if settings.drops:
        return float(0.1 ** sum(step >= share * settings.steps for share in settings.falls))
    if step <= held:
        return 1.0
    return float((1 - (step - held) / (settings.steps - held)) ** settings.power)
