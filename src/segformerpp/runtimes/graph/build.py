"""From an architecture, its tensors and a plan to an ONNX model."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
from onnx import TensorProto, helper

from segformerpp.arguments import Size
from segformerpp.errors import UsageError
from segformerpp.models.config import Metadata, SegformerConfig
from segformerpp.plans import MergePlan
from segformerpp.runtimes.graph.builder import Dim, Form, Graph, Value
from segformerpp.runtimes.graph.labels import label_map, label_type
from segformerpp.runtimes.graph.layers import Tensors
from segformerpp.runtimes.graph.network import NetworkWriter
from segformerpp.runtimes.sizes import least_size, logit_size
from segformerpp.runtimes.traits import Traits

IMAGES, LOGITS, LABELS = "images", "logits", "labels"
#: What becomes of what bipartite matching finds: see `Interface`.
MatchFlow = Literal["none", "out", "in"]
#: What the names of nodes around the network begin with.
BEFORE, BEHIND = "before.", "behind."


@dataclass(frozen=True, slots=True)
class Interface:
    """What goes into the graph and what comes out of it.

    Args:
        size: (H, W) of the images; None where it follows the image.
        batch: how many go in together; None where it follows the input.
        pixels: whether (B, H, W, C) uint8 images go in, instead of normalised ones (B, C, H, W).
        labels: whether label maps (B, H, W) come out, uint8 or uint16 for more than 256 classes,
            instead of logits (B, K, h, w).
        least: the smallest images where the size follows them; None for `sizes.least_size`.
        matches: ``out``: what each bipartite matching found comes out too, behind the logits;
            ``in``: that goes in, behind the images, instead of being found; for a known size.
    """

    size: Size | None
    batch: int | None = 1
    pixels: bool = False
    labels: bool = False
    least: Size | None = None
    matches: MatchFlow = "none"


def build(
    config: SegformerConfig,
    tensors: Tensors,
    plan: MergePlan,
    interface: Interface,
    metadata: Metadata | None = None,
    notes: Mapping[str, str] | None = None,
    *,
    form: Form = "processor",
    traits: Traits | None = None,
) -> onnx.ModelProto:
    """Write the network as an ONNX model.

    Args:
        config: the architecture.
        tensors: float32, by the names that they have in `segformerpp.models.Segformer`.
        plan: what is merged where; part of the graph.
        interface: what goes in and comes out.
        metadata: for the normalisation of pixels.
        notes: what else is to stand in the file's metadata.
        form: what the graph is for.
        traits: what is known of the runtime; None where any may compute it.

    Raises:
        UsageError: if images of that size are too small for the network, or for a graph that
            takes all sizes.
    """
    _check(config, plan, interface)
    g = Graph(form)
    images = Value(g, IMAGES)
    axes = (1, 2) if interface.pixels else (2, 3)
    batch: Dim = g.size(images, 0) if interface.batch is None else interface.batch
    size: tuple[Dim, Dim] = interface.size or (g.size(images, axes[0]), g.size(images, axes[1]))
    g.prefix = BEFORE
    x = _normalised(g, images, metadata or Metadata()) if interface.pixels else images
    g.prefix = ""
    given_matches = interface.matches == "in"
    writer = NetworkWriter(g, config, tensors, plan, traits or Traits(), given=given_matches)
    logits = writer.network(x, batch, size)
    g.prefix = BEHIND

    many = interface.batch or "batch"
    sides = interface.size or ("height", "width")
    given = helper.make_tensor_value_info(
        IMAGES,
        TensorProto.UINT8 if interface.pixels else TensorProto.FLOAT,
        [many, *sides, config.in_channels] if interface.pixels
        else [many, config.in_channels, *sides],
    )  # fmt: skip
    source = None if interface.size is None else logit_size(config, plan, interface.size)
    if interface.labels:
        out = label_map(g, logits, batch, config.num_outputs, source, size)
        kind = label_type(config.num_outputs)
        result = helper.make_tensor_value_info(LABELS, kind, [many, *sides])
    else:
        out, kind = logits, TensorProto.FLOAT
        shape = [many, config.num_outputs, *(source or ("logit_height", "logit_width"))]
        result = helper.make_tensor_value_info(LOGITS, kind, shape)
    described = {"merge_plan": json.dumps(plan.to_dict()), **(notes or {})}
    inputs, outputs = [given], [(out, result)]
    for name, (group, tokens) in writer.matched.items() if interface.matches != "none" else ():
        assert isinstance(tokens.count, int)  # matches flow between networks of one size
        info = helper.make_tensor_value_info(name, TensorProto.INT64, [many, tokens.count])
        if interface.matches == "in":
            inputs.append(info)
        elif interface.matches == "out":
            outputs.append((group, info))
    return g.model(inputs, outputs, described)


def _check(config: SegformerConfig, plan: MergePlan, interface: Interface) -> None:
    """Refuse sizes at which there would be nothing to compute."""
    if interface.size is not None:
        height, width = interface.size
        if min(int(side * plan.input_scale) for side in interface.size) < config.min_image_size:
            raise UsageError(
                f"size: at least {config.min_image_size} pixels on each side (after the plan's "
                f"input_scale), not {height} x {width}"
            )
    elif interface.least is not None:
        height, width = least_size(config, plan)
        if interface.least[0] < height or interface.least[1] < width:
            raise UsageError(
                f"size: from at least {height} x {width} where it follows the image: in smaller "
                f"ones this plan finds nothing to merge; not from {interface.least[0]} x "
                f"{interface.least[1]}"
            )


def _normalised(g: Graph, pixels: Value, metadata: Metadata) -> Value:
    x = g.op("Cast", pixels, to=TensorProto.FLOAT)
    x = g.transpose(x, 0, 3, 1, 2)
    mean, std = (
        np.array(values, np.float32)[:, None, None] for values in (metadata.mean, metadata.std)
    )
    return (x - mean) / std
