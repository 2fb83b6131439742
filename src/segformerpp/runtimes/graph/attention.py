"""Attention as nodes, in the form that each runtime has a fast kernel for."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from segformerpp.runtimes.graph.builder import Dim, Operand, Value
from segformerpp.runtimes.graph.layers import Layers, Pair

#: `SoftmaxAttention` has powers of two.
_LOG2_E = np.float32(np.log2(np.e))
#: It takes heads of a multiple of so many channels, and at most so many.
_CHANNELS_MULTIPLE, _MOST_CHANNELS = 8, 128


@dataclass(frozen=True, slots=True)
class Projections:
    """Weights (heads * d, C) and biases of the linear layers.

    Args:
        q: of queries; what it gives is already scaled.
        k: of keys.
        v: of values.
        heads: how many.
    """

    q: Pair
    k: Pair
    v: Pair
    heads: int


def attention(
    layers: Layers,
    queries: Value,
    keys: Value,
    batch: Dim,
    projections: Projections,
    logs: Operand | None,
    native: str = "",
) -> Value:
    """Values, weighted by how well their keys fit a query.

    Of products and softmax OpenVINO makes one kernel, ONNX Runtime has a node of its own, and
    OpenVINO may be given one (`native`): none holds the whole attention map.

    Args:
        layers: what appends linear layers.
        queries: tokens (B, N, C).
        keys: tokens (B, M, C), of the values too.
        batch: B.
        projections: of the tokens.
        logs: (B, M) or (1, M), added to the logits of the weights; None for nothing.
        native: see `Traits.native`.

    Returns:
        (B, N, heads * d).
    """
    g, heads, width = layers.g, projections.heads, len(projections.v[1])
    q, k, v = projections.q, projections.k, layers.linear(keys, *projections.v)
    if g.form == "onnxruntime":
        # Its fast kernel adds nothing to the logits. The products of one channel more in each head
        # do: one in queries, what is to be added in keys.
        if logs is not None:
            q, k = _widened(q, heads, 1), _widened(k, heads, 0)
        queries, keys = layers.linear(queries, *q), layers.linear(keys, *k)
        if logs is not None:
            last = np.tile(np.eye(width // heads + 1)[-1], heads)
            keys = keys + g.op("Unsqueeze", logs, np.array([2])) * last
        attributes = {"domain": "com.microsoft", "num_heads": heads, "scale": 1.0}
        return g.op("MultiHeadAttention", queries, keys, v, **attributes)
    channels = width // heads
    if native and channels % _CHANNELS_MULTIPLE == 0 and channels <= _MOST_CHANNELS:
        queries = layers.linear(queries, *(x * _LOG2_E for x in q))
        inputs = [queries, layers.linear(keys, *k), v]
        if native == "bf16":
            inputs = [g.op("Cast", x, to=TensorProto.BFLOAT16) for x in inputs]
        more = [] if logs is None else [g.op("Mul", logs, _LOG2_E)]
        in_bytes = int(native == "bf16" and g.form == "int8")
        out = g.op("SoftmaxAttention", *inputs, *more, heads=heads, in_bytes=in_bytes)
        return g.op("Cast", out, to=TensorProto.FLOAT) if native == "bf16" else out
    queries, keys, v = (
        g.reshape(y, batch, -1, heads, width // heads)
        for y in (layers.linear(queries, *q), layers.linear(keys, *k), v)
    )
    weights = g.op("MatMul", g.transpose(queries, 0, 2, 1, 3), g.transpose(keys, 0, 2, 3, 1))
    if logs is not None:
        weights = weights + g.op("Unsqueeze", logs, np.array([1, 2]))
    out = g.op("MatMul", g.op("Softmax", weights, axis=-1), g.transpose(v, 0, 2, 1, 3))
    return g.reshape(g.transpose(out, 0, 2, 1, 3), batch, -1, width)


def _widened(layer: Pair, heads: int, value: float) -> Pair:
    """A layer with one channel more in each head, which has a value that is always the same."""
    weight, bias = layer
    weight = np.pad(weight.reshape(heads, -1, weight.shape[1]), ((0, 0), (0, 1), (0, 0)))
    bias = np.pad(bias.reshape(heads, -1), ((0, 0), (0, 1)), constant_values=value)
    return weight.reshape(-1, weight.shape[2]), bias.reshape(-1)
