"""The network as an ONNX graph, for every runtime but PyTorch and for export."""

from segformerpp.runtimes.graph.build import (
    BEFORE,
    BEHIND,
    IMAGES,
    LABELS,
    LOGITS,
    Interface,
    MatchFlow,
    build,
)
from segformerpp.runtimes.graph.builder import OPSET, UNQUANTISED, Form

__all__ = [
    "BEFORE",
    "BEHIND",
    "IMAGES",
    "LABELS",
    "LOGITS",
    "OPSET",
    "UNQUANTISED",
    "Form",
    "Interface",
    "MatchFlow",
    "build",
]
