"""Operators of our own beside what OpenVINO computes the same with, at shapes of B0 and B5.

    python benchmarks/operators.py

In f32 and, on processors that have it, bf16, on random numbers, in turns. `ratio` is the median of
ours over that of OpenVINO's; 1024x1024 images, `none`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import TensorProto, helper
from rich.console import Console
from rich.table import Table

from segformerpp.benchmark.run import machine
from segformerpp.runtimes.graph.attention import Projections, attention
from segformerpp.runtimes.graph.builder import Graph, Value
from segformerpp.runtimes.graph.layers import Layers
from segformerpp.runtimes.native import native_precisions
from segformerpp.runtimes.openvino_core import core, ov

#: Queries, keys, channels of a head, heads: the stages of B0, and two of B5.
ATTENTION = (
    *((65536, 1024, 32, 1), (16384, 1024, 32, 2), (4096, 1024, 32, 5)),
    *((65536, 1024, 64, 1), (4096, 1024, 64, 5)),
)
#: Height, width and channels: a band of B0's first stage, and the third stage of B0 and B5.
CONVOLUTIONS = ((24, 256, 128), (64, 64, 640), (64, 64, 1280))

Write = Callable[[Layers, str], Value]


def attend(shape: tuple[int, ...]) -> tuple[list[tuple[int, ...]], Write]:
    """Attention; with projections that change nothing, but for what scales the queries."""
    count, others, channels, heads = shape
    width = channels * heads
    same = np.eye(width, dtype=np.float32), np.zeros(width, np.float32)
    projections = Projections(same, same, same, heads)

    def write(layers: Layers, native: str) -> Value:
        queries, keys = Value(layers.g, "x0"), Value(layers.g, "x1")
        return attention(layers, queries, keys, 1, projections, None, native)

    return [(1, count, width), (1, others, width)], write


def convolve(shape: tuple[int, ...]) -> tuple[list[tuple[int, ...]], Write]:
    """The depthwise convolution and GELU."""
    height, width, channels = shape

    def write(layers: Layers, native: str) -> Value:
        x = layers.g.transpose(Value(layers.g, "x0"), 0, 3, 1, 2)
        return layers.depthwise_gelu(x, "dwconv", 1, 1, native)

    return [(1, height, width, channels)], write


def compiled(inputs: list[tuple[int, ...]], write: Write, native: str, precision: str) -> Any:
    """What computes it, once, on random numbers."""
    rng = np.random.default_rng(0)
    g = Graph()
    channels = inputs[0][-1]
    tensors = {
        "dwconv.weight": rng.normal(size=(channels, 1, 3, 3)).astype(np.float32),
        "dwconv.bias": rng.normal(size=channels).astype(np.float32),
    }
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    infos = [
        helper.make_tensor_value_info(f"x{i}", TensorProto.FLOAT, shape)
        for i, shape in enumerate(inputs)
    ]
    model = g.model(infos, [(write(Layers(g, tensors), native), out)], {})
    options = {
        "INFERENCE_PRECISION_HINT": {"f32": ov.Type.f32, "bf16": ov.Type.bf16}[precision],
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
    }
    network = core().read_model(model.SerializeToString())
    options["PERF_COUNT"] = True
    request = core().compile_model(network, "CPU", options).create_infer_request()
    numbers = [rng.normal(size=shape, scale=0.5).astype(np.float32) for shape in inputs]

    counted = ("Reference",) if native else ("Subgraph", "GroupConvolution")

    def milliseconds() -> float:
        request.infer(numbers, share_inputs=True, share_outputs=True)
        # Not what hands the numbers over and casts them: the operator's neighbours in a network do.
        nodes = [n for n in request.get_profiling_info() if n.node_type in counted]
        return sum(node.real_time.total_seconds() * 1e3 for node in nodes)

    return milliseconds


def main() -> None:
    """Measure, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=21)
    rounds = parser.parse_args().rounds
    table = Table("", "shape", "precision", "OpenVINO, ms", "ours, ms", "ratio")
    cases = [
        *(("attention", shape, *attend(shape)) for shape in ATTENTION),
        *(("convolution", shape, *convolve(shape)) for shape in CONVOLUTIONS),
    ]
    for name, shape, inputs, write in cases:
        for precision in native_precisions():
            ways = (compiled(inputs, write, native, precision) for native in ("", precision))
            theirs, ours = ways
            times = [(theirs(), ours()) for _ in range(rounds)][2:]
            a, b = (statistics.median(column) for column in zip(*times, strict=True))
            row = [name, "x".join(map(str, shape)), precision]
            table.add_row(*row, f"{a:.2f}", f"{b:.2f}", f"{b / a:.2f}")
    Console().print(table, machine()["processor"])


if __name__ == "__main__":
    main()
