"""SegFormer with token merging as an ONNX graph: `segformerpp.models` for the runtimes.

It computes the same as the modules, from the same tensors, in the form that runs fastest: the
scaling of queries and of a block's norms, and a single head's projection, are in other layers'
weights, what blocks add up may be centred so that norms only divide, the hidden features of the
Mix-FFN are made in bands that stay in the processor's cache. Writing it takes a fraction of a
second and no PyTorch.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from segformerpp.models.config import SegformerConfig
from segformerpp.plans import BipartiteMatching, Merge, MergePlan
from segformerpp.runtimes.graph.attention import Projections, attention
from segformerpp.runtimes.graph.builder import Dim, Graph, Value
from segformerpp.runtimes.graph.head import HeadWriter, Scale
from segformerpp.runtimes.graph.layers import (
    Layers,
    Pair,
    Tensors,
    centring,
    to_image,
    to_tokens,
)
from segformerpp.runtimes.graph.matching import (
    Groups,
    Match,
    Matches,
    Tokens,
    match,
    nearest,
)
from segformerpp.runtimes.sizes import patch_grid, share_of
from segformerpp.runtimes.traits import Traits

#: What the hidden features of a Mix-FFN may take before they are made in bands, the size of such
#: a band, and how many there are at most; bytes.
_HIDDEN_WHOLE, _HIDDEN_BAND, _MOST_BANDS = 6 * 2**20, 3 * 2**20, 32
#: The largest weights of a Mix-FFN with bands, bytes: with larger ones it is bound by arithmetic,
#: and the rows that neighbouring bands both compute cost B5 4 %.
_BANDED_WEIGHTS = 3 * 2**19
#: The most channels with which centred tokens are worth the layer that centres those of a stage.
_NARROW = 64


class NetworkWriter:
    """Appends the network to a graph.

    Args:
        g: the graph.
        config: the architecture.
        tensors: float32, by the names that they have in `segformerpp.models.Segformer`.
        plan: what is merged where.
        traits: of what computes the graph.
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
        traits: Traits,
        *,
        given: bool = False,
    ) -> None:
        self._g, self._config, self._plan, self._given = g, config, plan, given
        self._traits = traits
        self._layers = Layers(g, tensors)
        self._head = HeadWriter(self._layers, config, traits)
        self.matched: dict[str, tuple[Value, Tokens]] = {}

    def network(self, images: Value, batch: Dim, size: tuple[Dim, Dim]) -> Value:
        """Normalised images (B, C, H, W) -> logits (B, K, h, w)."""
        x, size = self._shrink(images, size)
        stages: list[Scale] = []
        for number in range(len(self._config.depths)):
            if stages:
                x, size = to_image(*stages[-1]), stages[-1][1].grid
            stages.append(self._stage(x, number, batch, size))
        return self._head.logits(stages)

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

    def _stage(self, x: Value, number: int, batch: Dim, size: tuple[Dim, Dim]) -> Scale:
        layers, config, name = self._layers, self._config, f"encoder.stages.{number}."
        kernel, stride = config.patch_sizes[number], 2 if number else 4
        tokens = Tokens(batch, patch_grid(config, number, size), config.dims[number])
        conv = self._centring_pair(name + "patch_embed.conv", tokens)
        x = to_tokens(layers.conv(x, *conv, stride, kernel // 2), tokens)
        is_centred, norm = self._centred(tokens), name + "patch_embed.norm"
        eps = config.embed_norm_eps
        x = layers.norm(x, norm, eps, affine=not is_centred, centred=is_centred)
        if is_centred:
            factor, shift = layers.pair(norm)
            # All blocks of the stage add to what it gives.
            with self._g.unquantised():
                x = layers.pointwise(to_image(x, tokens), *centring((np.diag(factor), shift)))
            x = to_tokens(x, tokens)
        found: Matches | None = None
        reuse = self._plan.stages[number].reuse
        for block in range(config.depths[number]):
            known = found if reuse and block % reuse else None
            part = f"{name}blocks.{block}."
            y, found = self._attention(x, part, number, tokens, known)
            x = x + y
            x = x + self._mix_ffn(x, part, number, tokens)
        return layers.norm(x, name + "norm", config.norm_eps, centred=is_centred), tokens

    def _centred(self, tokens: Tokens) -> bool:
        """Whether the mean of each token between a stage's blocks is zero: norms only divide."""
        return self._traits.root_mean_square and tokens.channels <= _NARROW

    def _centring_pair(self, name: str, tokens: Tokens) -> Pair:
        """Weight and bias of a layer, which centres what it gives where norms only divide."""
        layer = self._layers.pair(name)
        return centring(layer) if self._centred(tokens) else layer

    def _attention(
        self, x: Value, block: str, number: int, tokens: Tokens, known: Matches | None
    ) -> tuple[Value, Matches]:
        g, layers, config, merge = self._g, self._layers, self._config, self._plan.stages[number]
        batch, dim, heads = tokens.batch, tokens.channels, config.heads[number]
        ratio, name = config.sr_ratios[number], block + "attention."
        # Matching compares what the norm gives; all else that reads it is linear.
        readers = (merge.q, merge.kv) if ratio == 1 else (merge.q,)
        compared = any(isinstance(reader, BipartiteMatching) for reader in readers)
        norm = None if compared or g.form == "int8" else block + "norm1"
        is_centred, eps = self._centred(tokens), config.norm_eps
        x = layers.norm(x, block + "norm1", eps, affine=norm is None, centred=is_centred)
        keys, key_tokens = x, tokens
        if ratio > 1:
            rows, columns = (side // ratio for side in tokens.grid)
            key_tokens = Tokens(batch, (rows, columns), dim)
            reduced = layers.conv(to_image(x, tokens), *layers.pair(name + "sr", norm), ratio)
            keys = to_tokens(reduced, key_tokens)
            keys = layers.norm(keys, name + "sr_norm", config.embed_norm_eps)
        found = known or Matches(
            kv=self._match(merge.kv, keys, key_tokens, name + "kv"),
            q=self._match(merge.q, x, tokens, name + "q"),
        )
        queries, logs = found.q.merge(x) if found.q else x, None
        if found.kv:
            keys = found.kv.merge(keys)
            if merge.kv and merge.kv.proportional:
                logs = found.kv.log_sizes()

        scale = np.float32((dim // heads) ** -0.5)
        q_weight, q_bias = layers.pair(name + "q", norm)
        kv_weight, kv_bias = layers.pair(name + "kv", norm if ratio == 1 else None)
        (k_weight, v_weight), (k_bias, v_bias) = np.split(kv_weight, 2), np.split(kv_bias, 2)
        out_weight, out_bias = self._centring_pair(name + "proj", tokens)
        # What a single head weights the values with sums to one: they can be projected before.
        projected = heads == 1 and g.form != "int8"
        if projected:
            v_weight, v_bias = out_weight @ v_weight, out_weight @ v_bias + out_bias
        projections = Projections(
            (q_weight * scale, q_bias * scale), (k_weight, k_bias), (v_weight, v_bias), heads
        )
        out = attention(layers, queries, keys, batch, projections, logs, self._traits.native)
        if not projected:
            # Not where it is unmerged before it is added.
            adds = self._traits.adding_convolutions and not found.q
            out = layers.linear(out, out_weight, out_bias, by_convolution=adds)
        return found.q.unmerge(out) if found.q else out, found

    def _match(self, merge: Merge | None, x: Value, tokens: Tokens, name: str) -> Match | None:
        name += ".group"
        found = match(self._g, merge, x, tokens, Value(self._g, name) if self._given else None)
        if isinstance(found, Groups):
            self.matched[name] = found.group, tokens
        return found

    def _mix_ffn(self, x: Value, block: str, number: int, tokens: Tokens) -> Value:
        g, layers, name, (height, width) = self._g, self._layers, block + "ffn.", tokens.grid
        norm = None if g.form == "int8" else block + "norm2"
        is_centred, eps = self._centred(tokens), self._config.norm_eps
        x = layers.norm(x, block + "norm2", eps, affine=norm is None, centred=is_centred)
        fc1, fc2 = layers.pair(name + "fc1", norm), self._centring_pair(name + "fc2", tokens)
        hidden = tokens.channels * self._config.mlp_ratios[number]
        bands: list[tuple[Any, Any]] = [(0, height)]
        if (
            g.on_processor
            and isinstance(height, int)
            and isinstance(width, int)
            and isinstance(tokens.batch, int)
            and 2 * 4 * tokens.channels * hidden <= _BANDED_WEIGHTS
        ):
            bands = _bands(height, self._traits.value_bytes * tokens.batch * width * hidden)
        parts = []
        for first, end in bands:
            # The convolution reads one row more on each side, or zeros beyond the edge.
            above, below = int(first > 0), int(end is not height and end < height)
            rows, y = height, x
            if len(bands) > 1:
                rows = end + below - (first - above)
                y = g.cut(x, 1, (first - above) * width, (end + below) * width)
            y = to_image(y, Tokens(tokens.batch, (rows, width), tokens.channels))
            y = layers.pointwise(y, *fc1)
            y = layers.depthwise_gelu(y, name + "dwconv", 1 - above, 1 - below, self._traits.native)
            y = layers.pointwise(y, *fc2)
            rows = end - first if first else end
            parts.append(to_tokens(y, Tokens(tokens.batch, (rows, width), tokens.channels)))
        return parts[0] if len(parts) == 1 else g.op("Concat", *parts, axis=1)


def _bands(height: int, row: int) -> list[tuple[int, int]]:
    """Rows (first, end) that are worked on together, where a row takes so many bytes."""
    if height * row <= _HIDDEN_WHOLE:
        return [(0, height)]
    rows = max(_HIDDEN_BAND // row, -(-height // _MOST_BANDS))
    return [(first, min(first + rows, height)) for first in range(0, height, rows)]
