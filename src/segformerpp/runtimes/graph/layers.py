"""Layers as nodes of a graph, with the tensors that they have in `segformerpp.models`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from onnx import TensorProto

from segformerpp.runtimes.graph.builder import Dim, Graph, Value
from segformerpp.runtimes.graph.matching import Tokens

_BATCH_NORM_EPS = 1e-5
#: Of what channels are a multiple in `DepthwiseGelu` and `QuantisedDepthwiseGelu`.
_NATIVE_MULTIPLE, QUANTISED_MULTIPLE = 16, 64

Tensors = Mapping[str, np.ndarray]
#: Weight and bias.
Pair = tuple[np.ndarray, np.ndarray]


class Layers:
    """Appends layers to a graph.

    Args:
        g: the graph.
        tensors: float32, by the names that they have in `segformerpp.models.Segformer`.
    """

    def __init__(self, g: Graph, tensors: Tensors) -> None:
        self.g, self.tensors = g, tensors

    def pair(self, name: str, behind: str | None = None) -> Pair:
        """Weight and bias of a layer; with those of the layer norm that it is behind in them.

        That norm is then to be written without (`norm`). Not for layers that pad with zeros.
        """
        weight, bias = self.tensors[name + ".weight"], self.tensors[name + ".bias"]
        if behind is None:
            return weight, bias
        factor, shift = self.pair(behind)
        shape = (-1, *[1] * (weight.ndim - 2))
        offset = (weight * shift.reshape(shape)).sum(axis=tuple(range(1, weight.ndim)))
        return weight * factor.reshape(shape), bias + offset

    def batch_norm(self, name: str) -> Pair:
        """The factor and the shift that a batch norm amounts to."""
        weight, bias = self.pair(name)
        factor = weight / np.sqrt(self.tensors[name + ".running_var"] + _BATCH_NORM_EPS)
        return factor, bias - self.tensors[name + ".running_mean"] * factor

    def linear(
        self, x: Value, weight: np.ndarray, bias: np.ndarray, *, by_convolution: bool = False
    ) -> Value:
        """A linear layer on tokens (B, N, C); its weight (K, C)."""
        g = self.g
        if by_convolution or g.form == "int8":
            # (B, C, 1, N), not (B, C, N, 1): behind that a transpose for one head would be a copy.
            image = g.transpose(g.op("Unsqueeze", x, np.array([1])), 0, 3, 1, 2)
            image = self.pointwise(image, weight, bias)
            return g.op("Squeeze", g.transpose(image, 0, 2, 3, 1), np.array([1]))
        return g.op("MatMul", x, np.ascontiguousarray(weight.T)) + bias

    def pointwise(self, x: Value, weight: np.ndarray, bias: np.ndarray | None = None) -> Value:
        """A linear layer on an image (B, C, h, w); its weight (K, C)."""
        more = () if bias is None else (bias,)
        return self.g.op("Conv", x, weight[:, :, None, None], *more, kernel_shape=[1, 1])

    def norm(
        self, x: Value, name: str, eps: float, *, affine: bool = True, centred: bool = False
    ) -> Value:
        """Layer norm of the last axis, or what it is before its own factor and shift.

        Of tokens that are centred already it divides by the root of their mean square.
        """
        factor, shift = self.pair(name)
        if centred:  # in the form of which OpenVINO makes one node; see `openvino_core`
            square = self.g.op("ReduceMean", self.g.op("Pow", x, np.float32(2)), np.array([-1]))
            x = x * self.g.op("Div", np.float32(1), self.g.op("Sqrt", square + np.float32(eps)))
            return x * factor + shift if affine else x
        if not affine:
            factor, shift = np.ones_like(factor), np.zeros_like(shift)  # some parsers want both
        return self.g.op("LayerNormalization", x, factor, shift, axis=-1, epsilon=eps)

    def conv(
        self,
        x: Value,
        weight: np.ndarray,
        bias: np.ndarray,
        stride: int = 1,
        padding: int | list[int] = 0,
        group: int = 1,
    ) -> Value:
        """A convolution of an image (B, C, h, w)."""
        pads = [padding] * 4 if isinstance(padding, int) else padding
        strides, kernel = [stride] * 2, list(weight.shape[2:])
        return self.g.op(
            "Conv", x, weight, bias, kernel_shape=kernel, strides=strides, pads=pads, group=group
        )

    def depthwise_gelu(self, x: Value, name: str, above: int, below: int, native: str) -> Value:
        """GELU of a 3x3 depthwise convolution of an image (B, C, h, w).

        Args:
            x: the image.
            name: of the convolution.
            above: rows of zeros there, as there is a column of zeros on either side; 0 or 1.
            below: rows of zeros there.
            native: see `Traits.native`.
        """
        g, (weight, bias) = self.g, self.pair(name)
        # nncf quantises both, then `int8_native` has an operator compute them.
        later = g.form == "int8" and native == "bf16" and not len(bias) % QUANTISED_MULTIPLE
        if not native or later or len(bias) % _NATIVE_MULTIPLE:
            return g.op("Gelu", self.conv(x, weight, bias, 1, [above, 1, below, 1], len(bias)))
        x = g.transpose(x, 0, 2, 3, 1)
        if native == "bf16":
            x = g.op("Cast", x, to=TensorProto.BFLOAT16)
        taps = np.ascontiguousarray(weight.reshape(len(bias), 9).T)
        x = g.op("DepthwiseGelu", x, taps, bias, above=above, below=below)
        if native == "bf16":
            x = g.op("Cast", x, to=TensorProto.FLOAT)
        return g.transpose(x, 0, 3, 1, 2)


def centring(layer: Pair) -> Pair:
    """A layer (K, ...) from whose K outputs their mean is subtracted."""
    weight, bias = layer
    return weight - weight.mean(axis=0), bias - bias.mean()


def resize(g: Graph, x: Value, batch: Dim, channels: int, size: tuple[Dim, Dim]) -> Value:
    """Resize (B, C, h, w) bilinearly; pixel centres are at halves."""
    return g.op(
        "Resize", x, None, None, g.dims(batch, channels, *size),
        mode="linear", coordinate_transformation_mode="half_pixel",
    )  # fmt: skip


def to_image(x: Value, tokens: Tokens) -> Value:
    """Tokens (B, h * w, C) as an image (B, C, h, w)."""
    g = x.graph
    return g.transpose(g.reshape(x, tokens.batch, *tokens.grid, tokens.channels), 0, 3, 1, 2)


def to_tokens(x: Value, tokens: Tokens) -> Value:
    """An image (B, C, h, w) as tokens (B, h * w, C)."""
    g = x.graph
    return g.reshape(g.transpose(x, 0, 2, 3, 1), tokens.batch, tokens.count, tokens.channels)
