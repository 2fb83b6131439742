import sys
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from segformerpp import runtimes
from segformerpp.errors import MemoryLimitError, UsageError
from segformerpp.runtimes import onnxruntime as runtime_module
from segformerpp.runtimes.graph import build
from tests.models.test_segformer import tiny
from tests.runtimes.graph.parity import assert_agree, expected, images


def test_logits_are_torchs() -> None:
    model = tiny()
    model.merge_plan = "hq"
    runtime = runtimes.create(model, "onnxruntime", threads=1)
    assert (runtime.name, runtime.precision) == ("onnxruntime", "f32")
    assert (runtime.device, runtime.threads) == ("cpu", 1)
    inputs = [images(1, 131, 99), images(2, 64, 96), images(1, 131, 99)]
    with ThreadPoolExecutor(3) as pool:
        for x, logits in zip(inputs, pool.map(runtime, inputs), strict=True):
            assert_agree(logits, expected(model, x))


@pytest.mark.parametrize(("device", "form"), [("cpu", "onnxruntime"), ("cuda", "processor")])
def test_what_it_is_given(device: str, form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    runtime: Any = runtimes.create(tiny(), "onnxruntime")
    made: list[Any] = []

    def building(*arguments: Any, **more: Any) -> Any:
        made.append(more["form"])
        return build(*arguments, **more)

    monkeypatch.setattr(runtime_module, "build", building)
    runtime.device = device  # as far as it matters before there is a session
    session = runtime._prepare((1, 3, 64, 64), "none")
    assert made == [form]
    assert session.get_session_options().enable_mem_pattern is (device == "cuda")


def test_memory_that_does_not_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    runtime: Any = runtimes.create(tiny(), "onnxruntime")
    error = runtime._errors[0]("Failed to allocate memory for requested buffer of size 9")

    class Session:
        def get_inputs(self) -> list[SimpleNamespace]:
            return [SimpleNamespace(name="images")]

        def run(self, *_: object) -> None:
            raise error

    monkeypatch.setattr(runtime, "_session", lambda *_: Session())
    with pytest.raises(MemoryLimitError, match="1 x 64 x 32 pixels do not fit"):
        runtime(np.zeros((1, 3, 64, 32), np.float32))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"precision": "bf16"}, "precision: ONNX Runtime computes in f32 here, not 'bf16'"),
        ({"device": "mps"}, "device: ONNX Runtime has .*cpu.* here, not 'mps'"),
        ({"device": "cpu:3"}, "device: ONNX Runtime has .* here, not 'cpu:3'"),
        ({"device": "cpu:x"}, "device: ONNX Runtime has .* here, not 'cpu:x'"),
    ],
)
def test_what_is_refused(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        runtimes.create(tiny(), "onnxruntime", **arguments)


def test_a_package_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(UsageError, match=r"pip install 'segformerpp\[onnx\]'"):
        runtimes.create(tiny(), "onnxruntime")
