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
#: How far, in steps, 0 may be from what stands for it: nncf has it exact, but for rounding.
_UNEVEN = 0.01
#: The steps of results, least and most, with which the operator is as exact as they are.
_STEPS = 1e-3, 1.0


@dataclass(frozen=True, slots=True)
class _Quantised:
    """A tensor in bytes: `zeros` stand for 0, one more for `steps` more; (1,), or by channel."""

    steps: np.ndarray
    zeros: np.ndarray

    @classmethod
    def of(cls, node: Any) -> _Quantised | None:
        """What a FakeQuantize makes of a tensor; None where it is something else."""
        if node.get_type_name() != "FakeQuantize" or node.get_attributes()["levels"] != _LEVELS:
            return None
        low, high, *out = (node.input_value(i).get_node().get_data() for i in range(1, 5))
        if not all(map(np.array_equal, (low, high), out)) or (low >= high).any():
            return None
        steps = (high - low).ravel() / (_LEVELS - 1)
        exact = -low.ravel() / steps
        zeros = np.round(exact)
        if zeros.min() < 0 or zeros.max() >= _LEVELS or np.abs(zeros - exact).max() > _UNEVEN:
            return None
        return cls(steps.astype(np.float32), zeros.astype(np.uint8))


def use_quantised_depthwise(model: ov.Model) -> None:
    """Have operators of our own compute the quantised depthwise convolutions and their GELU.

    Args:
        model: the network as nncf quantised it, which is changed; OpenVINO's kernels compute what
            does not have the form that is expected.
    """
    for node in model.get_ordered_ops():
        if node.get_type_name() == "GroupConvolution":
            _replace(node)


def _replace(convolution: Any) -> None:
    source = convolution.input_value(0).get_node()
    weight = convolution.input_value(1).get_node()
    bias = _only_user(convolution, "Add")
    gelu = bias and _only_user(bias, "Gelu")
    target = gelu and _only_user(gelu, "FakeQuantize")
    before, behind = _Quantised.of(source), target and _Quantised.of(target)
    if not before or not behind or behind.steps.size > 1 or weight.get_type_name() != "Multiply":
        return
    taps, scale = (weight.input_value(i).get_node() for i in (0, 1))
    taps = taps.input_value(0).get_node()
    if taps.get_element_type() != ov.Type.i8 or not _STEPS[0] < behind.steps[0] < _STEPS[1]:
        return
    taps = taps.get_data().reshape(-1, 9).T
    channels = taps.shape[1]
    if channels % QUANTISED_MULTIPLE:
        return
    factor = before.steps * scale.get_data().ravel()
    zeros = np.broadcast_to(before.zeros, channels)
    shift = bias.input_value(1).get_node().get_data().ravel()
    shift = shift - factor * taps.sum(axis=0, dtype=np.int32) * zeros

    g = Graph("int8")
    g.prefix = convolution.get_friendly_name() + "."
    step, zero = behind.steps[0], behind.zeros[0]
    x = g.transpose(Value(g, "x"), 0, 2, 3, 1)
    x = g.op(
        "QuantisedDepthwiseGelu", x, taps, factor, shift, zeros, step=float(step), zero=int(zero)
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


def _only_user(node: Any, kind: str) -> Any:
    """The node that reads another one, if it is the only one, and of that kind."""
    users = [user.get_node() for user in node.output(0).get_target_inputs()]
    return users[0] if len(users) == 1 and users[0].get_type_name() == kind else None


def _move_users(old: ov.Output, new: ov.Output) -> None:
    for user in old.get_target_inputs():
        user.replace_source_output(new)
