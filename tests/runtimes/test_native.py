"""Operators of our own compute what PyTorch's layers do, and OpenVINO's are used without them."""

import ctypes
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
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

TOLERANCE = {"f32": 2e-5, "bf16": 0.03}  # bf16 has 8 bits
each_precision = pytest.mark.parametrize("precision", ["f32", "bf16"])


def need(precision: str) -> None:
    if precision not in native_precisions():
        pytest.skip(f"no AVX-512 for {precision}, or no C++ compiler")


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


def in_bytes(
    q: np.ndarray, k: np.ndarray, heads: int, channels: int
) -> tuple[np.ndarray, np.ndarray]:
    """What is left of queries and keys: the steps of keys are their channel's, those of queries,
    once they are multiplied with these, the query's."""
    batch, count = k.shape[:2]
    steps, steps_of_queries, one = np.float32(255), np.float32(127), np.float32(1)
    k = k.reshape(batch, count, heads, channels)
    ranges = np.maximum(np.ptp(k, axis=1, keepdims=True), np.float32(1e-30))
    keys = np.round((k - k.min(axis=1, keepdims=True)) * (steps / ranges))
    queries = q.reshape(batch, -1, heads, channels) * (ranges * (one / steps))
    most = np.maximum(np.abs(queries).max(axis=3, keepdims=True), np.float32(1e-30))
    whole = np.round(queries * (steps_of_queries / most)).astype(np.float64)
    queries = whole * (most * (one / steps_of_queries))
    return queries.reshape(q.shape), keys.reshape(batch, count, -1)


@pytest.mark.parametrize("precision", ["f32", "bf16", "bytes"])
@settings(max_examples=40)
@given(
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
    kept = "bf16" if precision == "bytes" else precision
    need(kept)
    wide = heads * channels
    q = rounded(values(seed, batch, queries, wide, scale=scale * channels**-0.5), kept)
    k = values(seed + 1, batch, keys, wide)
    if rising:
        k *= np.linspace(0, 3, keys, dtype=np.float32)[:, None]
    k, v = rounded(k, kept), rounded(values(seed + 2, batch, keys, wide), kept)
    more = [] if logs is None else [values(seed + 3, batch if logs == "batch" else 1, keys)]
    options = {"heads": heads, "in_bytes": int(precision == "bytes")}
    result = computed("SoftmaxAttention", kept, (0, 1, 2), q, k, v, *more, **options)
    if precision == "bytes":
        q, k = in_bytes(q, k, heads, channels)

    def split(x: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(x).double().unflatten(2, (heads, channels)).transpose(1, 2)

    logits = split(q) @ split(k).mT
    if more:
        logits = logits + torch.from_numpy(more[0]).double()[:, None, None]
    expected = (logits * np.log(2)).softmax(-1) @ split(v)
    error = np.abs(result - expected.transpose(1, 2).flatten(2).numpy()).max()
    assert error < TOLERANCE[kept]


def test_bytes_are_near_what_they_stand_for() -> None:
    need("bf16")
    q, k, v = (rounded(values(i, 1, 300, 64), "bf16") for i in range(3))
    q *= np.float32(64**-0.5)
    exact, near = (
        computed("SoftmaxAttention", "bf16", (0, 1, 2), q, k, v, heads=2, in_bytes=i)
        for i in range(2)
    )
    assert 0 < np.linalg.norm(near - exact) < 0.02 * np.linalg.norm(exact)


@each_precision
@settings(max_examples=30)
@given(
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
    need(precision)
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


@settings(max_examples=40)
@given(
    batch=st.integers(1, 2),
    height=st.integers(1, 9),
    width=st.integers(1, 9),
    channels=st.sampled_from([64, 192]),
    step=st.sampled_from([0.002, 0.011, 0.03, 0.9]),
    zero=st.sampled_from([0, 6, 120]),
    seed=st.integers(0, 99),
)
def test_quantised_depthwise_convolution_and_gelu(
    batch: int, height: int, width: int, channels: int, step: float, zero: int, seed: int
) -> None:
    """Half a step off, what the curve is off, and a little; what has no byte becomes the last."""
    need("bf16")
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 256, (batch, height, width, channels), np.uint8)
    taps = rng.integers(-127, 128, (9, channels), np.int8)
    zeros = rng.integers(0, 256, channels, np.uint8)
    factor = rng.uniform(0.1, 2, channels).astype(np.float32) * np.float32(step / 300)
    bias, sums = values(seed, channels), taps.sum(axis=0, dtype=np.float32) * zeros
    shift = bias - factor * sums
    inputs = x, taps, factor, shift, zeros
    result = computed("QuantisedDepthwiseGelu", "f32", (), *inputs, step=step, zero=zero)
    image = torch.from_numpy(x - zeros.astype(np.float64)).permute(0, 3, 1, 2)
    weight = torch.from_numpy(taps * factor.astype(np.float64)).T.reshape(channels, 1, 3, 3)
    out = torch.nn.functional.conv2d(
        image, weight, torch.from_numpy(bias).double(), padding=1, groups=channels
    )
    steps = torch.nn.functional.gelu(out).permute(0, 2, 3, 1).numpy() / step + zero
    assert np.abs(result - steps.clip(0, 255)).max() < 0.54 + 5e-4 / step


@each_precision
@settings(max_examples=30)
@given(
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
    need(precision)
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


@each_precision
@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize(
    "plan", ["none", "kv1:mode=n2d,sx=2,sy=2,proportional=true q1:mode=n1d,s=2"]
)
def test_networks_with_and_without(
    kind: str, plan: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same logits; operators of our own wherever they fit."""
    need(precision)
    model = network(kind, head_dim=32)
    model.merge_plan = plan
    runtime = OpenvinoRuntime(Checkpoint.of_model(model), precision)
    x = values(0, 2, 3, 131, 96)
    ours = runtime(x)
    kinds = [op.get_type_name() for op in runtime._network(x.shape, precision, "none", 1).get_ops()]
    blocks = sum(model.config.depths)
    found = [kinds.count(name) for name in ("SoftmaxAttention", "DepthwiseGelu", "DecodeHead")]
    assert found == [blocks, blocks, 1]
    monkeypatch.setattr("segformerpp.runtimes.openvino.native_precisions", tuple)
    without = OpenvinoRuntime(Checkpoint.of_model(model), "f32")
    assert "SoftmaxAttention" not in {
        op.get_type_name() for op in without._network(x.shape, "f32", "none", 1).get_ops()
    }
    logits = without(x)
    error = np.linalg.norm(ours - logits) / np.linalg.norm(logits)
    assert error < {"f32": 1e-5, "bf16": 0.04}[precision]


@each_precision
def test_nan_in_a_token_reaches_all_queries(precision: str) -> None:
    need(precision)
    q, x = values(0, 1, 3, 16), values(1, 1, 9, 16)
    x[0, 4] = np.nan
    inputs = "SoftmaxAttention", precision, (0, 1, 2), q, x, x
    assert np.isnan(computed(*inputs, heads=1, in_bytes=0)).all()


def test_nan_stays_nan() -> None:
    need("f32")
    x, sides = np.full((1, 1, 1, 16), np.nan, np.float32), {"above": 1, "below": 1}
    assert np.isnan(
        computed("DepthwiseGelu", "f32", (), x, values(0, 9, 16), values(1, 16), **sides)
    ).all()
    weight, bias = _packed(values(2, 32, 16), "f32"), values(3, 32)
    maps = [values(i, 1, 1, 1, 32) for i in range(3)]
    classifier = _packed(values(4, 32, 32), "f32")
    logits = computed("DecodeHead", "f32", (), x, weight, *maps, classifier, bias, classes=5)
    assert np.isnan(logits).all()


@pytest.mark.parametrize(
    ("shapes", "heads"),
    [
        ([(1, 9, 16), (1, 5, 16), (1, 6, 16)], 1),
        ([(1, 9, 16), (1, 5, 24), (1, 5, 24)], 1),
        ([(1, 9, 24), (1, 5, 24), (1, 5, 24)], 2),
        ([(2, 9, 16), (1, 5, 16), (1, 5, 16)], 1),
        ([(1, 9, 16), (1, 5, 16), (1, 5, 16), (1, 9)], 1),
        ([(3, 9, 16), (3, 5, 16), (3, 5, 16), (2, 5)], 1),
    ],
)
def test_shapes_that_do_not_fit(shapes: list[tuple[int, ...]], heads: int) -> None:
    need("f32")
    with pytest.raises(RuntimeError, match=r"SoftmaxAttention|Check"):
        computed(
            "SoftmaxAttention", "f32", (), *(values(0, *s) for s in shapes), heads=heads, in_bytes=0
        )


@pytest.mark.parametrize(
    ("channels", "attributes"),
    [
        (32, {}),
        (64, {"step": 4.1}),
        (64, {"step": 1e-4}),
        (64, {"zero": 256}),
        (64, {"step": -1.0}),
    ],
)
def test_quantised_convolutions_that_do_not_fit(channels: int, attributes: dict[str, Any]) -> None:
    need("bf16")
    x, taps = np.zeros((1, 2, 2, channels), np.uint8), np.zeros((9, channels), np.int8)
    floats, zeros = np.zeros(channels, np.float32), np.zeros(channels, np.uint8)
    options = {"step": 0.01, "zero": 3} | attributes
    inputs = x, taps, floats, floats, zeros
    with pytest.raises(RuntimeError, match=r"QuantisedDepthwiseGelu|Check"):
        computed("QuantisedDepthwiseGelu", "f32", (), *inputs, **options)
    with pytest.raises(RuntimeError, match=r"SoftmaxAttention|Check"):  # f32 in bytes
        computed("SoftmaxAttention", "f32", (), *[values(0, 1, 9, 16)] * 3, heads=1, in_bytes=1)


ANOTHER_START = """
import logging, sys
import numpy as np
from segformerpp.checkpoints import open_checkpoint
from segformerpp.runtimes.openvino import OpenvinoRuntime
logging.basicConfig(level=logging.INFO)
runtime = OpenvinoRuntime(open_checkpoint(sys.argv[1], "none"), "f32")
made = []
runtime._network = (lambda make: lambda *a: made.append(1) or make(*a))(runtime._network)
runtime(np.zeros((1, 3, 64, 64), np.float32))
print(len(made), runtime._traits("f32", 1).native or "-", "onnx" in sys.modules)
"""


def test_networks_in_the_cache(
    random_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read by other processes, with operators and without; only writing a graph imports ONNX."""
    need("f32")
    monkeypatch.setenv("SEGFORMERPP_CACHE", str(tmp_path))
    command, said = [sys.executable, "-c", ANOTHER_START, str(random_checkpoint)], []
    for switch in ("on", "on", "off", "off", "on"):
        done = subprocess.run(
            *(command,), env=os.environ | {SWITCH: switch}, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout.strip())
    expected = ["1 f32 True", "0 f32 False", "1 - True", "0 - False", "0 f32 False"]
    assert said == expected


@pytest.fixture
def afresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Nothing is compiled yet, on a processor that is able; OpenVINO keeps what it has."""

    def add_extension(path: str) -> None:
        copy = tmp_path / f"{len(list(tmp_path.iterdir()))}.so"
        copy.write_bytes(Path(path).read_bytes())
        try:
            ctypes.CDLL(str(copy))
        except OSError as error:
            raise RuntimeError(error) from None

    monkeypatch.setattr(native, "core", lambda: SimpleNamespace(add_extension=add_extension))
    monkeypatch.setenv("SEGFORMERPP_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv(SWITCH, raising=False)
    monkeypatch.setattr(native, "instructions", lambda: frozenset(native._NEEDED))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(platform, "machine", lambda: "x86_64")
    return tmp_path


def test_without_bf16(afresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor where OpenVINO has better instructions for it."""
    need("f32")
    assert native._find() == ("f32",)
    monkeypatch.setattr(native, "_compiled", pytest.fail)
    assert native._find() == ("f32",)  # from the cache
    full = frozenset({*native._NEEDED, *native._FOR_BF16})
    for able in (full | {native._AMX}, *(full - {name} for name in native._FOR_BF16)):
        monkeypatch.setattr(native, "instructions", lambda able=able: able)
        assert native._find() == ("f32",)


def test_other_machines(afresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "_compiled", pytest.fail)
    for name, value in ((SWITCH, "off"), ("SEGFORMERPP_CACHE", "off")):
        with monkeypatch.context() as patch:
            patch.setenv(name, value)
            assert native._find() == ()
    with monkeypatch.context() as patch:
        patch.setattr(platform, "machine", lambda: "aarch64")
        assert native._find() == ()
    with monkeypatch.context() as patch:
        patch.setattr(native, "instructions", lambda: frozenset({"avx2"}))
        assert native._find() == ()
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert native._find() == ()


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo 'no such header' >&2; exit 1", "no such header"),
        ("echo slowly >&2; exec sleep 5", "slowly"),
        ('while [ "$1" != -o ]; do shift; done; echo nonsense > "$2"', "file too short"),
    ],
)
def test_compilers_that_fail(
    script: str, said: str, afresh: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    fake_compiler(afresh, script, monkeypatch)
    monkeypatch.setattr(native, "_SECONDS", 0.5)
    with caplog.at_level(logging.INFO, "segformerpp"):
        assert native._find() == ()
    assert "no operators of our own: " in caplog.text
    assert said in caplog.text
    if "nonsense" not in script:  # remembered
        monkeypatch.setattr(native, "_compiled", pytest.fail)
        assert native._find() == ()


def fake_compiler(folder: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = folder / "compiler"
    compiler.write_text(f"#!/bin/sh\n{script}\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))


def test_no_place_for_temporary_files(
    afresh: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fake_compiler(afresh, "exit 0", monkeypatch)
    monkeypatch.setattr(tempfile, "tempdir", str(afresh / "absent"))
    with caplog.at_level(logging.INFO, "segformerpp"):
        assert native._find() == ()
    assert "absent" in caplog.text


def test_a_cache_that_cannot_be_written(afresh: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_compiler(afresh, "exit 0", monkeypatch)
    monkeypatch.setattr(native, "_compiled", pytest.fail)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert native._find() == ()


def test_instructions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processor, "_INFO", tmp_path / "cpuinfo")
    assert processor.instructions() == frozenset()
    (tmp_path / "cpuinfo").write_text("processor\t: 0\nflags\t\t: fpu avx512f\n")
    assert processor.instructions() == {"fpu", "avx512f"}
