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
from segformerpp.runtimes.graph.builder import OPSET, Form, Traits
from segformerpp.runtimes.graph.network import CENTRE

__all__ = [
    "BEFORE",
    "BEHIND",
    "CENTRE",
    "IMAGES",
    "LABELS",
    "LOGITS",
    "OPSET",
    "Form",
    "Interface",
    "MatchFlow",
    "Traits",
    "build",
]
