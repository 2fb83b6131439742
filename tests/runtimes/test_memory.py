import platform
from typing import Any

import pytest

from segformerpp import runtimes
from segformerpp.models import SegformerConfig
from segformerpp.models.config import SIZES
from segformerpp.runtimes import memory
from segformerpp.runtimes.memory import KeptNetworks, bytes_per_pixel, may_hold_maps
from tests.models.test_segformer import tiny
from tests.runtimes.graph.parity import images


def test_estimated_memory() -> None:
    estimates = [bytes_per_pixel(SegformerConfig.of_size(size), "torch") for size in SIZES]
    assert estimates == sorted(estimates)
    assert estimates[0] == pytest.approx(179, rel=0.06)  # measured, see `bytes_per_pixel`
    assert estimates[-1] == pytest.approx(485, rel=0.03)
    in_onnx_runtime = [bytes_per_pixel(SegformerConfig.of_size(s), "onnxruntime") for s in SIZES]
    assert in_onnx_runtime[0] == pytest.approx(350, rel=0.2)
    assert in_onnx_runtime[2] == pytest.approx(1030, rel=0.05)


@pytest.mark.parametrize(
    ("device", "system", "machine", "whole"),
    [
        ("cpu", "Linux", "x86_64", False),
        ("cpu", "Linux", "aarch64", True),
        ("cpu", "Darwin", "arm64", False),
        ("cuda", "Linux", "x86_64", True),
    ],
)
def test_whole_attention_maps(
    device: str, system: str, machine: str, whole: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    assert may_hold_maps(device) is whole


def test_networks_are_kept_while_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_memory", lambda: 2 * 6 * 1000)
    monkeypatch.setattr(memory, "_KEPT", 4)
    made: list[tuple[int, str, int]] = []

    def make(shape: tuple[int, ...], kind: str = "f32") -> str:
        if kind == "broken":
            raise MemoryError
        made.append((shape[3], kind, len(kept)))
        return f"{shape[3]} {kind}"

    kept = KeptNetworks(make, bytes_each=10)

    def ask(width: int, *more: str) -> list[tuple[int, str, int]]:
        """What was made for this, and how many were kept then."""
        made.clear()
        assert kept((2, 3, 3, width), *more) == f"{width} {' '.join(more) or 'f32'}"
        return list(made)

    assert ask(30) == [(30, "f32", 0)]
    assert ask(70) == [(70, "f32", 1)]  # 100 columns in all
    assert ask(30) == ask(70) == []
    assert ask(30) == []
    assert ask(20) == [(20, "f32", 1)]  # 70 went before, whose last use is longest ago
    assert ask(30) == ask(20) == []
    # Two of one shape, however large, take turns without making room for each other.
    assert ask(500, "out") == [(500, "out", 0)]
    assert ask(500, "in") == [(500, "in", 1)]
    assert ask(500, "out") == ask(500, "in") == []
    assert [ask(n) for n in (1, 2, 3, 4)][1:] == [[(n, "f32", n - 1)] for n in (2, 3, 4)]
    assert ask(5) == [(5, "f32", 3)]  # the fifth, instead of the first
    assert ask(2) == []
    with pytest.raises(MemoryError):
        kept((2, 3, 3, 2), "broken")
    assert (ask(2), ask(5), len(kept)) == ([], [], 3)
    kept.clear()
    assert ask(2) == [(2, "f32", 0)]


@pytest.mark.parametrize("name", ["openvino", "onnxruntime"])
@pytest.mark.parametrize(("plan", "kept"), [("none", 1), ("input_scale=0.5", 2)])
def test_what_runtimes_keep(
    name: str, plan: str, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny()
    model.merge_plan = plan
    each = bytes_per_pixel(model.config, name)
    monkeypatch.setattr(memory, "_KEPT_BYTES", each * 100 * 128)
    runtime: Any = runtimes.create(model, name, "f32", "cpu")
    for width in (64, 128):  # 8192 and 16384 pixels
        runtime(images(1, 128, width))
    assert len(runtime._compiled if name == "openvino" else runtime._session) == kept
