import json
import logging
import platform
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformerpp import auto_plan, cache, cli, runtimes
from segformerpp.auto_plan import AutoRuntime, Choice, measured_side, pick
from segformerpp.benchmark.candidates import network
from segformerpp.benchmark.gains import Gain, race
from segformerpp.checkpoints import Checkpoint, open_checkpoint
from segformerpp.errors import MemoryLimitError, PlanError, UsageError
from segformerpp.models import Segformer
from segformerpp.plans import PRESETS, MergePlan
from segformerpp.plans.documented import AGREEMENT, presets_that_keep
from segformerpp.predictor import Predictor
from segformerpp.runtimes import Runtime

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results" / "accuracy.json"


def steady(value: float, spread: float = 0.0) -> Gain:
    return Gain(tuple(value * (1 + spread * i) for i in (-1, -0.5, 0, 0.5, 1)))


class Raced:
    """Stands in for `race`: gains by the order of the presets, and how often it was asked."""

    def __init__(self, *gains: Gain) -> None:
        self.gains, self.calls = gains, 0

    def __call__(self, *anything: object) -> Gain:
        self.calls += 1
        return self.gains[(self.calls - 1) % len(self.gains)]


@pytest.fixture(autouse=True)
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGFORMERPP_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(auto_plan, "turn", lambda run: lambda: [1.0])
    monkeypatch.setattr(auto_plan, "_LEAST_SIDE", 32)


def race_with(monkeypatch: pytest.MonkeyPatch, *gains: Gain) -> Raced:
    raced = Raced(*gains)
    monkeypatch.setattr(auto_plan, "race", raced)
    return raced


def test_what_is_documented_is_what_was_measured() -> None:
    rows = [row for row in json.loads(RESULTS.read_text()) if row["size"] == "own"]
    assert {row["merge"]: round(row["agreement"], 1) for row in rows} == AGREEMENT
    assert AGREEMENT.keys() == PRESETS.keys()
    assert list(presets_that_keep(98)) == ["balanced", "2x2", "turbo", "hq"]


@pytest.mark.parametrize(
    ("gains", "expected"),
    [
        ({"balanced": steady(1.019), "turbo": steady(0.9)}, "none"),
        ({"balanced": steady(1.03), "turbo": steady(0.9)}, "balanced"),
        ({"balanced": steady(1.5), "2x2": steady(1.4), "turbo": steady(1.6)}, "turbo"),
        # Nobody can tell these apart: the one that keeps more labels.
        ({"balanced": steady(1.58, 0.02), "turbo": steady(1.6, 0.02)}, "balanced"),
        ({"balanced": steady(1.1, 0.3), "turbo": steady(1.05, 0.3)}, "none"),
        ({}, "none"),
    ],
)
def test_the_fastest_that_is_worth_it(gains: dict[str, Gain], expected: str) -> None:
    assert pick(gains) == expected


@given(st.integers(1, 20_000), st.integers(1, 20_000))
def test_squares_stand_for_similar_sizes(height: int, width: int) -> None:
    side = measured_side((height, width), 188)
    assert side == measured_side((width, height), 188)
    if 128**2 <= height * width <= 2048**2:
        assert 0.66 < side**2 / (height * width) < 1.6  # 192 stands for 181 to 215
        assert side % 32 == 0
    else:
        assert side in (0, 2048) or height * width < 128**2 * 2


def test_the_benchmark_s_squares_are_measured_as_they_are() -> None:
    assert [measured_side((n, n), 188) for n in (256, 512, 1024, 1536, 2048)] == [
        *(256, 512, 1024, 1440, 2048),
    ]
    assert measured_side((2048, 2048), 2000) == 1024  # for want of memory


def test_a_race_ends_when_enough_is_known() -> None:
    slow, fast = (lambda: [2.0, 2.2, 2.1]), (lambda: [1.0])
    gain = race(slow, fast, lambda g: g.least > 1.02, 30, 1e9)
    assert gain == Gain((2.1,) * 5)
    assert len(race(slow, fast, lambda g: False, 12, 1e9).ratios) == 12
    assert len(race(slow, fast, lambda g: False, 12, 0).ratios) == 3


def test_measured_once_for_each_size(
    random_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "segformerpp")
    raced = race_with(monkeypatch, steady(1.2), steady(1.1), steady(1.3), steady(1))
    checkpoint = open_checkpoint(random_checkpoint)
    first = AutoRuntime(checkpoint, "torch", device="cpu")
    assert (first.described, first.merge_plan) == ("auto", MergePlan())
    assert [first.choose(size) for size in ((64, 64), (60, 70), (8, 8))] == ["turbo"] * 2 + ["none"]
    assert raced.calls == 4
    assert first.described == "auto: turbo, none"
    assert "merge auto: turbo for images of about 64 x 64, measured " in caplog.text
    assert "(times as fast as none: balanced 1.20 ± 0.00, 2x2 1.10" in caplog.text
    assert AutoRuntime(checkpoint, "torch", device="cpu").choose((66, 66)) == "turbo"
    assert raced.calls == 4
    first.choose((256, 256))
    AutoRuntime(checkpoint, "torch", "bf16", device="cpu").choose((64, 64))
    assert raced.calls == 12


def test_other_weights_of_the_same_kind_are_as_fast(
    random_model: Segformer, random_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raced = race_with(monkeypatch, steady(1.2))
    for checkpoint in (open_checkpoint(random_checkpoint), Checkpoint.of_model(random_model)):
        assert AutoRuntime(checkpoint, "torch", device="cpu").choose((64, 64)) == "balanced"
    assert raced.calls == 4


def test_images_that_are_too_large(
    random_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sides = []

    def known(_: AutoRuntime, side: int) -> Choice:
        sides.append(side)
        return Choice("none", side, {}, "")

    def choose(runtime: str, machine: str) -> None:
        monkeypatch.setattr(platform, "system", lambda: "Linux")
        monkeypatch.setattr(platform, "machine", lambda: machine)
        chosen = AutoRuntime(open_checkpoint(random_checkpoint), runtime, "f32", device="cpu")
        assert chosen.choose((2048, 2048)) == "none"

    monkeypatch.setattr(AutoRuntime, "_known", known)
    monkeypatch.setattr(auto_plan, "_MOST_BYTES", 188 * 1024**2)
    choose("openvino", "x86_64")
    choose("onnxruntime", "x86_64")
    assert sides[0] > sides[1]  # ONNX Runtime needs more memory
    monkeypatch.setattr(auto_plan, "_MOST_BYTES", 2**40)
    choose("onnxruntime", "x86_64")
    choose("onnxruntime", "aarch64")  # where it may hold whole attention maps
    assert sides[2:] == [2048, 1440]


def test_in_streams(random_checkpoint: Path) -> None:
    runtime = AutoRuntime(open_checkpoint(random_checkpoint), "openvino", "f32", threads=2)
    parallel = runtimes.parallel(runtime)
    assert parallel
    assert parallel.streams == 2
    x = np.random.default_rng(0).normal(size=(1, 3, 64, 96)).astype(np.float32)
    stream = parallel.stream(x.shape)
    assert stream
    np.testing.assert_allclose(stream(x), runtime(x), rtol=1e-4, atol=1e-5)
    assert AutoRuntime(open_checkpoint(random_checkpoint), "torch", device="cpu").streams == 1


@pytest.mark.parametrize("trouble", ["noise", "memory"])
def test_what_is_uncertain_is_not_kept(
    random_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    noisy = Gain((0.5, 0.7, 1.0, 1.5, 2.0))
    raced = race_with(monkeypatch, noisy)
    if trouble == "memory":

        def fail(*anything: object) -> Gain:
            raced.calls += 4
            raise MemoryLimitError

        monkeypatch.setattr(auto_plan, "race", fail)
    for calls in (4, 8):
        runtime = AutoRuntime(open_checkpoint(random_checkpoint), "torch", device="cpu")
        assert runtime.choose((64, 64)) == "none"
        assert raced.calls == calls
    assert "plan" not in {entry.kind for entry in cache.entries()}


def test_a_plan_that_needs_another_precision_is_not_taken(
    random_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    race_with(monkeypatch, steady(1.2))
    checkpoint = open_checkpoint(random_checkpoint)
    runtime = AutoRuntime(checkpoint, "torch", "bf16", device="cpu")

    def create(checkpoint: Checkpoint, name: str, precision: str, *rest: object) -> Runtime:
        wanted = "f32" if runtime._by_side == {} else precision
        return create_before(checkpoint, name, wanted)

    create_before = runtimes.create
    monkeypatch.setattr(runtimes, "create", create)
    assert runtime.choose((64, 64)) == "none"


def test_predictor(random_model: Segformer, monkeypatch: pytest.MonkeyPatch) -> None:
    race_with(monkeypatch, steady(1.2))
    image = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    predict = Predictor(random_model, merge="auto", runtime="torch", device="cpu")
    assert predict.facts["merge"] == "auto"
    result = predict(image)
    found = result.label_map
    assert predict.facts["merge"] == result.row()["merge"] == "auto: balanced"
    # Each image says its own, whatever was seen before.
    race_with(monkeypatch, steady(1.0))
    other = predict(np.tile(image, (4, 4, 1)))
    assert (other.row()["merge"], result.row()["merge"]) == ("auto: none", "auto: balanced")
    assert predict.facts["merge"] == "auto: balanced, none"
    predict(image)
    assert predict.merge_plan == PRESETS["balanced"]
    expected = Predictor(random_model, merge="balanced", runtime="torch", device="cpu")(image)
    np.testing.assert_array_equal(found, expected.label_map)


def test_where_nothing_can_be_measured(random_checkpoint: Path) -> None:
    with pytest.raises(PlanError, match=r"auto is measured where a network is run \(Predictor"):
        MergePlan.parse("auto")
    with pytest.raises(UsageError, match="merge: auto is not for int8"):
        Predictor(random_checkpoint, merge="auto", precision="int8")


def test_commands_say_what_was_chosen(
    random_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    race_with(monkeypatch, steady(1.2))
    image = str(Path(__file__).parents[1] / "samples" / "highway.png")
    words = ["predict", image, "--merge", "auto", "--runtime", "torch", "--device", "cpu"]
    words += [
        "--model",
        str(random_checkpoint),
        "--size",
        "128x128",
        "--out",
        str(tmp_path / "out"),
    ]
    assert cli.main(words) == 0
    captured = capsys.readouterr()
    assert "info: merge auto: balanced for images of about 128 x 128" in captured.err
    assert "(merge auto: balanced, torch f32 on cpu)" in captured.out
    assert cli.main([*words, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_bench(random_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    race_with(monkeypatch, steady(1.2))
    run, facts = network(
        *(str(random_checkpoint), "auto", (64, 64), 1, "torch", "f32", "cpu", None, True, None)
    )
    assert facts["merge"] == "auto: balanced"
    run()
