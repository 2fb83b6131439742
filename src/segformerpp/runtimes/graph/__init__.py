"""The network as an ONNX graph, for every runtime but PyTorch and for export."""

from segformerpp.runtimes.graph.build import Interface, build

__all__ = ["Interface", "build"]
