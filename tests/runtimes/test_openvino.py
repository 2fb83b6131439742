import copy
import queue
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from importlib.resources import files
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
import torch
from PIL import Image

from segformerpp import cache, runtimes
from segformerpp.checkpoints import Checkpoint, open_checkpoint
from segformerpp.errors import MemoryLimitError, UsageError
from segformerpp.models import Segformer
from segformerpp.plans import PRESETS
from segformerpp.plans.strategies import warn_small_grid
from segformerpp.runtimes import openvino as openvino_runtime
from segformerpp.runtimes.openvino import OpenvinoRuntime, streams_of
from segformerpp.runtimes.openvino_core import core, divides_by_root_mean_square
from segformerpp.runtimes.precision import SHORTER_SIDE
from tests.models.test_segformer import tiny
from tests.runtimes.graph.parity import network

X = np.random.default_rng(0).normal(size=(3, 3, 131, 99)).astype(np.float32)


def expected(model: Segformer, x: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(x)).numpy()


@pytest.mark.parametrize(
    ("kind", "plan"),
    [
        *[("linear", plan) for plan in PRESETS],
        ("conv", "hq"),
        ("linear", "q14:mode=n1d,s=3 q3:mode=bsm,r=1,sx=2,sy=3 kv13:mode=n2d,sx=2,sy=3"),
    ],
)
def test_logits_are_torchs(kind: str, plan: str) -> None:
    """Odd sizes and batches too; where a close match went the other way, the same labels."""
    model = network(kind)
    model.merge_plan = plan
    reference = expected(model, X)
    logits = runtimes.create(model, "openvino", "f32")(X)
    assert logits.shape == reference.shape
    error = np.linalg.norm(logits - reference) / np.linalg.norm(reference)
    agreement = (logits.argmax(1) == reference.argmax(1)).mean()
    assert error < 1e-4 or (plan != "none" and agreement >= 0.999)


def test_what_suits_a_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bands, by threads and the size of values; nothing where it was not measured."""
    monkeypatch.setattr(openvino_runtime, "_HEAD_BAND", 20_000)
    monkeypatch.setattr(openvino_runtime, "native_precisions", tuple)
    shape = (1, 3, 259, 97)
    model = network("linear")
    model.merge_plan = "none"
    runtime = OpenvinoRuntime(Checkpoint.of_model(model), "f32", threads=2)
    graphs = [
        runtime._network(shape, "f32", "none", 1),
        runtime._network(shape, "f32", "none", 2),
        runtime._network(shape, "bf16", "none", 2),
        runtime._network(shape, "f16", "none", 1),
    ]
    runtime.device = "gpu"
    graphs.append(runtime._network(shape, "f32", "none", 1))
    kinds = [[op.get_type_name() for op in graph.get_ops()] for graph in graphs]
    assert [found.count("Interpolate") for found in kinds] == [3 * 3, 3 * 9, 3 * 3, 3, 3]
    has_powers = divides_by_root_mean_square()
    assert ["Power" in found for found in kinds] == [has_powers] * 3 + [False] * 2
    # A product in each band, and convolutions for what projects several heads.
    config = model.config
    projections = sum(d for d, heads in zip(config.depths, config.heads, strict=True) if heads > 1)
    products = [found.count("MatMul") for found in kinds]
    assert products[3:] == [products[0] - 3 + projections] * 2


def test_norms_of_few_channels_are_one_node() -> None:
    if not divides_by_root_mean_square():
        pytest.skip("OpenVINO has no such node on this processor")
    runtime = OpenvinoRuntime(open_checkpoint("camvid-b0", "none"), "f32")
    kinds = [
        op.get_rt_info()["layerType"].value
        for op in runtime._compiled((1, 3, 64, 96), "f32").get_runtime_model().get_ops()
    ]
    # Two stages of two blocks; the others keep theirs, as do keys.
    assert kinds.count("RMS") == 2 * (1 + 2 * 2 + 1)
    assert kinds.count("MVN") == 2 * (1 + 2 * 2 + 1) + 3 * 2


def test_bands_in_bf16(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their products are in bf16 too; a constant would keep them in f32."""
    if "BF16" not in core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("a processor without bf16")
    monkeypatch.setattr(openvino_runtime, "_HEAD_BAND", 20_000)
    model = network("linear")
    model.merge_plan = "none"
    runtime = OpenvinoRuntime(Checkpoint.of_model(model), "bf16", threads=2)
    graph = runtime._compiled((1, 3, 259, 97), "bf16").get_runtime_model()
    products = [
        op.get_rt_info()["runtimePrecision"].value for op in graph.get_ordered_ops()
        if op.get_rt_info()["layerType"].value == "MatMul"
    ]  # fmt: skip
    assert len(products) == 2
    assert set(products) == {"bf16"}


def test_shapes_and_threads() -> None:
    model = tiny()
    model.merge_plan = "hq"
    runtime = runtimes.create(copy.deepcopy(model), "openvino", "f32", threads=1)
    assert (runtime.name, runtime.precision, runtime.device) == ("openvino", "f32", "cpu")
    assert runtime.threads == 1
    inputs = [X[:1], X[:1, :, :64, :96], X[1:2]]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(runtime, inputs))
    for x, logits in zip(inputs, results, strict=True):
        np.testing.assert_allclose(logits, expected(model, x), rtol=1e-3, atol=1e-4)


def test_streams_divide_the_threads() -> None:
    assert [streams_of(threads) for threads in (0, 1, 2, 3, 4, 5, 6, 8, 16)] == [
        *(1, 1, 2, 3, 4, 1, 3, 4, 4)
    ]
    runtime = runtimes.create(tiny(), "openvino", "f32", threads=1)
    assert runtimes.parallel(runtime) is None
    assert runtimes.parallel(runtimes.create(tiny(), "torch", device="cpu")) is None


def test_in_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several at a time, of two shapes; where they would need much memory, none."""
    runtime = OpenvinoRuntime(Checkpoint.of_model(tiny()), "f32", threads=4)
    assert runtimes.parallel(runtime) is runtime
    assert runtime.streams == 4
    for shape in ((1, 3, 64, 99), (2, 3, 96, 96)):
        inputs = [X[i % 2 : i % 2 + shape[0], :, : shape[2], : shape[3]] for i in range(8)]
        reference = [runtime(x) for x in inputs]
        stream = runtime.stream(shape)
        assert stream
        with monkeypatch.context() as patch:
            patch.setattr(OpenvinoRuntime, "__call__", None)
            with ThreadPoolExecutor(runtime.streams) as pool:
                results = list(pool.map(stream, map(np.ascontiguousarray, inputs)))
        for logits, expected_logits in zip(results, reference, strict=True):
            np.testing.assert_allclose(logits, expected_logits, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(stream(X), runtime(X))  # of another shape
    monkeypatch.setattr(openvino_runtime, "_STREAMS_BYTES", 2**20)
    assert runtime.stream((1, 3, 64, 99)) is None


@pytest.mark.parametrize("when", ["compiled", "used"])
def test_streams_that_do_not_fit(monkeypatch: pytest.MonkeyPatch, when: str) -> None:
    """Are not tried again, and leave nothing behind."""
    runtime = OpenvinoRuntime(Checkpoint.of_model(tiny()), "f32", threads=2)
    calls = []

    class Request:
        def infer(self, *_: object, **__: object) -> None:
            raise MemoryError("std::bad_alloc")

    @lru_cache
    def streams(shape: tuple[int, ...]) -> queue.SimpleQueue[Request]:
        calls.append(shape)
        if when == "compiled":
            raise MemoryError("std::bad_alloc")
        requests: queue.SimpleQueue[Request] = queue.SimpleQueue()
        requests.put(Request())
        return requests

    monkeypatch.setattr(runtime, "_streams", streams)
    stream = runtime.stream(X.shape)
    assert (stream is None) == (when == "compiled")
    if stream:
        with pytest.raises(MemoryLimitError, match="3 x 131 x 99 pixels do not fit"):
            stream(X)
    assert runtime.stream(X.shape) is None
    assert calls == [X.shape]
    assert streams.cache_info().currsize == 0


def test_memory_that_does_not_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime = runtimes.create(tiny(), "openvino", "f32")
    for error in (MemoryError("std::bad_alloc"), RuntimeError("Failed to allocate 9 bytes")):

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(runtime, "_compiled", fail)
        with pytest.raises(MemoryLimitError, match="3 x 131 x 99 pixels do not fit"):
            runtime(X)


def test_what_is_refused() -> None:
    with pytest.raises(UsageError, match=r"device: OpenVINO has .*cpu.* here, not 'cuda'"):
        runtimes.create(tiny(), "openvino", device="cuda")
    with pytest.raises(UsageError, match="device: 'gpu' is not on this machine"):
        runtimes.create(tiny(), "torch", device="gpu")


def test_a_grid_that_is_too_small_is_said_every_time(
    random_checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the compiled network comes from the cache."""
    for _ in range(2):
        caplog.clear()
        warn_small_grid.cache_clear()
        checkpoint = open_checkpoint(random_checkpoint, "q4:mode=bsm,r=0.8,sx=3,sy=3")
        with caplog.at_level("WARNING", "segformerpp"):
            runtimes.create(checkpoint, "openvino", "f32")(X[:1, :, :64, :64])
        assert len(caplog.records) == 1
        assert "no whole cell of 3 x 3: nothing is merged there" in caplog.text


@pytest.mark.parametrize(("plan", "compared"), [("downsample", True), ("input_scale=0.05", False)])
def test_bf16_only_where_it_can_be_compared(
    plan: str, compared: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The photograph is too small for some plans; these must work all the same."""
    model = tiny()
    model.merge_plan = plan
    runtime = OpenvinoRuntime(Checkpoint.of_model(model), "f32")
    monkeypatch.setitem(runtime._hints, "bf16", ov.Type.f32)  # on machines without it, too
    assert runtime._choose(["f32", "bf16"]) == ("bf16" if compared else "f32")
    assert len(runtime._compiled) == 0


def test_the_photograph() -> None:
    with files("segformerpp").joinpath("runtimes", "street.jpg").open("rb") as file:
        assert min(Image.open(file).size) == SHORTER_SIDE


def test_what_is_kept_goes_with_all_the_code_that_made_it(random_checkpoint: Path) -> None:
    runtime = OpenvinoRuntime(open_checkpoint(random_checkpoint), "f32")
    key = runtime._key((1, 3, 64, 64), "f32")
    packages = ("runtimes", "plans", "checkpoints")
    assert key["code"] == [cache.code_version(package) for package in packages]
    assert key["config"] == runtime._checkpoint.config.to_dict()


SIGNALS = """
import gc, signal, sys, threading
from segformerpp import Predictor
import numpy as np

image = np.zeros((64, 64, 3), np.uint8)
signal.signal(signal.SIGINT, lambda *_: print("handled"))
made = [Predictor(sys.argv[1], runtime="openvino", merge=merge) for merge in ("none", "hq")]
for predict in made:
    predict(image)
del predict
made.pop(0)  # ended before the one whose stack for signals came later
gc.collect()
threading.Thread(target=made.clear).start()
gc.collect()
signal.raise_signal(signal.SIGINT)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="signals are POSIX's")
def test_signals_reach_python_when_networks_have_ended(random_checkpoint: Path) -> None:
    """OpenVINO's plugin used to leave Python with a stack for signals that had been freed."""
    command = [sys.executable, "-X", "faulthandler", "-c", SIGNALS, str(random_checkpoint)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, "handled\n"), ended.stderr


REPORTS = """
import sys
sys.addaudithook(lambda event, _: event in ("os.fork", "socket.connect") and print(event))
from segformerpp import Predictor
import numpy as np

Predictor(sys.argv[1], runtime="openvino", precision="f32")(np.zeros((64, 64, 3), np.uint8))
"""


def test_nothing_is_reported_to_anybody(random_checkpoint: Path) -> None:
    """OpenVINO sends reports from a process that it forks, which hung now and then."""
    command = [sys.executable, "-c", REPORTS, str(random_checkpoint)]
    ended = subprocess.run(command, check=False, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (0, ""), ended.stderr
