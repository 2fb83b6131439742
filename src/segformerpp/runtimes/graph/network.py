"""SegFormer with token merging as an ONNX graph: `segformerpp.models` for the runtimes.

It computes the same as the modules, from the same tensors, in the form that runs fastest: one
query scale less, batch norms folded, the hidden features of the Mix-FFN in bands that stay in the
processor's cache. Writing it takes a fraction of a second and no PyTorch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from segformerpp.merging import Merge, MergePlan
from segformerpp.models.config import SegformerConfig
from segformerpp.runtimes.graph.builder import Dim, Graph, Value
from segformerpp.runtimes.graph.matching import (
    Groups,
    Match,
    Matches,
    Tokens,
    match,
    nearest,
)
from segformerpp.runtimes.sizes import patch_grid, share_of

#: What the hidden features of a Mix-FFN may take before they are made in bands, the size of such
#: a band, and how many there are at most; bytes.
_HIDDEN_WHOLE, _HIDDEN_BAND, _MOST_BANDS = 6 * 2**20, 3 * 2**20, 32
#: The largest weights of a Mix-FFN with bands, bytes. OpenVINO packs them anew for every band: B5
#: would take 6.8 instead of 3.0 GB, and be 2 % slower.
_BANDED_WEIGHTS = 3 * 2**19
_BATCH_NORM_EPS = 1e-5

Tensors = Mapping[str, np.ndarray]


class NetworkWriter:
    """Appends the network to a graph.

    Args:
        g: the graph.
        config: the architecture.
        tensors: float32, by the names that they have in `segformerpp.models.Segformer`.
        plan: what is merged where.
        given: whether what bipartite matching finds is an input of the graph instead.

    Attributes:
        matched: once the network is written: what bipartite matching found, or is given: the group
            of each token, by a name that says where in the network it is.
    """

    def __init__(
        self,
        g: Graph,
        config: SegformerConfig,
        tensors: Tensors,
        plan: MergePlan,
        given: bool = False,
    ) -> None:
        self._g, self._config, self._tensors, self._plan = g, config, tensors, plan
        self._given = given
        self.matched: dict[str, tuple[Value, Tokens]] = {}

    def network(self, images: Value, batch: Dim, size: tuple[Dim, Dim]) -> Value:
        """Normalised images (B, C, H, W) -> logits (B, K, h, w)."""
        x, size = self._shrink(images, size)
        stages: list[tuple[Value, Tokens]] = []
        for number in range(len(self._config.depths)):
            x, tokens = self._stage(x, number, batch, size)
            size = tokens.grid
            stages.append((x, tokens))
        return self._head(stages)

    def _shrink(self, images: Value, size: tuple[Dim, Dim]) -> tuple[Value, tuple[Dim, Dim]]:
        scale = self._plan.input_scale
        if scale == 1:
            return images, size
        shrunk = []
        for axis, side in enumerate(size, 2):
            smaller = share_of(scale, side)
            images = self._g.op("Gather", images, nearest(self._g, smaller, side), axis=axis)
            shrunk.append(smaller)
        return images, (shrunk[0], shrunk[1])

    def _stage(
        self, x: Value, number: int, batch: Dim, size: tuple[Dim, Dim]
    ) -> tuple[Value, Tokens]:
        config, name = self._config, f"encoder.stages.{number}."
        kernel, stride = config.patch_sizes[number], 2 if number else 4
        x = self._conv(x, name + "patch_embed.conv", stride, kernel // 2)
        tokens = Tokens(batch, patch_grid(config, number, size), config.dims[number])
        x = self._norm(_to_tokens(x, tokens), name + "patch_embed.norm", config.embed_norm_eps)
        found: Matches | None = None
        reuse = self._plan.stages[number].reuse
        for block in range(config.depths[number]):
            known = found if reuse and block % reuse else None
            part, eps = f"{name}blocks.{block}.", config.norm_eps
            y = self._norm(x, part + "norm1", eps)
            y, found = self._attention(y, part + "attention.", number, tokens, known)
            x = x + y
            y = self._norm(x, part + "norm2", eps)
            x = x + self._mix_ffn(y, part + "ffn.", number, tokens)
        return _to_image(self._norm(x, name + "norm", config.norm_eps), tokens), tokens

    def _attention(
        self, x: Value, name: str, number: int, tokens: Tokens, known: Matches | None
    ) -> tuple[Value, Matches]:
        g, config, merge = self._g, self._config, self._plan.stages[number]
        batch, dim, heads = tokens.batch, tokens.channels, config.heads[number]
        keys, key_tokens, ratio = x, tokens, config.sr_ratios[number]
        if ratio > 1:
            rows, columns = (side // ratio for side in tokens.grid)
            key_tokens = Tokens(batch, (rows, columns), dim)
            reduced = self._conv(_to_image(x, tokens), name + "sr", ratio)
            keys = _to_tokens(reduced, key_tokens)
            keys = self._norm(keys, name + "sr_norm", config.embed_norm_eps)
        found = known or Matches(
            kv=self._match(merge.kv, keys, key_tokens, name + "kv"),
            q=self._match(merge.q, x, tokens, name + "q"),
        )
        queries, logs = found.q.merge(x) if found.q else x, None
        if found.kv:
            keys = found.kv.merge(keys)
            if merge.kv and merge.kv.proportional:
                logs = found.kv.log_sizes()

        (q_weight, q_bias), (kv_weight, kv_bias) = self._pair(name + "q"), self._pair(name + "kv")
        scale = np.float32((dim // heads) ** -0.5)
        q = self._linear(queries, q_weight * scale, q_bias * scale)
        k, v = (
            self._linear(keys, weight, bias)
            for weight, bias in zip(np.split(kv_weight, 2), np.split(kv_bias, 2), strict=True)
        )
        q, k, v = (g.reshape(y, batch, -1, heads, dim // heads) for y in (q, k, v))
        # In this form OpenVINO makes one kernel of it, which never holds the whole attention map.
        weights = g.op("MatMul", g.transpose(q, 0, 2, 1, 3), g.transpose(k, 0, 2, 3, 1))
        if logs is not None:
            weights = weights + g.op("Unsqueeze", logs, np.array([1, 2]))
        weights = g.op("Softmax", weights, axis=-1)
        out = g.op("MatMul", weights, g.transpose(v, 0, 2, 1, 3))
        out = g.reshape(g.transpose(out, 0, 2, 1, 3), batch, -1, dim)
        out = self._linear(out, *self._pair(name + "proj"))
        return found.q.unmerge(out) if found.q else out, found

    def _match(self, merge: Merge | None, x: Value, tokens: Tokens, name: str) -> Match | None:
        name += ".group"
        found = match(self._g, merge, x, tokens, Value(self._g, name) if self._given else None)
        if isinstance(found, Groups):
            self.matched[name] = found.group, tokens
        return found

    def _mix_ffn(self, x: Value, name: str, number: int, tokens: Tokens) -> Value:
        g, (height, width) = self._g, tokens.grid
        hidden = tokens.channels * self._config.mlp_ratios[number]
        bands: list[tuple[Any, Any]] = [(0, height)]
        if (
            g.form == "processor"
            and isinstance(height, int)
            and isinstance(width, int)
            and isinstance(tokens.batch, int)
            and 2 * 4 * tokens.channels * hidden <= _BANDED_WEIGHTS
        ):
            bands = _bands(height, 4 * tokens.batch * width * hidden)
        parts = []
        for first, end in bands:
            # The convolution reads one row more on each side, or zeros beyond the edge.
            above, below = int(first > 0), int(end is not height and end < height)
            rows, y = height, x
            if len(bands) > 1:
                rows = end + below - (first - above)
                y = g.cut(x, 1, (first - above) * width, (end + below) * width)
            y = _to_image(y, Tokens(tokens.batch, (rows, width), tokens.channels))
            y = self._pointwise(y, *self._pair(name + "fc1"))
            padding = [1 - above, 1, 1 - below, 1]
            y = self._conv(y, name + "dwconv", 1, padding, group=hidden)
            y = self._pointwise(g.op("Gelu", y), *self._pair(name + "fc2"))
            rows = end - first if first else end
            parts.append(_to_tokens(y, Tokens(tokens.batch, (rows, width), tokens.channels)))
        return parts[0] if len(parts) == 1 else g.op("Concat", *parts, axis=1)

    def _head(self, stages: list[tuple[Value, Tokens]]) -> Value:
        """See `segformerpp.models.heads`: every scale is fused at its own resolution."""
        g, linear = self._g, self._config.head_kind == "linear"
        factor, bias = self._folded("head.fuse_norm")
        weight = self._tensors["head.fuse.weight"][:, :, 0, 0] * factor[:, None]
        parts = np.split(weight, len(stages), axis=1)
        if linear:
            for i, part in enumerate(parts):
                inner, inner_bias = self._pair(f"head.scales.{i}")
                bias = bias + part @ inner_bias
                parts[i] = part @ inner[:, :, 0, 0]
        finest = stages[0][1]
        fused: Value | None = None
        for i in reversed(range(len(stages))):
            x, tokens = stages[i]
            if not linear:
                scale, shift = self._folded(f"head.scale_norms.{i}")
                inner = self._tensors[f"head.scales.{i}.weight"] * scale[:, None, None, None]
                x = g.op("Relu", g.op("Conv", x, inner, shift))
            x = g.op("Conv", x, parts[i][:, :, None, None], *([bias] if fused is None else []))
            if i > 0:
                x = resize(g, x, tokens.batch, self._config.head_dim, finest.grid)
            fused = x if fused is None else fused + x
        assert fused is not None
        return self._conv(g.op("Relu", fused), "head.classifier")

    def _pair(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        return self._tensors[name + ".weight"], self._tensors[name + ".bias"]

    def _folded(self, name: str) -> tuple[np.ndarray, np.ndarray]:
        """The factor and the shift that a batch norm amounts to."""
        weight, bias = self._pair(name)
        factor = weight / np.sqrt(self._tensors[name + ".running_var"] + _BATCH_NORM_EPS)
        return factor, bias - self._tensors[name + ".running_mean"] * factor

    def _linear(self, x: Value, weight: np.ndarray, bias: np.ndarray) -> Value:
        g = self._g
        if g.form == "int8":
            # (B, C, 1, N), not (B, C, N, 1): behind that a transpose for one head would be a copy.
            image = g.transpose(g.op("Unsqueeze", x, np.array([1])), 0, 3, 1, 2)
            image = self._pointwise(image, weight, bias)
            return g.op("Squeeze", g.transpose(image, 0, 2, 3, 1), np.array([1]))
        return g.op("MatMul", x, np.ascontiguousarray(weight.T)) + bias

    def _pointwise(self, x: Value, weight: np.ndarray, bias: np.ndarray) -> Value:
        """A linear layer on an image (B, C, h, w)."""
        return self._g.op("Conv", x, weight[:, :, None, None], bias, kernel_shape=[1, 1])

    def _norm(self, x: Value, name: str, eps: float) -> Value:
        return self._g.op("LayerNormalization", x, *self._pair(name), axis=-1, epsilon=eps)

    def _conv(
        self, x: Value, name: str, stride: int = 1, padding: int | list[int] = 0, group: int = 1
    ) -> Value:
        weight, bias = self._pair(name)
        pads = [padding] * 4 if isinstance(padding, int) else padding
        strides, kernel = [stride] * 2, list(weight.shape[2:])
        return self._g.op(
            "Conv", x, weight, bias, kernel_shape=kernel, strides=strides, pads=pads, group=group
        )


def resize(g: Graph, x: Value, batch: Dim, channels: int, size: tuple[Dim, Dim]) -> Value:
    """Resize (B, C, h, w) bilinearly; pixel centres are at halves."""
    return g.op(
        "Resize", x, None, None, g.dims(batch, channels, *size),
        mode="linear", coordinate_transformation_mode="half_pixel",
    )  # fmt: skip


def _to_image(x: Value, tokens: Tokens) -> Value:
    """Tokens (B, h * w, C) as an image (B, C, h, w)."""
    g = x.graph
    return g.transpose(g.reshape(x, tokens.batch, *tokens.grid, tokens.channels), 0, 3, 1, 2)


def _to_tokens(x: Value, tokens: Tokens) -> Value:
    """An image (B, C, h, w) as tokens (B, h * w, C)."""
    g = x.graph
    return g.reshape(g.transpose(x, 0, 2, 3, 1), tokens.batch, tokens.count, tokens.channels)


def _bands(height: int, row: int) -> list[tuple[int, int]]:
    """Rows (first, end) that are worked on together, where a row takes so many bytes."""
    if height * row <= _HIDDEN_WHOLE:
        return [(0, height)]
    rows = max(_HIDDEN_BAND // row, -(-height // _MOST_BANDS))
    return [(first, min(first + rows, height)) for first in range(0, height, rows)]
