import json
from pathlib import Path

import pytest

from segformerpp import Predictor, cli
from segformerpp.checkpoints import save
from segformerpp.models import Metadata
from tests.checkpoints.foreign import trained
from tests.data.test_poses import edit, make_people
from tests.training.test_batches import make_camvid

Captured = pytest.CaptureFixture[str]
NAMES = ("left_hand", "right_hand")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "hands.safetensors"
    network = trained(num_outputs=2)
    network.metadata = Metadata(task="pose", labels=NAMES, image_size=(64, 48))
    save(network, path)
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return make_people(tmp_path / "people", "train", 3)


def words(root: Path, model: Path, *more: str) -> list[str]:
    options = ["--data", "coco", "--root", str(root), "--split", "train", "--model", str(model)]
    return ["eval", *options, "--runtime", "torch", *more]


def test_everything(root: Path, model: Path, tmp_path: Path, capsys: Captured) -> None:
    (tmp_path / "hands.yaml").write_text(
        "names: [left_hand, right_hand]\nskeleton: [[left_hand, right_hand]]\nsigmas: [0.1, 0.1]\n"
    )
    files = {name: str(tmp_path / name) for name in ("rows.json", "results.json", "worst")}
    options = ["--merge", "none,hq", "--flip", "--keypoints", str(tmp_path / "hands.yaml")]
    options += ["--json", files["rows.json"], "--results", files["results.json"]]
    options += ["--worst", files["worst"], "--worst-count", "2"]
    assert cli.main(words(root, model, *options)) == 0
    out = capsys.readouterr().out
    assert "3 images with 3 people of coco train" in out
    assert "AP" in out.splitlines()[0]
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [(row["merge"], row["task"], row["flip"]) for row in rows] == [
        ("none", "pose", True),
        ("hq", "pose", True),
    ]
    expected = {"pck_0.1", "pck_0.05", "ap", "ar", "agreement", "median_ms", "speed_up", "images"}
    assert expected <= rows[0].keys()
    assert None not in (rows[0]["pck_0.1"], rows[0]["ap"], rows[0]["ar"])
    assert rows[0]["agreement"] == 100
    results = json.loads((tmp_path / "results.json").read_text())
    assert [row["image_id"] for row in results] == [0, 1, 2]
    predict = Predictor(model, runtime="torch", flip=True)
    found = predict(root / "images/train/1.png", boxes=[(5, 5, 40, 50)])
    assert results[1] == found.to_coco(1)[0]
    assert len(list((tmp_path / "worst").glob("0[12]_*.png"))) == 2


def test_without_sigmas(root: Path, model: Path, tmp_path: Path, capsys: Captured) -> None:
    """And with a box outside the image, and an image that cannot be read."""
    edit(root, lambda data: data["annotations"][0].update(bbox=[900, 900, 10, 10]))
    (root / "images/train/2.png").write_bytes(b"none")
    assert cli.main(words(root, model, "--json", str(tmp_path / "rows.json"))) == 1
    captured = capsys.readouterr()
    assert "without AP and AR: AP needs one for each keypoint" in captured.out
    assert "2.png" in captured.err
    [row] = json.loads((tmp_path / "rows.json").read_text())
    assert (row["ap"], row["ar"], row["images"]) == (None, None, 2)
    assert row["pck_0.1"] <= 50  # whoever has such a box is not found


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--scales", "1,2"], "scales: for models that segment"),
        (["--tile", "32x32"], "tile: for models that segment"),
        (["--overlap", "8"], "overlap: for models that segment"),
        (["--confusion", "x.png"], "confusion: for models that segment"),
        (["--classes", "x.yaml"], "classes: of images with masks; poses have --keypoints"),
        (["--keypoints", "x.yaml"], "keypoints: x.yaml cannot be read"),
        (["--merge", "downsample"], "merge: plans that shrink the image are for models"),
        (["--images", "0"], "images: a whole number from 1"),
        (["--split", "test"], "split: no annotations for 'test'"),
        (["--results", "."], "results: . is a folder"),
        (["--model", "camvid-b0"], "model: one for segmentation, and the dataset has keypoints"),
        (["--model", "lsp-b0"], "model: tells 14 keypoints apart"),
    ],
)
def test_refused(
    root: Path,
    model: Path,
    options: list[str],
    reason: str,
    capsys: Captured,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Before anything is computed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Predictor, "__call__", lambda *_, **__: pytest.fail("predicted"))
    assert cli.main(words(root, model, *options, "--quiet")) == 2
    err = capsys.readouterr().err
    assert reason in err
    assert err.count("\n") == 1


def test_missing_images_are_named(root: Path, model: Path, capsys: Captured) -> None:
    (root / "images/train/0.png").unlink()
    assert cli.main(words(root, model)) == 2
    assert "names images that are missing: " in capsys.readouterr().err


def test_what_is_for_poses(tmp_path: Path, capsys: Captured) -> None:
    root = make_camvid(tmp_path / "camvid", {"val": 1})
    for option, reason in (
        ("--keypoints", "keypoints: of people, which are in --data coco"),
        ("--results", "results: keypoints of people, which are in --data coco"),
    ):
        command = ["eval", "--data", "camvid", "--root", str(root), option, str(tmp_path / "x")]
        assert cli.main(command) == 2
        assert reason in capsys.readouterr().err
