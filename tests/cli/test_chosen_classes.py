"""`segformerpp predict --classes` and `--save polygons`."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from faster_coco_eval import COCO
from PIL import Image

from segformerpp import Predictor, cli
from segformerpp.data.labels import class_ids, label_set
from segformerpp.data.video import VideoReader
from segformerpp.errors import UsageError
from segformerpp.models import Segformer
from tests.made_videos import make_video

SAMPLE = Path(__file__).parents[2] / "samples" / "highway.png"
CAMVID = label_set("camvid").labels


@pytest.fixture
def predict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, random_checkpoint: Path
) -> Callable[..., int]:
    """The command, in a folder with an image and a video."""
    monkeypatch.chdir(tmp_path)
    Image.open(SAMPLE).resize((192, 108)).save("a.png")
    make_video(tmp_path / "clip.mp4")

    def run(*arguments: str) -> int:
        options = ("--model", str(random_checkpoint), "--device", "cpu", "--runtime", "torch")
        return cli.main(["predict", *options, *arguments])

    return run


def test_class_ids() -> None:
    names = ("road", "rail, railing", "Sky ", "road", "7")
    assert class_ids("SKY, road", names) == (0, 2, 3)
    assert class_ids([2, "1"], names) == (1, 2)
    assert class_ids("rail,  Railing", names) == (1,)
    assert class_ids(["rail, railing", "7"], names) == (1, 4)
    with pytest.raises(UsageError, match=r"^classes: 'tree' is none of road \(0\), rail, railing"):
        class_ids("road,tree", names)
    for wrong in ("5", "-1", [True], [1.0]):
        with pytest.raises(UsageError, match=r"^classes: '.*' is none of"):
            class_ids(wrong, names)  # type: ignore[arg-type]
    nothings: tuple[str | list[str], ...] = ("", " , ", [])
    for nothing in nothings:
        with pytest.raises(UsageError, match=r"^classes: one or more"):
            class_ids(nothing, names)


def test_a_predictor_for_some_classes(random_model: Segformer) -> None:
    image = Image.open(SAMPLE).resize((96, 64))
    for tile in (None, (64, 64)):
        settings: dict[str, Any] = {"tile": tile, "device": "cpu", "runtime": "torch"}
        settings["probabilities"] = True
        everything = Predictor(random_model, **settings)(image)
        names = [CAMVID[i] for i in np.unique(everything.label_map)[:2]]
        predictor = Predictor(random_model, classes=names, **settings)
        found, expected = predictor(image), everything.only(names)
        assert found.classes == expected.classes
        np.testing.assert_array_equal(found.label_map, expected.label_map)
        assert found.probabilities is not None
        assert expected.probabilities is not None
        np.testing.assert_array_equal(found.probabilities, expected.probabilities)
        assert predictor.facts["classes"] == names


def test_chosen_classes_in_every_output(predict: Callable[..., int]) -> None:
    assert predict("a.png", "--save", "labels", "--out", "all") == 0
    every = np.asarray(Image.open("all/a_labels.png"))
    ids = np.unique(every)[:2].tolist()
    options = ("--classes", f"{CAMVID[ids[0]].upper()},{ids[-1]}", "--json", "r.json")
    assert predict("a.png", "--save", "labels,overlay,color,probs,polygons", *options) == 0
    kept = np.isin(every, ids)
    labels = np.asarray(Image.open("segmented/a_labels.png"))
    np.testing.assert_array_equal(labels, np.where(kept, every, 255))
    original, overlay = (np.asarray(Image.open(p)) for p in ("a.png", "segmented/a_overlay.png"))
    np.testing.assert_array_equal(overlay[:108, :192][~kept], original[~kept])
    assert len(np.load("segmented/a_probs.npz")["probabilities"]) == len(ids)
    (row,) = json.loads(Path("r.json").read_text())
    assert row["classes"] == list(row["shares"]) == [CAMVID[i] for i in ids]

    data = COCO("segmented/a_polygons.json")
    assert [c["name"] for c in data.loadCats(data.getCatIds())] == row["classes"]
    assert data.loadImgs(1)[0]["file_name"] == "a.png"
    before = Path("segmented/a_polygons.json").stat().st_mtime_ns
    assert predict("a.png", "--save", "polygons", "--resume") == 0
    assert Path("segmented/a_polygons.json").stat().st_mtime_ns == before


def test_chosen_classes_of_a_video(
    predict: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--save", "color,polygons", "--classes", "Sky", "--end", "0.2", "--json", "r.jsonl")
    assert predict("clip.mp4", *options) == 0
    assert capsys.readouterr().out.startswith("polygons are for images; none are made of videos\n")
    frame = next(iter(VideoReader("segmented/clip_color.mp4"))).image
    assert frame.shape == (48, 64, 3)
    rows = [json.loads(line) for line in Path("r.jsonl").read_text().splitlines()]
    assert all(set(row["shares"]) <= {"Sky"} for row in rows)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("a.png --classes tree,cloud", "classes: 'cloud' is none of Sky (0), Building (1), "),
        ("a.png --classes 11", "classes: '11' is none of Sky (0)"),
        ("a.png --classes ,", "classes: one or more, names or numbers with commas between"),
        ("clip.mp4 --save polygons", "save: polygons are for images; for videos overlay or color"),
    ],
)
def test_wrong_usage(
    predict: Callable[..., int], capsys: pytest.CaptureFixture[str], arguments: str, said: str
) -> None:
    assert predict(*arguments.split()) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"error: {said}")
    assert captured.err.count("\n") == 1


def test_a_model_of_poses_has_no_classes() -> None:
    with pytest.raises(UsageError, match=r"^classes: of models that segment"):
        Predictor("lsp-b0", classes="head", device="cpu", runtime="torch")
