"""`segformerpp train`, as its users meet it."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segformerpp import cli
from segformerpp.checkpoints import load
from segformerpp.terminal import Progress
from segformerpp.training.keeping import RESUME
from tests.training.test_batches import make_camvid

Captured = pytest.CaptureFixture[str]
QUICK = ["--crop", "64x96", "--batch", "2", "--steps", "2", "--warmup", "1", "--workers", "0"]


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A dataset with one broken image and one mask of a wrong size."""
    root = make_camvid(tmp_path / "camvid", {"train": 6, "val": 2})
    (root / "train" / "2.png").write_bytes(b"no image")
    Image.new("L", (10, 10)).save(root / "trainannot" / "4.png")
    return root


def words(root: Path, *more: str) -> list[str]:
    return ["train", "--data", "camvid", "--root", str(root), *QUICK, *more]


@pytest.mark.parametrize("option", ["--check-data", "--check_data", "--quiet"])
def test_broken_data_is_named_before_training(
    broken: Path, tmp_path: Path, capsys: Captured, option: str
) -> None:
    assert cli.main(words(broken, option, "--out", str(tmp_path / "out"))) == 1
    first, second, last = capsys.readouterr().err.splitlines()
    assert "2.png" in first
    assert "4.png: the mask is 10x10, its image 48x64" in second
    assert last == "error: mend what is named above, or leave it out with --bad-images skip"
    assert not (tmp_path / "out").exists()


def test_what_cannot_start_reads_no_images(broken: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "file").touch()
    assert cli.main(words(broken, "--out", str(tmp_path / "file"))) == 2
    assert "error: out: cannot write to" in capsys.readouterr().err
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / RESUME).touch()
    assert cli.main(words(broken, "--out", str(tmp_path / "run"))) == 2
    assert "holds a run already" in capsys.readouterr().err


def test_the_bar_counts_the_steps_of_the_epochs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    totals = []

    class Counted(Progress):
        def __init__(self, total: int | None, what: str, shown: bool = True) -> None:
            totals.append((what, total))
            super().__init__(total, what, shown)

    monkeypatch.setattr(sys.modules["segformerpp.cli.train"], "Progress", Counted)
    root = make_camvid(tmp_path / "camvid", {"train": 4, "val": 1})
    options = ["--epochs", "1", "--bad-images", "unchecked", "--val-split", ""]
    assert cli.main(words(root, *options, "--out", str(tmp_path / "out"))) == 0
    assert totals == [("training", 2)]


def test_broken_data_is_skipped(broken: Path, tmp_path: Path, capsys: Captured) -> None:
    options = ["--bad-images", "skip", "--out", str(tmp_path / "out")]
    options += ["--json", str(tmp_path / "row.json")]
    assert cli.main(words(broken, *options)) == 0
    assert "camvid train: 2 of 6 images left out" in capsys.readouterr().out
    assert json.loads((tmp_path / "row.json").read_text())[0]["images"] == 4


def test_nothing_is_left(tmp_path: Path, capsys: Captured) -> None:
    root = make_camvid(tmp_path / "camvid", {"train": 1, "val": 1})
    [image] = (root / "train").iterdir()
    image.write_bytes(b"no image")
    assert cli.main(words(root, "--bad-images", "skip", "--out", str(tmp_path / "out"))) == 1
    assert capsys.readouterr().err.splitlines()[-1] == "error: mend what is named above"


@pytest.mark.parametrize("variable", ["RANK", "LOCAL_RANK"])
def test_only_the_first_of_several_processes_speaks(
    variable: str, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = make_camvid(tmp_path / "camvid", {"train": 1, "val": 1})
    monkeypatch.setenv(variable, "1")
    assert cli.main(words(root, "--check-data")) == 0
    assert capsys.readouterr().out == ""


def test_fine_tuning_on_a_folder_of_ones_own(
    shared: Path, tmp_path: Path, capsys: Captured
) -> None:
    """The example of docs/training.md, on a folder made from CamVid: two classes, own numbers."""
    root = tmp_path / "my-images"
    for split, source in (("train", "train"), ("val", "val")):
        for path in sorted((shared / "data/camvid" / source).iterdir())[:4]:
            mask = np.asarray(Image.open(path.parent.parent / f"{source}annot/{path.stem}.png"))
            for folder in ("images", "masks"):
                (root / folder / split).mkdir(parents=True, exist_ok=True)
            shutil.copy(path, root / "images" / split)
            road = np.where(mask == 11, 255, np.where(mask == 3, 7, 0)).astype(np.uint8)
            Image.fromarray(road).save(root / "masks" / split / f"{path.stem}.png")
    (root / "classes.yaml").write_text("classes: [background, {name: road, id: 7}]\n")
    out = tmp_path / "mine"
    options = ["--crop", "128x160", "--batch", "2", "--steps", "30", "--warmup", "1"]
    options += ["--workers", "0", "--val-every", "30"]
    command = ["train", "--root", str(root), "--model", "camvid-b0", *options, "--out", str(out)]
    assert cli.main(command) == 0
    said = capsys.readouterr().out
    assert float(said.partition("mIoU ")[2].split()[0]) > 60
    assert load(out / "best").metadata.labels == ("background", "road")
    evaluation = ["eval", "--root", str(root), "--model", str(out / "best"), "--runtime", "torch"]
    assert cli.main(evaluation) == 0
    image = next((root / "images" / "val").iterdir())
    results = tmp_path / "results"
    predict = ["predict", str(image), "--model", str(out / "best"), "--out", str(results)]
    assert cli.main([*predict, "--runtime", "torch"]) == 0
    assert set(np.unique(np.asarray(Image.open(results / f"{image.stem}_labels.png")))) <= {0, 1}


def test_measure(tmp_path: Path, capsys: Captured) -> None:
    root = make_camvid(tmp_path / "camvid", {"train": 2, "val": 1})
    file = tmp_path / "rows.json"
    assert cli.main(words(root, "--measure", "--merge", "fast", "--json", str(file))) == 0
    assert "ms for a step" in capsys.readouterr().out
    rows = json.loads(file.read_text())
    assert [row["merge"] for row in rows] == ["none", "fast"]
    assert all(row["peak_memory_mb"] > 100 for row in rows)
    assert cli.main(words(root, "--measure")) == 2
    assert "name one with --merge" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--steps", "x"], "--steps: 'x' is not valid here"),
        (["--config", "missing.yaml"], "missing.yaml"),
        (["--model", "b9"], "b9"),
        (["--merge", "bad"], "bad"),
        (["--crop", "10"], "crop: height x width"),
        (["--head-kind", "x"], "head_kind"),
    ],
)
def test_refused(tmp_path: Path, options: list[str], reason: str, capsys: Captured) -> None:
    root = make_camvid(tmp_path / "camvid", {"train": 2, "val": 1})
    assert cli.main(words(root, *options, "--out", str(tmp_path / "out"))) == 2
    err = capsys.readouterr().err
    assert reason in err
    assert err.count("\n") == 1


def test_a_key_that_is_none(tmp_path: Path, capsys: Captured) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("stepz: 3\n")
    assert cli.main(["train", "--config", str(file), "--root", "x"]) == 2
    err = capsys.readouterr().err
    assert "stepz" in err
    assert err.count("\n") == 1
