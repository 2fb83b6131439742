"""Operators of our own beside what OpenVINO computes the same with, at shapes of B0 and B5.

    python benchmarks/operators.py

In f32 and, on processors that have it, bf16 and int8, on random numbers, in turns. `ratio` is the
median of ours over that of OpenVINO's, which computes both in bf16 in quantised networks, too;
1024x1024 images, `none`.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import numpy as np
from onnx import TensorProto, helper
from openvino import opset13 as opset
from rich.console import Console
from rich.table import Table

from segformerpp.benchmark.run import machine
from segformerpp.runtimes.graph.attention import Projections, attention
from segformerpp.runtimes.graph.builder import Form, Graph, Value
from segformerpp.runtimes.graph.layers import Layers
from segformerpp.runtimes.int8_native import use_quantised_depthwise
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


def network(
    inputs: list[tuple[int, ...]], write: Write, native: str, form: Form = "processor"
) -> ov.Model:
    """What is to be computed."""
    rng = np.random.default_rng(0)
    g = Graph(form)
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
    return core().read_model(model.SerializeToString())


def quantised_convolution(shape: tuple[int, ...]) -> ov.Model:
    """The depthwise convolution and GELU, quantised as nncf does it."""
    height, width, channels = shape
    rng = np.random.default_rng(0)
    x = opset.parameter([1, height, width, channels], np.float32, "x0")
    image = opset.transpose(x, np.array([0, 3, 1, 2]))
    step = np.full((1, channels, 1, 1), 1 / 64, np.float32)
    image = opset.fake_quantize(image, *(end * step for end in (-128, 127) * 2), 256)
    taps = rng.integers(-127, 128, (channels, 1, 1, 3, 3), np.int8)
    weight = opset.multiply(opset.convert(taps, "f32"), step.reshape(-1, 1, 1, 1, 1))
    y = opset.group_convolution(image, weight, [1, 1], [1, 1], [1, 1], [1, 1])
    y = opset.gelu(opset.add(y, np.zeros_like(step)), "erf")
    y = opset.fake_quantize(y, *(np.float32(end / 32) for end in (-6, 249) * 2), 256)
    reader = opset.multiply(
        opset.convert(np.ones((32, channels, 1, 1), np.int8), "f32"), np.float32(0.01)
    )
    y = opset.convolution(y, reader, [1, 1], [0, 0], [0, 0], [1, 1])
    return ov.Model([y], [x], "convolution")


def timed(model: ov.Model, precision: str, counted: tuple[str, ...]) -> Callable[[], float]:
    """What computes it, on random numbers, and tells how long nodes of some types took, in ms."""
    rng = np.random.default_rng(0)
    options = {
        "INFERENCE_PRECISION_HINT": ov.Type.f32 if precision == "f32" else ov.Type.bf16,
        "PERFORMANCE_HINT": "LATENCY",
        "ENABLE_CPU_PINNING": False,
        "PERF_COUNT": True,
    }
    request = core().compile_model(model, "CPU", options).create_infer_request()
    shapes = [tuple(value.shape) for value in model.inputs]
    numbers = [rng.normal(size=shape, scale=0.5).astype(np.float32) for shape in shapes]

    def milliseconds() -> float:
        request.infer(numbers, share_inputs=True, share_outputs=True)
        # Not what hands the numbers over and casts them: the operator's neighbours in a network do.
        nodes = [n for n in request.get_profiling_info() if n.node_type in counted]
        return sum(node.real_time.total_seconds() * 1e3 for node in nodes)

    return milliseconds


def models(
    name: str, shape: tuple[int, ...], inputs: list[tuple[int, ...]], write: Write, precision: str
) -> tuple[ov.Model, ov.Model, tuple[str, ...]]:
    """With OpenVINO's kernels, with operators of our own, and the types of OpenVINO's nodes."""
    if precision != "int8":
        found = ("Subgraph", "GroupConvolution")
        return network(inputs, write, ""), network(inputs, write, precision), found
    if name == "attention":
        plain, ours = (network(inputs, write, native, "int8") for native in ("", "bf16"))
        return plain, ours, ("Subgraph",)  # not the projections
    plain, ours = quantised_convolution(shape), quantised_convolution(shape)
    use_quantised_depthwise(ours)
    return plain, ours, ("GroupConvolution",)  # GELU is in it; a subgraph quantises the image


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
    able = native_precisions()
    for name, shape, inputs, write in cases:
        for precision in (*able, "int8") if "bf16" in able else able:
            plain, native, counted = models(name, shape, inputs, write, precision)
            theirs = timed(plain, precision, counted)
            ours = timed(native, precision, ("Reference",))
            times = [(theirs(), ours()) for _ in range(rounds)][2:]
            a, b = (statistics.median(column) for column in zip(*times, strict=True))
            row = [name, "x".join(map(str, shape)), precision]
            table.add_row(*row, f"{a:.2f}", f"{b:.2f}", f"{b / a:.2f}")
    Console().print(table, machine()["processor"])


if __name__ == "__main__":
    main()
