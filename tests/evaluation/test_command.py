import json
from pathlib import Path
from typing import Any

import pytest

from segformerpp import Predictor, cli
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
        (["--data", "foo"], "data: one of camvid, cityscapes, ade20k, folder, not 'foo'"),
        (["--root", ""], "root: the folder with the dataset is needed"),
        (["--root", "/nowhere"], "root: there is no folder '/nowhere'"),
        (["--merge", "none,bad"], "bad"),
        (["--scales", "1,x"], "scales: factors from above 0 to 8, not 'x'"),
        (["--images", "0"], "images: a whole number from 1"),
        (["--confusion", "x.txt"], "confusion: a file ending in .png, .svg, .pdf, not x.txt"),
        (["--tile", "x"], "tile: height x width"),
    ],
)
def test_refused(root: Path, options: list[str], reason: str, capsys: Captured) -> None:
    assert cli.main(words(root, *options)) == 2
    err = capsys.readouterr().err
    assert reason in err
    assert err.count("\n") == 1


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
