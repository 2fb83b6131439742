"""The network that a run trains, its optimiser, and the learning rates."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import torch

from segformerpp.arguments import parse_size
from segformerpp.checkpoints import load
from segformerpp.data.labels import LabelSet
from segformerpp.models import SIZES, Metadata, Segformer, SegformerConfig
from segformerpp.training.settings import TrainSettings


def build(
    settings: TrainSettings, classes: LabelSet, data: str, reduce_labels: bool = False
) -> Segformer:
    """The network to train.

    Args:
        settings: of the run.
        classes: that it is to tell apart.
        data: what it is trained on, for its metadata.
        reduce_labels: see `Metadata`.

    Raises:
        CheckpointError: if it is to start from one that cannot be loaded.
        PlanError: if the merge plan is not understood.
    """
    rates: dict[str, Any] = {"drop_path": settings.drop_path, "dropout": settings.dropout}
    torch.manual_seed(settings.seed)
    outputs = len(classes.labels)
    if settings.model in SIZES:
        config = SegformerConfig.of_size(
            settings.model, num_outputs=outputs, head_kind=settings.head_kind, **rates
        )
        model = Segformer(config, Metadata())
    else:
        start = load(settings.model, num_classes=outputs)
        model = Segformer(replace(start.config, **rates), start.metadata, start.merge_plan)
        fresh = copy.deepcopy(model.head.classifier.state_dict())
        model.load_state_dict(start.state_dict())
        if start.metadata.labels not in ((), classes.labels):
            model.head.classifier.load_state_dict(fresh)
    model.metadata = replace(
        model.metadata,
        labels=classes.labels,
        palette=classes.palette,
        image_size=parse_size("crop", settings.crop),
        reduce_labels=reduce_labels,
        head_trained=True,
        source=f"trained by segformerpp on {data}, from {settings.model}",
    )
    if settings.merge:
        model.merge_plan = settings.merge
    model.encoder.gradient_checkpointing = settings.checkpointing
    return model


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
    if step < held:
        return 1.0
    return float((1 - (step - held) / (settings.steps - held)) ** settings.power)
