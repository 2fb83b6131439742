import json
from pathlib import Path
from typing import Any

import pytest

from segformerpp import Predictor, cli
from segformerpp.cli.eval_tables import headings
from tests.training.test_batches import make_camvid

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_camvid(tmp_path_factory.mktemp("camvid"), {"val": 4})


def words(root: Path, *more: str) -> list[str]:
    return ["eval", "--data", "camvid", "--root", str(root), "--runtime", "torch", *more]


def test_everything(root: Path, tmp_path: Path, capsys: Captured) -> None:
    files = {name: str(tmp_path / name) for name in ("rows.json", "worst", "plot.png")}
    options = ["--merge", "none,hq", "--images", "3", "--json", files["rows.json"]]
    options += ["--worst", files["worst"], "--worst-count", "2", "--confusion", files["plot.png"]]
    assert cli.main(words(root, *options)) == 0
    out = capsys.readouterr().out
    assert "camvid-b0 on 3 images of camvid val" in out
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["merge"] for row in rows] == ["none", "hq"]
    expected = {"model", "task", "data", "split", "size", "batch", "runtime", "precision", "device"}
    expected |= {"threads", "median_ms", "speed_up", "miou", "fwiou", "pixel_accuracy"}
    expected |= {"per_class_iou", "agreement", "images", "date", "processor", "versions"}
    assert expected <= rows[0].keys()
    assert rows[0]["images"] == 3
    assert len(list((tmp_path / "worst").glob("0[12]_*.png"))) == 2
    assert f"2 pictures of the worst images in {files['worst']}\n" in out
    assert (tmp_path / "plot.png").stat().st_size > 10_000


def test_views_and_windows(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    options = ["--scales", "1,2", "--flip", "--tile", "48x48", "--size", "64x96"]
    assert cli.main(words(root, *options, "--images", "2", "--json", str(file))) == 0
    [row] = json.loads(file.read_text())
    assert (row["scales"], row["flip"], row["size"]) == ([1.0, 2.0], True, "64x96")


def test_broken_images(root: Path, tmp_path: Path, capsys: Captured) -> None:
    other = make_camvid(tmp_path / "camvid", {"val": 3})
    (other / "val" / "1.png").write_bytes(b"no image")
    assert cli.main(words(other)) == 1
    captured = capsys.readouterr()
    assert "failed: " in captured.err
    assert "1.png" in captured.err
    assert "on 2 images" in captured.out


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--split", "foo"], "split: 'foo' is not there"),
        (["--data", "foo"], "data: one of camvid, cityscapes, ade20k, folder, coco, not 'foo'"),
        (["--root", ""], "root: the folder with the dataset is needed"),
        (["--root", "/nowhere"], "root: there is no folder '/nowhere'"),
        (["--merge", "none,bad"], "bad"),
        (["--images", "0"], "images: a whole number from 1"),
        (["--confusion", "x.txt"], "confusion: a file ending in .png, .svg, .pdf, not x.txt"),
        (["--tile", "x"], "tile: height x width"),
        (["--scales", "1,x"], "scales: numbers with commas between, not '1,x'"),
        (["--scales", "1,0"], "scales: factors from above 0 to 8, not 0.0"),
        (["--calibrate", "x"], "calibrate: only for the precision int8"),
        (["--worst-count", "-3"], "worst_count: a whole number from 1 up, not -3"),
        (["--worst-count", "0"], "worst_count: a whole number from 1 up, not 0"),
        (["--worst", "a-file"], "worst: cannot write to a-file"),
        (["--worst", "a-file/worst"], "worst: cannot write to a-file/worst"),
        (["--json", "a-file/x.json"], "json: cannot write to a-file"),
        (["--json", "."], "json: . is a folder, not a file"),
        (["--confusion", "a-file/x.png"], "confusion: cannot write to a-file"),
        (["--runtime", "torch,x"], "runtime: one of auto, torch"),
        (["--precision", "f32,x"], "precision: one of auto, f32"),
    ],
)
def test_refused(
    root: Path,
    options: list[str],
    reason: str,
    capsys: Captured,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything is computed."""
    monkeypatch.chdir(tmp_path)
    Path("a-file").write_text("")
    monkeypatch.setattr(Predictor, "__call__", lambda *_: pytest.fail("an image was predicted"))
    assert cli.main(words(root, *options)) == 2
    err = capsys.readouterr().err
    assert reason in err
    assert err.count("\n") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]


def test_results_in_folders_that_are_yet_to_be_made(root: Path, tmp_path: Path) -> None:
    options = ["--images", "1", "--json", str(tmp_path / "a" / "rows.json")]
    assert cli.main(words(root, *options, "--worst", str(tmp_path / "b" / "worst"))) == 0
    assert (tmp_path / "a" / "rows.json").exists()
    assert len(list((tmp_path / "b" / "worst").iterdir())) == 1


def test_scales_belong_to_the_size(root: Path, tmp_path: Path) -> None:
    """The network sees what it would see of the size that comes out, and that alone."""
    found = []
    for options in (["--size", "96x128", "--scales", "0.5"], ["--size", "48x64"], ["--scales=1.5"]):
        file = tmp_path / "rows.json"
        assert cli.main(words(root, *options, "--precision", "f32", "--json", str(file))) == 0
        found.append(json.loads(file.read_text())[0]["per_class_iou"])
    assert found[0] == found[1]
    assert found[0] != found[2]


def test_every_column_has_a_name_of_its_own(root: Path, capsys: Captured) -> None:
    options = ["--images", "1", "--merge", "none,2x2,none", "--precision", "f32,bf16"]
    assert cli.main(words(root, *options)) == 0
    out = capsys.readouterr().out
    assert " ".join(next(line for line in out.splitlines() if "IoU in" in line).split()) == (
        "IoU in % none f32 none bf16 2x2 f32 2x2 bf16"
    )
    assert "withheld  withheld" in out  # a single image tells no time


def test_headings() -> None:
    rows = [{"merge": "hq", "runtime": name, "precision": "f32"} for name in ("torch", "openvino")]
    assert headings(rows[:1]) == ["hq"]
    assert headings(rows) == ["hq torch", "hq openvino"]
    rows[1]["precision"] = "int8"
    assert headings(rows) == ["hq torch f32", "hq openvino int8"]


def test_interrupted(
    root: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is known by then is told."""
    predict, calls = Predictor.__call__, [0]

    def interrupt(self: Predictor, image: Any) -> Any:
        calls[0] += 1
        if calls[0] == 3:
            raise KeyboardInterrupt
        return predict(self, image)

    monkeypatch.setattr(Predictor, "__call__", interrupt)
    assert cli.main(words(root, "--json", str(tmp_path / "rows.json"))) == 130
    captured = capsys.readouterr()
    assert captured.err == "interrupted: figures are of the first 2 images\n"
    assert "on 2 images" in captured.out
    [row] = json.loads((tmp_path / "rows.json").read_text())
    assert row["images"] == 2
