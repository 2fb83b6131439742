"""From an architecture, its tensors and a plan to an ONNX model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper

from segformerpp.errors import UsageError
from segformerpp.merging import MergePlan
from segformerpp.models.config import Metadata, SegformerConfig
from segformerpp.runtimes.graph.builder import Dim, Graph, Value
from segformerpp.runtimes.graph.network import NetworkWriter, Tensors, resize

IMAGES, LOGITS, LABELS = "images", "logits", "labels"


@dataclass(frozen=True, slots=True)
class Interface:
    """What goes into the graph and what comes out of it.

    Args:
        size: (H, W) of the images; None where it follows the image.
        batch: how many go in together; None where it follows the input.
        pixels: whether (B, H, W, C) uint8 images go in, instead of normalised ones (B, C, H, W).
        labels: whether label maps (B, H, W) come out, uint8 or uint16 for more than 256 classes,
            instead of logits (B, K, h, w).
    """

    size: tuple[int, int] | None
    batch: int | None = 1
    pixels: bool = False
    labels: bool = False


def build(
    config: SegformerConfig,
    tensors: Tensors,
    plan: MergePlan,
    interface: Interface,
    metadata: Metadata | None = None,
    notes: Mapping[str, str] | None = None,
) -> onnx.ModelProto:
    """Write the network as an ONNX model.

    Args:
        config: the architecture.
        tensors: float32, by the names that they have in `segformerpp.models.Segformer`.
        plan: what is merged where; part of the graph.
        interface: what goes in and comes out.
        metadata: for the normalisation of pixels.
        notes: what else is to stand in the file's metadata.

    Raises:
        UsageError: if images of that size are too small for the network.
    """
    g = Graph()
    images = Value(g, IMAGES)
    axes = (1, 2) if interface.pixels else (2, 3)
    batch: Dim = g.size(images, 0) if interface.batch is None else interface.batch
    if interface.size is None:
        size: tuple[Dim, Dim] = (g.size(images, axes[0]), g.size(images, axes[1]))
    else:
        size = interface.size
        if min(int(side * plan.input_scale) for side in interface.size) < config.min_image_size:
            raise UsageError(
                f"size: at least {config.min_image_size} pixels on each side (after the plan's "
                f"input_scale), not {interface.size[0]} x {interface.size[1]}"
            )
    x = _normalised(g, images, metadata or Metadata()) if interface.pixels else images
    logits = NetworkWriter(g, config, tensors, plan).network(x, batch, size)

    shape: list[int | str] = [interface.batch or "batch", *(interface.size or ("height", "width"))]
    shape.insert(3 if interface.pixels else 1, config.in_channels)
    kind = TensorProto.UINT8 if interface.pixels else TensorProto.FLOAT
    given = helper.make_tensor_value_info(IMAGES, kind, shape)
    if interface.labels:
        full = resize(g, logits, batch, config.num_outputs, size)
        kind = TensorProto.UINT8 if config.num_outputs <= 256 else TensorProto.UINT16
        out = g.op("Cast", g.op("ArgMax", full, axis=1, keepdims=0), to=kind)
        sides = interface.size or ("height", "width")
        result = helper.make_tensor_value_info(LABELS, kind, [interface.batch or "batch", *sides])
    else:
        out = logits
        shape = [interface.batch or "batch", config.num_outputs, *_logit_sides(interface, plan)]
        result = helper.make_tensor_value_info(LOGITS, TensorProto.FLOAT, shape)
    described = {"merge_plan": json.dumps(plan.to_dict()), **(notes or {})}
    return g.model([given], [(out, result)], described)


def _logit_sides(interface: Interface, plan: MergePlan) -> tuple[int | str, int | str]:
    if interface.size is None:
        return "logit_height", "logit_width"
    height, width = ((int(side * plan.input_scale) - 1) // 4 + 1 for side in interface.size)
    return height, width


def _normalised(g: Graph, pixels: Value, metadata: Metadata) -> Value:
    x = g.op("Cast", pixels, to=TensorProto.FLOAT)
    x = g.transpose(x, 0, 3, 1, 2)
    mean, std = (
        np.array(values, np.float32)[:, None, None] for values in (metadata.mean, metadata.std)
    )
    return (x - mean) / std
