"""From logits to label maps at the images' size, inside the graph."""

from __future__ import annotations

import numpy as np
from onnx import TensorProto

from segformerpp.arguments import Size
from segformerpp.runtimes.graph.builder import Dim, Graph, Value
from segformerpp.runtimes.graph.layers import resize

#: What full-size logits of one strip of rows may take, in bytes, and how many strips there are.
_STRIP_BYTES, _MOST_STRIPS = 5 * 2**19, 64


def label_map(
    g: Graph, logits: Value, batch: Dim, classes: int, source: Size | None, size: tuple[Dim, Dim]
) -> Value:
    """Logits (B, K, h, w) -> the class with the highest at each pixel, (B, H, W).

    Bilinear, with pixel centres at halves; of equal logits the lower class wins.

    Args:
        g: the graph.
        logits: of the network.
        batch: B.
        classes: K.
        source: (h, w); None where it follows the image, and full-size logits exist at once.
        size: (H, W).
    """
    height, width = size
    if source is None or not isinstance(height, int) or not isinstance(width, int):
        return _labels(g, _highest(g, resize(g, logits, batch, classes, size)), classes)
    logits = resize(g, logits, batch, classes, (source[0], width))
    row = 4 * classes * width * (batch if isinstance(batch, int) else 1)
    rows = max(_STRIP_BYTES // row, -(-height // _MOST_STRIPS))
    strips = []
    for top in range(0, height, rows):
        y = (np.arange(top, min(top + rows, height)) + 0.5) * source[0] / height - 0.5
        y = y.clip(0, source[0] - 1)
        upper = y.astype(np.int64)
        lower = np.minimum(upper + 1, source[0] - 1)
        weight = (y - upper).astype(np.float32)[:, None]
        first = int(upper[0])
        near = g.cut(logits, 2, first, int(lower[-1]) + 1)
        above, below = (g.op("Gather", near, index - first, axis=2) for index in (upper, lower))
        strips.append(_highest(g, above * (1 - weight) + below * weight))
    return _labels(g, strips[0] if len(strips) == 1 else g.op("Concat", *strips, axis=1), classes)


def _highest(g: Graph, logits: Value) -> Value:
    return g.op("ArgMax", logits, axis=1, keepdims=0)


def _labels(g: Graph, index: Value, classes: int) -> Value:
    return g.op("Cast", index, to=label_type(classes))


def label_type(classes: int) -> int:
    """The ONNX type of label maps: a byte where it suffices."""
    return TensorProto.UINT8 if classes <= 256 else TensorProto.UINT16
