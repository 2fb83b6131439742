"""Quantised networks with operators of our own (`native`) in place of what nncf quantised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from openvino import opset13 as opset

from segformerpp.runtimes.graph.builder import Graph, Value
from segformerpp.runtimes.graph.layers import QUANTISED_MULTIPLE
from segformerpp.runtimes.openvino_core import core, ov

_LEVELS = 256
#: How far, in steps, 0 may be from what stands for it in results: they have both signs, for which
#: nncf has it exact, but for rounding.
_UNEVEN = 0.01
#: The steps of results, least and most, with which the operator is as exact as they are.
_STEPS = 1e-3, 1.0


@dataclass(frozen=True, slots=True)
class _Quantised:
    """A tensor in bytes: how many of `steps` it is above `-zeros` of them; both (1,) or (C,)."""

    steps: np.ndarray
    zeros: np.ndarray

    @classmethod
    def of(cls, node: Any) -> _Quantised | None:
        """What a FakeQuantize makes of a tensor; None where it is something else."""
        if node.get_type_name() != "FakeQuantize" or node.get_attributes()["levels"] != _LEVELS:
            return None
        limits = [limit for i in range(1, 5) if (limit := _constant(node, i)) is not None]
        if len(limits) < 4 or not all(map(np.array_equal, limits[:2], limits[2:])):
            return None
        low, high = limits[:2]
        steps = (high - low).ravel() / (_LEVELS - 1)
        if (steps <= 0).any():
            return None
        return cls(steps.astype(np.float32), -low.ravel() / steps)

    @property
    def nearest(self) -> np.ndarray:
        """The bytes that are next to 0."""
        return np.round(self.zeros).clip(0, _LEVELS - 1).astype(np.uint8)

    @property
    def error(self) -> float:
        """What 0 is off in them, in steps."""
        return float(np.abs(self.zeros - self.nearest).max())


def use_quantised_depthwise(model: ov.Model) -> None:
    """Have operators of our own compute the quantised depthwise convolutions and their GELU.

    Args:
        model: the network as nncf quantised it, which is changed; what does not have the form of
            our Mix-FFN is left to OpenVINO's kernels.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() == "GroupConvolution":
            _replace(node)


def _replace(convolution: Any) -> None:
    source = convolution.input_value(0).get_node()
    bias = _only_user(convolution, "Add")
    gelu = bias and _only_user(bias, "Gelu")
    target = gelu and _only_user(gelu, "FakeQuantize")
    if not target or gelu.get_attributes()["approximation_mode"] != "ERF":
        return
    image, result = _Quantised.of(source), _Quantised.of(target)
    weight, shift = _quantised_weight(convolution), _constant(bias, 1)
    if image is None or result is None or weight is None or shift is None:
        return
    taps, scale = weight
    channels = taps.shape[1]
    if channels % QUANTISED_MULTIPLE or shift.size != channels or image.error > 0.5:
        return
    if result.steps.size > 1 or result.error > _UNEVEN:
        return
    if not _STEPS[0] < result.steps[0] < _STEPS[1]:
        return
    factor = np.broadcast_to(image.steps * scale, channels)
    # Exact but for the zeros around the image.
    shift = shift.ravel() - factor * taps.sum(axis=0, dtype=np.int32) * image.zeros
    zeros = np.broadcast_to(image.nearest, channels)

    g = Graph("int8")
    g.prefix = convolution.get_friendly_name() + "."
    step, zero = result.steps[0], result.nearest[0]
    x = g.transpose(Value(g, "x"), 0, 2, 3, 1)
    x = g.op(
        *("QuantisedDepthwiseGelu", x, taps, factor, shift.astype(np.float32), zeros),
        step=float(step),
        zero=int(zero),
    )
    # In this order OpenVINO sees that what reads it can read bytes.
    x = (g.op("Cast", x, to=TensorProto.FLOAT) - np.full((1, 1, 1, 1), zero, np.float32)) * step
    x = g.transpose(x, 0, 3, 1, 2)
    shape = ["batch", channels, "height", "width"]
    infos = [
        helper.make_tensor_value_info(name, kind, shape)
        for name, kind in (("x", TensorProto.UINT8), ("y", TensorProto.FLOAT))
    ]
    piece = core().read_model(g.model(infos[:1], [(x, infos[1])], {}).SerializeToString())
    low, high = source.input_value(1), source.input_value(2)
    least, most = np.float32(0), np.float32(_LEVELS - 1)
    bytes_ = opset.fake_quantize(source.input_value(0), low, high, least, most, _LEVELS)
    _move_users(piece.inputs[0], opset.convert(bytes_, "u8").output(0))
    _move_users(target.output(0), piece.get_results()[0].input_value(0))


def _quantised_weight(convolution: Any) -> tuple[np.ndarray, np.ndarray] | None:
    """Taps (9, C), int8, and their unit, (1,) or (C,), if this is a convolution of our Mix-FFN."""
    attributes, weight = convolution.get_attributes(), convolution.input_value(1)
    kernel = weight.get_partial_shape()
    if not kernel.is_static or list(kernel.to_shape())[1:] != [1, 1, 3, 3]:
        return None
    if any(attributes[n] != [1, 1] for n in ("strides", "pads_begin", "pads_end", "dilations")):
        return None
    product = weight.get_node()
    if product.get_type_name() != "Multiply":
        return None
    scale, numbers = _constant(product, 1), product.input_value(0).get_node()
    taps = _constant(numbers, 0) if numbers.get_type_name() == "Convert" else None
    if scale is None or taps is None or taps.dtype != np.int8:
        return None
    return np.ascontiguousarray(taps.reshape(-1, 9).T), scale.ravel()


def _constant(node: Any, i: int) -> np.ndarray | None:
    """An input of a node, if it is constant."""
    source = node.input_value(i).get_node()
    return source.get_data() if source.get_type_name() == "Constant" else None


def _only_user(node: Any, kind: str) -> Any:
    """The node that reads another one, if it is the only one, and of that kind."""
    users = [user.get_node() for user in node.output(0).get_target_inputs()]
    return users[0] if len(users) == 1 and users[0].get_type_name() == kind else None


def _move_users(old: ov.Output, new: ov.Output) -> None:
    for user in old.get_target_inputs():
        user.replace_source_output(new)
