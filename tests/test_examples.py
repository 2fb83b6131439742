"""The scripts and the notebook of examples/ run."""

import json
import runpy
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import COCO
from PIL import Image

import segformerpp as sfpp
from segformerpp.data.video import VideoReader
from segformerpp.models import Segformer
from tests.made_videos import make_video

ROOT = Path(__file__).parents[1]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
NOTEBOOK = ROOT / "examples" / "tour.ipynb"


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Runs an example as a program, in a folder with two small images."""
    monkeypatch.chdir(tmp_path)
    for name in ("a", "b"):
        image = Image.open(ROOT / "samples" / "highway.png").resize((96, 64))
        (tmp_path / "photos").mkdir(exist_ok=True)
        image.save(f"photos/{name}.png")

    def run(name: str, *arguments: str) -> None:
        path = ROOT / "examples" / name
        monkeypatch.setattr(sys, "argv", [str(path), *arguments])
        runpy.run_path(str(path), run_name="__main__")

    return run


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_each_says_how_to_run_it(path: Path) -> None:
    text = path.read_text()
    assert f"\npython examples/{path.name} " in text.split('"""')[1]
    assert path.name == "compare_plans.py" or len(text.splitlines()) < 65


def test_compare_plans(run: Callable[..., None], random_checkpoint: Path) -> None:
    run("compare_plans.py", "photos/a.png", "--model", str(random_checkpoint), "--out", "demo")
    assert Image.open("demo/a_side_by_side.png").size == (192, 104)


def test_folder_to_polygons(
    run: Callable[..., None], random_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("photos/c.png").write_text("no image")
    options = ("--model", str(random_checkpoint), "--smallest", "8")
    run("folder_to_polygons.py", "photos", *options, "--out", "new/all.json")
    assert "left out: photos/c.png: " in capsys.readouterr().out
    data = COCO("new/all.json")
    assert [image["file_name"] for image in data.loadImgs(data.getImgIds())] == [
        str(Path("photos", name)) for name in ("a.png", "b.png")
    ]
    ids = data.getAnnIds()
    assert ids == [*range(1, len(ids) + 1)]
    result = sfpp.Predictor(random_checkpoint)("photos/b.png")
    found = np.full(result.label_map.shape, 255)
    for annotation in data.loadAnns(data.getAnnIds(imgIds=[2])):
        found[data.annToMask(annotation).astype(bool)] = annotation["category_id"]
    assert (found == result.label_map).mean() > 0.8  # of so small an image


def test_webcam_or_video(
    run: Callable[..., None], random_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_video(Path("clip.mp4"))
    predict = sfpp.Predictor(random_checkpoint, merge="hq")
    shares = np.array([predict(f.image).shares for f in VideoReader(Path("clip.mp4"), stride=4)])
    most = int(shares.mean(axis=0).argmax())
    options = ("clip.mp4", "--model", str(random_checkpoint), "--stride", "4", "--look-for")
    name = predict.labels[most]
    run("webcam_or_video.py", *options, name, "--above", str(shares[:, most].min() - 0.01))
    *found, summary = capsys.readouterr().out.splitlines()
    assert summary == f"{name} in 5 of 5 frames"
    assert found == [
        f"{0.4 * number:8.2f} s: {share:.1%} {name}" for number, share in enumerate(shares[:, most])
    ]
    run("webcam_or_video.py", *options, name, "--above", "1")
    assert capsys.readouterr().out == f"{name} in 0 of 5 frames\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("webcam_or_video.py", "no.mp4"), "error: no.mp4: not a video"),
        (("folder_to_polygons.py", "no"), "error: "),
        (("folder_to_polygons.py", "photos", "--classes", "unicorn"), "error: classes: "),
    ],
)
def test_examples_end_with_a_line(
    run: Callable[..., None], arguments: tuple[str, ...], said: str
) -> None:
    with pytest.raises(SystemExit, match=f"^{said}"):
        run(*arguments)


def test_speed_up_transformers(
    run: Callable[..., None], random_model: Segformer, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("transformers")
    sfpp.save_pretrained(random_model, "theirs", layout="huggingface")
    run("speed_up_transformers.py", "theirs", "photos/a.png", "--side", "96")
    first, none, *others = capsys.readouterr().out.splitlines()
    assert first.startswith("as it was: ")
    assert first.endswith("100.00% of the labels as before")
    assert float(none.split()[3].rstrip("%")) > 99
    assert [line.partition(":")[0] for line in others] == ["hq", "fast"]


def cells() -> list[dict[str, Any]]:
    """The notebook's cells with code."""
    notebook = json.loads(NOTEBOOK.read_text(encoding="utf-8"))
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def printed(cell: dict[str, Any]) -> str:
    """What a cell prints."""
    return "".join("".join(output.get("text", "")) for output in cell["outputs"])


def test_the_notebook_is_whole() -> None:
    assert NOTEBOOK.stat().st_size < 2**20
    for number, cell in enumerate(cells(), 1):
        compile("".join(cell["source"]), f"cell {number}", "exec")
        assert cell["execution_count"] == number
        assert not any(output["output_type"] == "error" for output in cell["outputs"])
    assert sum("image/png" in str(cell["outputs"]) for cell in cells()) >= 3


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path) -> None:
    pytest.importorskip("nbclient")
    for folder in ("examples", "samples"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    run = runpy.run_path(str(ROOT / "scripts" / "run_notebook.py"))["run"]
    found = [cell for cell in run(tmp_path / "examples" / "tour.ipynb").cells if "outputs" in cell]
    assert sum("image/png" in str(cell["outputs"]) for cell in found) >= 3
    before, after = (
        next(text for text in map(printed, some) if text.startswith("plan "))
        for some in (cells(), found)
    )
    # Not the share of equal labels beside them: that is a matter of the processor.
    assert [line[:26] for line in after.splitlines()] == [line[:26] for line in before.splitlines()]
