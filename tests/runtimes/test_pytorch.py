import copy
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segformerpp import runtimes
from segformerpp.errors import MemoryLimitError, UsageError
from segformerpp.models import Segformer
from tests.models.test_segformer import tiny
from tests.runtimes.graph.parity import assert_agree, expected, images

X = np.random.default_rng(0).normal(size=(2, 3, 50, 66)).astype(np.float32)


def test_logits_are_the_models(random_model: Segformer, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "segformerpp"):
        runtime = runtimes.create(copy.deepcopy(random_model), "torch", device="cpu")
    assert (runtime.name, runtime.precision, runtime.device) == ("torch", "f32", "cpu")
    assert "torch, f32 on cpu" in caplog.text
    logits = runtime(X)
    assert logits.dtype == np.float32
    with torch.no_grad():
        expected = random_model(torch.from_numpy(X)).numpy()
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


def test_compiled() -> None:
    """Where a close match went the other way, the same labels."""
    model = tiny()
    model.merge_plan = "hq"
    runtime = runtimes.create(copy.deepcopy(model), "torch-compiled", device="cpu")
    assert (runtime.name, runtime.precision) == ("torch-compiled", "f32")
    x = images(2, 130, 99)
    assert_agree(runtime(x), expected(model, x))


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    monkeypatch.setenv("CXX", "")
    monkeypatch.setenv("PATH", "")
    runtime = runtimes.create(tiny(), "torch-compiled", device="cpu")
    with pytest.raises(UsageError, match=r"needs a C\+\+ compiler.* cannot compile here: \w+"):
        runtime(images(1, 64, 72))


def test_bf16_is_close(random_model: Segformer) -> None:
    full = runtimes.create(copy.deepcopy(random_model), "torch", "f32", "cpu")(X)
    half = runtimes.create(copy.deepcopy(random_model), "torch", "bf16", "cpu")(X)
    assert half.dtype == np.float32
    assert 0 < np.linalg.norm(half - full) / np.linalg.norm(full) < 0.05


def test_threads(random_model: Segformer) -> None:
    before = torch.get_num_threads()
    try:
        runtime = runtimes.create(copy.deepcopy(random_model), "torch", device="cpu", threads=2)
        assert runtime.threads == 2
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"runtime": "foo"}, "runtime: one of auto, torch, torch-compiled, openvino,"),
        ({"precision": "int3"}, "precision: one of auto, f32, bf16, f16, int8, not 'int3'"),
        ({"device": "tpu"}, "device: one of auto, cpu, cuda, mps, xpu, gpu, not 'tpu'"),
        ({"device": "cpu:x"}, "device: 'cpu:x' is not on this machine; there is .*cpu"),
        ({"device": "cuda:99"}, "device: 'cuda:99' is not on this machine"),
        (
            {"runtime": "torch", "device": "cpu", "precision": "f16"},
            "f16 on the CPU; use bf16 or f32",
        ),
        ({"threads": 0}, "threads: a whole number from 1 to [0-9]+, not 0"),
        ({"threads": 1.5}, r"threads: a whole number from 1 to [0-9]+, not 1\.5"),
        ({"threads": 99999}, "threads: a whole number from 1 to [0-9]+, not 99999"),
    ],
)
def test_what_is_refused(random_model: Segformer, arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        runtimes.create(random_model, **arguments)


def test_a_device_that_is_not_there(random_model: Segformer) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is CUDA here")
    with pytest.raises(UsageError, match="device: 'cuda' is not on this machine; there is"):
        runtimes.create(random_model, device="cuda")


def test_memory_that_does_not_suffice(
    random_model: Segformer, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = runtimes.create(copy.deepcopy(random_model), "torch", device="cpu")

    def fail_with(error: Exception) -> None:
        def fail(*_: object) -> None:
            raise error

        monkeypatch.setattr(Segformer, "forward", fail)

    for text in ("DefaultCPUAllocator: can't allocate memory: ...", "CUDA out of memory. ..."):
        fail_with(RuntimeError(text))
        with pytest.raises(MemoryLimitError, match="2 x 50 x 66 pixels do not fit into the memory"):
            runtime(X)
    fail_with(RuntimeError("something else"))
    with pytest.raises(RuntimeError, match="something else"):
        runtime(X)
