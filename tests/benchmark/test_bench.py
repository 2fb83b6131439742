import json

import pytest
from PIL import Image

from segformerpp import cli
from segformerpp.benchmark import plot
from segformerpp.benchmark.run import combinations

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
            *("bench", "--size", "64x96", "--runtime", "torch,openvino", "--merge", "none,hq"),
            *("--precision", "f32,f16", "--rounds", "3"),
            *("--json", str(report), "--plot", str(picture)),
        ]
    )
    said = capsys.readouterr()
    assert code == 1  # no f16 on a processor
    assert "failed: none, 64x96, batch 1, torch f16: precision" in said.err
    rows = json.loads(report.read_text())
    assert [(row["runtime"], row["merge"]) for row in rows] == [
        *(("torch", "none"), ("torch", "hq"), ("openvino", "none"), ("openvino", "hq"))
    ]
    for row in rows:
        assert row.keys() >= KEYS
        assert row["withheld"] == (row["median_ms"] is None)
        assert row["peak_memory_mb"] is None or row["peak_memory_mb"] > 50
        assert row["gmacs"] > 0.05
    assert "64x96" in said.out
    with Image.open(picture) as image:
        assert image.width > 500


@pytest.mark.parametrize(
    "wrong",
    [
        ["--size", "64"],
        ["--merge", "none,foo"],
        ["--runtime", "tensorflow"],
        ["--batch", "0"],
        ["--rounds", "2"],
        ["--plot", "bench.gif"],
    ],
)
def test_wrong_usage_is_said_before_anything_runs(wrong, capsys):
    assert cli.main(["bench", *wrong]) == 2
    assert f"{wrong[0][2:]}: " in capsys.readouterr().err


def test_plot_names_what_was_withheld(tmp_path):
    row = {"model": "m", "size": "64x64", "batch": 1, "merge": "none", "runtime": "torch"}
    row |= {"precision": "f32", "threads": 2, "processor": "p", "date": "2026-01-01"}
    good = {**row, "median_ms": 10.0, "p95_ms": 12.0, "speed_up": 1.0, "withheld": False}
    bad = {**row, "median_ms": None, "p95_ms": None, "withheld": True, "uncertainty": 0.3}
    plot.plot([good, {**bad, "speed_up": None}], tmp_path / "plot.svg")
    drawn = (tmp_path / "plot.svg").read_text()
    assert "withheld: uncertain by 30%" in drawn
    assert "10 ms (1.00x)" in drawn
