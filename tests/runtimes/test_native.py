"""Operators of our own compute what PyTorch's layers do, and OpenVINO's are used without them."""

import ctypes
import logging
import platform
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from segformerpp.checkpoints import Checkpoint
from segformerpp.runtimes import native, processor
from segformerpp.runtimes.graph.head import _packed
from segformerpp.runtimes.native import SWITCH, native_precisions
from segformerpp.runtimes.openvino import OpenvinoRuntime
from segformerpp.runtimes.openvino_core import core, ov
from tests.runtimes.graph.parity import network

PRECISIONS = native_precisions()
needed = pytest.mark.skipif(
    not PRECISIONS, reason="a processor without AVX-512, or no C++ compiler"
)
TOLERANCE = {"f32": 2e-5, "bf16": 0.03}  # bf16 has 8 bits
one_of = st.sampled_from(PRECISIONS or ("f32",))


def values(seed: int, *shape: int, scale: float = 1.0) -> np.ndarray:
    return (np.random.default_rng(seed).normal(size=shape) * scale).astype(np.float32)


def rounded(x: np.ndarray, precision: str) -> np.ndarray:
    """What is left of numbers in a precision."""
    return torch.from_numpy(x).bfloat16().float().numpy() if precision == "bf16" else x


def computed(
    kind: str, precision: str, cast: tuple[int, ...], *inputs: np.ndarray, **attributes: Any
) -> Any:
    """What an operator gives; some inputs are in that precision, too."""
    names = [f"x{i}" for i in range(len(inputs))]
    nodes = []
    read = list(names)
    if precision == "bf16":
        for i in cast:
            read[i] += "_bf16"
            nodes.append(helper.make_node("Cast", [names[i]], [read[i]], to=TensorProto.BFLOAT16))
    nodes += [
        helper.make_node(kind, read, ["raw"], **attributes),
        helper.make_node("Cast", ["raw"], ["y"], to=TensorProto.FLOAT),
    ]
    infos = [
        helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(x.dtype), x.shape)
        for name, x in zip(names, inputs, strict=True)
    ]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    graph = helper.make_graph(nodes, "operator", infos, [out])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    options = {"INFERENCE_PRECISION_HINT": ov.Type.f32, "INFERENCE_NUM_THREADS": 2}
    compiled = core().compile_model(core().read_model(model.SerializeToString()), "CPU", options)
    return compiled(list(inputs))[0]


@needed
@settings(max_examples=40)
@given(
    precision=one_of,
    batch=st.integers(1, 2),
    queries=st.integers(1, 110),
    keys=st.integers(1, 150),
    heads=st.integers(1, 3),
    channels=st.sampled_from([8, 16, 24, 32, 64, 128]),
    logs=st.sampled_from([None, 1, "batch"]),
    scale=st.sampled_from([0.1, 1.0, 6.0]),
    rising=st.booleans(),
    seed=st.integers(0, 99),
)
def test_attention(
    precision: str, batch: int, queries: int, keys: int, heads: int, channels: int,
    logs: str | int | None, scale: float, rising: bool, seed: int,
) -> None:  # fmt: skip
    """Of any size; logits may be large, and grow from key to key."""
    wide = heads * channels
    q = rounded(values(seed, batch, queries, wide, scale=scale * channels**-0.5), precision)
    k = values(seed + 1, batch, keys, wide)
    if rising:
        k *= np.linspace(0, 3, keys, dtype=np.float32)[:, None]
    k, v = rounded(k, precision), rounded(values(seed + 2, batch, keys, wide), precision)
    more = [] if logs is None else [values(seed + 3, batch if logs == "batch" else 1, keys)]
    result = computed("SoftmaxAttention", precision, (0, 1, 2), q, k, v, *more, heads=heads)

    def split(x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(x).double().unflatten(2, (heads, channels)).transpose(1, 2)

    logits = split(q) @ split(k).mT
    if more:
        logits = logits + torch.from_numpy(more[0]).double()[:, None, None]
    expected = (logits * np.log(2)).softmax(-1) @ split(v)
    error = np.abs(result - expected.transpose(1, 2).flatten(2).numpy()).max()
    assert error < TOLERANCE[precision]


@needed
@settings(max_examples=30)
@given(
    precision=one_of,
    batch=st.integers(1, 2),
    height=st.integers(2, 9),
    width=st.integers(1, 14),
    channels=st.sampled_from([16, 32, 48, 128]),
    above=st.integers(0, 1),
    below=st.integers(0, 1),
    scale=st.sampled_from([0.3, 3.0]),
    seed=st.integers(0, 99),
)
def test_depthwise_convolution_and_gelu(
    precision: str, batch: int, height: int, width: int, channels: int, above: int, below: int,
    scale: float, seed: int,
) -> None:  # fmt: skip
    if height + above + below < 3:
        above = 1
    x = rounded(values(seed, batch, height, width, channels, scale=scale), precision)
    weight, bias = values(seed + 1, 9, channels, scale=0.5), values(seed + 2, channels)
    sides = {"above": above, "below": below}
    result = computed("DepthwiseGelu", precision, (0,), x, weight, bias, **sides)
    image = torch.from_numpy(x).double().permute(0, 3, 1, 2)
    image = torch.nn.functional.pad(image, (1, 1, above, below))
    taps = torch.from_numpy(weight).double().T.reshape(channels, 1, 3, 3)
    out = torch.nn.functional.conv2d(image, taps, torch.from_numpy(bias).double(), groups=channels)
    expected = torch.nn.functional.gelu(out).permute(0, 2, 3, 1).numpy()
    assert result.shape == expected.shape
    allowed = {"f32": 3e-6, "bf16": 5e-3}[precision] * (1 + np.abs(expected))
    assert (np.abs(result - expected) < allowed).all()


@needed
@settings(max_examples=30)
@given(
    precision=one_of,
    batch=st.integers(1, 2),
    size=st.tuples(st.integers(1, 11), st.integers(1, 30)),
    coarser=st.lists(st.tuples(st.integers(1, 9), st.integers(1, 15)), min_size=3, max_size=3),
    depth=st.sampled_from([2, 32, 64]),
    features=st.sampled_from([32, 96]),
    classes=st.sampled_from([1, 11, 16, 17, 32, 40]),
    seed=st.integers(0, 99),
)
def test_decode_head(
    precision: str, batch: int, size: tuple[int, int], coarser: list[tuple[int, int]], depth: int,
    features: int, classes: int, seed: int,
) -> None:  # fmt: skip
    x = rounded(values(seed, batch, *size, depth), precision)
    maps = [rounded(values(seed + i, batch, *at, features), precision) for i, at in
            enumerate(coarser, 1)]  # fmt: skip
    weight = rounded(values(seed + 4, features, depth, scale=depth**-0.5), precision)
    classifier = rounded(values(seed + 5, classes, features, scale=features**-0.5), precision)
    bias, more = values(seed + 6, classes), -classes % 32
    packed = (_packed(w, precision) for w in (weight, np.pad(classifier, ((0, more), (0, 0)))))
    inputs = [x, next(packed), *maps, next(packed), np.pad(bias, (0, more))]
    result = computed("DecodeHead", precision, (0, 2, 3, 4), *inputs, classes=classes)
    total = torch.from_numpy(x @ weight.T).double()
    for image in maps:
        wide = torch.from_numpy(image).double().permute(0, 3, 1, 2)
        resized = torch.nn.functional.interpolate(wide, size, mode="bilinear")
        total = total + resized.permute(0, 2, 3, 1)
    expected = total.relu().numpy() @ classifier.T + bias
    assert np.abs(result - expected).max() < {"f32": 1e-5, "bf16": 0.05}[precision]


@needed
@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize(
    "plan", ["none", "kv1:mode=n2d,sx=2,sy=2,proportional=true q1:mode=n1d,s=2"]
)
def test_networks_with_and_without(kind: str, plan: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same logits; operators of our own wherever they fit."""
    model = network(kind, head_dim=32)
    model.merge_plan = plan
    runtime = OpenvinoRuntime(Checkpoint.of_model(model), "f32")
    x = values(0, 2, 3, 131, 96)
    ours = runtime(x)
    kinds = [op.get_type_name() for op in runtime._network(x.shape, "f32", "none", 1).get_ops()]
    blocks = sum(model.config.depths)
    assert [kinds.count(name) for name in ("SoftmaxAttention", "DepthwiseGelu", "DecodeHead")] == [
        *(blocks, blocks, 1)
    ]
    monkeypatch.setattr("segformerpp.runtimes.openvino.native_precisions", tuple)
    without = OpenvinoRuntime(Checkpoint.of_model(model), "f32")
    assert "SoftmaxAttention" not in {
        op.get_type_name() for op in without._network(x.shape, "f32", "none", 1).get_ops()
    }
    logits = without(x)
    assert np.linalg.norm(ours - logits) < 1e-5 * np.linalg.norm(logits)


@pytest.fixture
def afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is compiled yet, on a processor that is able; OpenVINO keeps what it has."""

    def add_extension(path: str) -> None:
        try:
            ctypes.CDLL(path)
        except OSError as error:
            raise RuntimeError(error) from None

    monkeypatch.setattr(native, "core", lambda: SimpleNamespace(add_extension=add_extension))
    monkeypatch.setenv("SEGFORMERPP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(native, "instructions", lambda: frozenset(native._NEEDED))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return tmp_path


def found() -> tuple[str, ...]:
    return native_precisions.__wrapped__()


@needed
def test_without_bf16(afresh: Path) -> None:
    assert found() == ("f32",)
    assert found() == ("f32",)  # from the cache


def test_other_machines(afresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_compiled", pytest.fail)
    with monkeypatch.context() as patch:
        patch.setenv(SWITCH, "off")
        assert found() == ()
    with monkeypatch.context() as patch:
        patch.setattr(platform, "machine", lambda: "aarch64")
        assert found() == ()
    with monkeypatch.context() as patch:
        patch.setattr(native, "instructions", lambda: frozenset({"avx2"}))
        assert found() == ()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert found() == ()


@pytest.mark.parametrize("script", ["echo 'no such header' >&2; exit 1", 'touch "$7"'])
def test_compilers_that_fail(
    script: str, afresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Said once; a library that is none is refused."""
    calls, compiler = afresh / "calls", afresh / "compiler"
    compiler.write_text(f"#!/bin/sh\necho called >> {calls}\nfor last; do :; done\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with caplog.at_level(logging.INFO, "segformerpp"):
        assert found() == ()
        assert found() == ()
    assert calls.read_text() == "called\n"
    assert "no operators of our own" in caplog.text


def test_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_INFO", tmp_path / "cpuinfo")
    assert processor.instructions() == frozenset()
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx512f\n")
    assert processor.instructions() == {"fpu", "avx512f"}
