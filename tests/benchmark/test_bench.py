import json
from typing import ClassVar

import pytest
from PIL import Image

from segformerpp import cli
from segformerpp.benchmark import plot, run
from segformerpp.benchmark.run import combinations
from segformerpp.checkpoints import save_pretrained
from segformerpp.cli.options import parse_plans
from segformerpp.errors import UsageError
from segformerpp.models import Segformer, SegformerConfig

KEYS = {
    *("model", "task", "size", "batch", "merge", "runtime", "precision", "device", "threads"),
    *("median_ms", "p95_ms", "images_per_s", "peak_memory_mb", "gmacs", "tokens", "withheld"),
}


def test_combinations_keep_size_and_batch_together():
    found = combinations([(1, 2), (3, 4)], [1, 2], ["torch"], ["f32"], ["none", "hq", "none"])
    assert len(found) == 8
    assert [c.size for c in found] == [(1, 2)] * 4 + [(3, 4)] * 4
    assert [c.batch for c in found[:4]] == [1, 1, 2, 2]
    assert str(found[1]) == "hq, 1x2, batch 1, torch f32"


def test_bench_end_to_end(tmp_path, capsys):
    report, picture = tmp_path / "bench.json", tmp_path / "bench.png"
    code = cli.main(
        [
            *("bench", "--size", "64x96", "--runtime", "onnxruntime,openvino"),
            *("--merge", "none,hq", "--precision", "f32,auto", "--rounds", "3"),
            *("--model", "b0"),
            *("--json", str(report), "--plot", str(picture)),
        ]
    )
    said = capsys.readouterr()
    assert code == 0, said.err
    rows = json.loads(report.read_text())
    assert [(row["runtime"], row["merge"]) for row in rows] == [
        (runtime, plan)
        for runtime in ("onnxruntime", "openvino")
        for _ in ("f32", "auto")
        for plan in ("none", "hq")
    ]
    for row in rows:
        assert row["model"] == "b0"
        assert row.keys() >= KEYS
        assert row["withheld"] == (row["median_ms"] is None)
        assert row["withheld"] or row["merge"] != "none" or row["speed_up"] == 1
        assert row["peak_memory_mb"] is None or row["peak_memory_mb"] > 50
        assert row["gmacs"] > 0.05
    assert "64x96" in said.out
    with Image.open(picture) as image:
        assert image.width > 500


class FakeWorker:
    """Costs nothing; dies or is interrupted when told to."""

    died: ClassVar[tuple[str, ...]] = ()
    interrupts_at: ClassVar[int | None] = None
    calls = 0

    def __init__(self, target, arguments, warm_up=2):
        self.plan = arguments["merge"]
        keys = ("merge", "runtime", "precision", "device", "threads")
        self.facts = {"task": "segmentation", **{key: arguments[key] for key in keys}}
        self.facts |= {"peak_memory_mb": 1.0, "gmacs": 1.0, "tokens": 1}

    def __call__(self):
        FakeWorker.calls += 1
        if FakeWorker.calls == FakeWorker.interrupts_at:
            raise KeyboardInterrupt
        if self.plan in FakeWorker.died:
            raise UsageError("a benchmark process ended with code -9")
        return [1.0]

    def close(self):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(run, "Worker", FakeWorker)
    for name, value in (("died", ()), ("interrupts_at", None), ("calls", 0)):
        monkeypatch.setattr(FakeWorker, name, value)
    return FakeWorker


TWO_SIZES = ("bench", "--size", "64x64,96x96", "--merge", "none,hq", "--rounds", "3")


def test_interrupt_keeps_what_was_measured(fake, tmp_path, capsys):
    fake.interrupts_at = 2 * 3 + 2 * 2 + 1  # in the last round of the second size
    report = tmp_path / "bench.json"
    assert cli.main([*TWO_SIZES, "--json", str(report)]) == 130
    rows = json.loads(report.read_text())
    assert [(row["size"], row["rounds"]) for row in rows] == [("64x64", 3)] * 2 + [("96x96", 2)] * 2
    assert "interrupted: figures are of the rounds that were whole" in capsys.readouterr().err


def test_interrupt_at_once(fake, tmp_path):
    fake.interrupts_at = 2
    assert cli.main([*TWO_SIZES, "--json", str(tmp_path / "bench.json")]) == 130
    assert not list(tmp_path.iterdir())


def test_a_process_that_dies_takes_nobody_with_it(fake, tmp_path, capsys):
    fake.died = ("none",)
    report = tmp_path / "bench.json"
    assert cli.main([*TWO_SIZES, "--json", str(report)]) == 1
    rows = json.loads(report.read_text())
    assert [row["merge"] for row in rows] == ["hq", "hq"]
    assert [row["speed_up"] for row in rows] == [None, None]
    said = capsys.readouterr().err
    assert "failed: none, 64x64, batch 1, auto auto: a benchmark process ended with code -9" in said


def test_what_cannot_run_here(tmp_path, capsys):
    report = tmp_path / "bench.json"
    command = ["bench", "--size", "64x64", "--runtime", "onnxruntime", "--merge", "none"]
    code = cli.main([*command, "--precision", "bf16", "--json", str(report)])
    assert code == 1
    assert "failed: none, 64x64, batch 1, onnxruntime bf16: precision" in capsys.readouterr().err
    assert not report.exists()  # what was there before stays


def test_int8_is_for_models_of_rgb_images(tmp_path, capsys):
    config = SegformerConfig(depths=(1,) * 4, dims=(8, 16, 40, 64), in_channels=4, head_dim=16)
    save_pretrained(Segformer(config), tmp_path / "four")
    command = ["bench", "--size", "64x64", "--merge", "none", "--precision", "int8"]
    command += ["--calibrate", str(tmp_path), "--model", str(tmp_path / "four")]
    assert cli.main(command) == 1
    assert "calibrate: images are RGB, and this model takes 4 channels" in capsys.readouterr().err


def test_notations_of_several_plans():
    plans = parse_plans
    assert plans("none, hq") == ["none", "hq"]
    assert plans("q1:mode=n2d,sx=2,sy=2") == ["q1:mode=n2d,sx=2,sy=2"]
    assert plans("none; q1:mode=n2d,sx=2,sy=2") == ["none", "q1:mode=n2d,sx=2,sy=2"]


@pytest.mark.parametrize(
    "wrong",
    [
        ["--size", "64"],
        ["--merge", "none,foo"],
        ["--runtime", "tensorflow"],
        ["--batch", "0"],
        ["--rounds", "2"],
        ["--plot", "bench.gif"],
        ["--runtime", ","],
        ["--calibrate", "nowhere"],
        ["--json", "/proc/nowhere/bench.json"],
        ["--model", "typo"],
    ],
)
def test_wrong_usage_is_said_before_anything_runs(wrong, capsys):
    assert cli.main(["bench", *wrong]) == 2
    expected = "error: 'typo'" if wrong[0] == "--model" else f"{wrong[0][2:]}: "
    assert expected in capsys.readouterr().err


def test_plot_names_what_was_withheld(tmp_path):
    row = {"model": "m", "size": "64x64", "batch": 1, "merge": "none", "runtime": "torch"}
    row |= {"precision": "f32", "threads": 2, "processor": "p", "date": "2026-01-01"}
    good = {**row, "median_ms": 10.0, "p95_ms": 12.0, "speed_up": 1.0, "withheld": False}
    bad = {**row, "median_ms": None, "p95_ms": None, "withheld": True, "uncertainty": 0.3}
    with (tmp_path / "plot.svg").open("wb") as file:
        plot.plot([good, {**bad, "speed_up": None}], file, "svg")
    drawn = (tmp_path / "plot.svg").read_text()
    assert "withheld: uncertain by 30%" in drawn
    assert "10 ms (1.00x)" in drawn
