"""The network as an ONNX graph, for every runtime but PyTorch and for export."""

from segformerpp.runtimes.graph.build import IMAGES, LABELS, LOGITS, Interface, build
from segformerpp.runtimes.graph.builder import Form

__all__ = ["IMAGES", "LABELS", "LOGITS", "Form", "Interface", "build"]
