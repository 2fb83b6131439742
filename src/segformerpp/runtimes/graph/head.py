"""The decode head as nodes: `segformerpp.models.heads`, every scale fused at its own resolution."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np
from onnx import TensorProto

from segformerpp.models.config import SegformerConfig
from segformerpp.runtimes.graph.builder import Dim, Operand, Value
from segformerpp.runtimes.graph.layers import Layers, resize, to_image, to_tokens
from segformerpp.runtimes.graph.matching import Tokens
from segformerpp.runtimes.traits import Traits

#: Bands have so many rows or a multiple, as many as the coarsest scale has in one of its own: most
#: then read equally many rows of it in the same shares, which are stored once. No bands where so
#: few rows have so many times the wanted bytes. And at most so many bands.
_ROWS, _TOO_LARGE, _MOST_BANDS = 8, 4, 64

#: Of `DecodeHead`: channels that it works on together, and how many coarser scales it takes.
_NATIVE_WIDTH, _NATIVE_SCALES = 32, 3

#: Tokens (B, h * w, C), and what is known of them.
Scale = tuple[Value, Tokens]


class HeadWriter:
    """Appends the decode head to a graph.

    Args:
        layers: of the network.
        config: the architecture.
        traits: of what computes the graph.
    """

    def __init__(self, layers: Layers, config: SegformerConfig, traits: Traits) -> None:
        self._g, self._layers, self._config, self._traits = layers.g, layers, config, traits
        factor, self._bias = layers.batch_norm("head.fuse_norm")
        weight = layers.tensors["head.fuse.weight"][:, :, 0, 0] * factor[:, None]
        self._weights = np.split(weight, len(config.dims), axis=1)
        if config.head_kind == "linear":
            # Nothing non-linear stands between the two layers: their product is one layer.
            for i, part in enumerate(self._weights):
                inner, inner_bias = layers.pair(f"head.scales.{i}")
                self._bias = self._bias + part @ inner_bias
                self._weights[i] = part @ inner[:, :, 0, 0]

    def logits(self, stages: Sequence[Scale]) -> Value:
        """What the four stages gave, the finest first -> logits (B, K, h, w)."""
        g, (x, tokens) = self._g, stages[0]
        coarser: list[tuple[Value, Tokens]] = []  # as images (B, D, h, w)
        for i in reversed(range(1, len(stages))):
            # The bias rides along with the smallest.
            y = self._fuse(to_image(*stages[i]), i, None if coarser else self._bias)
            coarser.append((y, replace(stages[i][1], channels=self._config.head_dim)))
        if self._is_native(coarser):
            return self._native(x, tokens, coarser)
        bands = self._bands(tokens)
        if len(bands) == 1:
            resized = [resize(g, y, t.batch, t.channels, tokens.grid) for y, t in coarser]
            return self._classified(reduce(add, resized) + self._fuse(to_image(x, tokens), 0))
        scales = [(to_tokens(y, t), t, _shares(tokens.grid[0], t.grid[0])) for y, t in coarser]
        zero = None
        if self._traits.constants_stay_f32:
            value = g.cut(g.cut(scales[0][0], 1, 0, 1), 2, 0, 1)
            zero = g.op("Clip", value, np.float32(0), np.float32(0))
        width, parts = tokens.grid[1], []
        logits = replace(tokens, channels=self._config.num_outputs)
        for first, end in bands:
            grid = end - first, width
            fused = self._resized_rows(scales, tokens, first, end, zero)
            own = to_image(g.cut(x, 1, first * width, end * width), replace(tokens, grid=grid))
            y = self._classified(fused + self._fuse(own, 0))
            parts.append(to_tokens(y, replace(logits, grid=grid)))
        return to_image(g.op("Concat", *parts, axis=1), logits)

    def _is_native(self, coarser: Sequence[Scale]) -> bool:
        """Whether `DecodeHead` may compute what is behind the fused scales (see `native`)."""
        units = 2 if self._traits.native == "bf16" else 1
        able = self._config.head_dim % _NATIVE_WIDTH == 0 and self._weights[0].shape[1] % units == 0
        return bool(self._traits.native) and len(coarser) == _NATIVE_SCALES and able

    def _native(self, x: Value, tokens: Tokens, coarser: Sequence[Scale]) -> Value:
        g, native = self._g, self._traits.native
        if self._config.head_kind == "conv":
            x = g.transpose(self._inner(to_image(x, tokens), 0), 0, 2, 3, 1)
        else:
            x = g.reshape(x, tokens.batch, *tokens.grid, tokens.channels)
        maps = [g.transpose(y, 0, 2, 3, 1) for y, _ in coarser]
        if native == "bf16":
            x, *maps = (g.op("Cast", y, to=TensorProto.BFLOAT16) for y in (x, *maps))
        classifier, bias = self._layers.pair("head.classifier")
        more = -len(bias) % _NATIVE_WIDTH
        logits = g.op(
            "DecodeHead",
            x,
            _packed(self._weights[0], native),
            *maps,
            _packed(np.pad(classifier[:, :, 0, 0], ((0, more), (0, 0))), native),
            np.pad(bias, (0, more)),
            classes=len(bias),
        )
        logits = g.transpose(logits, 0, 3, 1, 2)
        if native == "bf16":
            # Behind the last layer that it knows OpenVINO computes in f32, up to the blocks' sums.
            with g.unquantised():
                logits = self._layers.pointwise(logits, np.eye(len(bias), dtype=np.float32))
        return logits

    def _fuse(self, x: Value, i: int, bias: np.ndarray | None = None) -> Value:
        """What a scale (B, C, h, w) adds to the fused features: (B, D, h, w)."""
        return self._layers.pointwise(self._inner(x, i), self._weights[i], bias)

    def _inner(self, x: Value, i: int) -> Value:
        """What the fusing layer reads of a scale: something else in the kind with convolutions."""
        layers = self._layers
        if self._config.head_kind != "conv":
            return x
        factor, shift = layers.batch_norm(f"head.scale_norms.{i}")
        inner = layers.tensors[f"head.scales.{i}.weight"][:, :, 0, 0] * factor[:, None]
        return self._g.op("Relu", layers.pointwise(x, inner, shift))

    def _classified(self, fused: Value) -> Value:
        return self._layers.conv(self._g.op("Relu", fused), *self._layers.pair("head.classifier"))

    def _bands(self, tokens: Tokens) -> list[tuple[Any, Any]]:
        """Rows (first, end) of the finest scale that are worked on together."""
        batch, (height, width) = tokens.batch, tokens.grid
        if not (isinstance(batch, int) and isinstance(height, int) and isinstance(width, int)):
            return [(0, height)]
        band = self._traits.head_band
        least = self._traits.value_bytes * batch * width * self._config.head_dim * _ROWS
        if least > _TOO_LARGE * band:
            return [(0, height)]
        rows = _ROWS * max(band // least, -(-height // (_ROWS * _MOST_BANDS)))
        return [(first, min(first + rows, height)) for first in range(0, height, rows)]

    def _resized_rows(
        self,
        scales: Sequence[tuple[Value, Tokens, np.ndarray]],
        tokens: Tokens,
        first: int,
        end: int,
        zero: Value | None,
    ) -> Value:
        """Some rows of the sum of all coarser scales, resized: (B, D, end - first, W).

        The rows that they are made of are resized in width, then one product resizes in height and
        adds the scales up. Its factors are added to `zero`, where they must look computed.
        """
        g, width = self._g, tokens.grid[1]
        rows, shares = [], []
        for x, t, of_rows in scales:
            read = np.flatnonzero(of_rows[first:end].any(axis=0))
            low, high = int(read[0]), int(read[-1]) + 1
            shares.append(of_rows[first:end, low:high])
            narrow, wide = (replace(t, grid=(high - low, w)) for w in (t.grid[1], width))
            x = to_image(g.cut(x, 1, low * t.grid[1], high * t.grid[1]), narrow)
            x = to_tokens(resize(g, x, t.batch, t.channels, wide.grid), wide)
            rows.append(g.reshape(x, t.batch, high - low, width * t.channels))
        exact = np.hstack(shares)[None]
        # Multiples of 1/256 are what bf16 has, and they still sum to one.
        factors: Operand = exact if zero is None else zero + (256 * exact).round() / 256
        product = g.op("MatMul", factors, g.op("Concat", *rows, axis=1))
        part = replace(tokens, grid=(end - first, width), channels=self._config.head_dim)
        return to_image(g.reshape(product, part.batch, part.count, part.channels), part)


def _packed(weight: np.ndarray, native: str) -> np.ndarray:
    """A weight (K, D) as `DecodeHead` reads it: (K / 32, D, 32), or pairs (K / 32, D / 2, 32)."""
    rows, depth = weight.shape
    parts = weight.reshape(rows // _NATIVE_WIDTH, _NATIVE_WIDTH, depth).transpose(0, 2, 1)
    if native == "f32":
        return parts
    bits = np.ascontiguousarray(parts, np.float32).view(np.uint32)
    rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16  # to nearest, ties to even
    return (rounded[:, ::2] | rounded[:, 1::2] << 16).view(np.int32)


def _shares(size: Dim, coarse: Dim) -> np.ndarray:
    """How much each row reads of each coarse one in bilinear resizing: (size, coarse)."""
    assert isinstance(size, int)
    assert isinstance(coarse, int)
    at = ((np.arange(size) + 0.5) * coarse / size - 0.5).clip(0, coarse - 1)
    shares = (1 - abs(at[:, None] - np.arange(coarse))).clip(0, None)
    return shares.astype(np.float32)
