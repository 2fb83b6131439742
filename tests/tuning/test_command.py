import json
from pathlib import Path

import pytest
import yaml

from segformerpp import cli
from segformerpp.benchmark import gains
from segformerpp.checkpoints import save
from segformerpp.cli.tune import _budget
from segformerpp.data.images import read_image
from segformerpp.errors import UsageError
from segformerpp.models import Metadata
from segformerpp.plans import PRESETS, MergePlan
from segformerpp.tuning import evaluator, run
from segformerpp.tuning.images import Images
from tests.checkpoints.foreign import trained
from tests.data.test_poses import make_people
from tests.training.test_batches import make_camvid

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gains, "TURN_SECONDS", 0.001)
    monkeypatch.setattr(evaluator, "QUICK", (3, 1.0))
    monkeypatch.setattr(evaluator, "CAREFUL", (3, 1.0))


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_camvid(tmp_path_factory.mktemp("camvid"), {"val": 6})


def words(root: Path, out: Path, *more: str) -> list[str]:
    common = ["--runtime", "torch", "--device", "cpu", "--size", "64x64", "--out", str(out)]
    return ["tune", "--data", "camvid", "--root", str(root), *common, *more]


def test_from_images_to_a_plan_and_on(root: Path, tmp_path: Path, capsys: Captured) -> None:
    out, rows_file = tmp_path / "mine.yaml", tmp_path / "rows.json"
    options = ["--max-drop", "100", "--json", str(rows_file), "--precision", "f32,bf16"]
    presets = str(len(PRESETS))
    assert cli.main(words(root, out, *options, "--trials", presets)) == 0
    printed = capsys.readouterr().out
    assert "best so far: " in printed
    assert f"plan in {out}, report in {tmp_path / 'mine.md'}" in printed
    plan = MergePlan.parse(str(out))
    rows = json.loads(rows_file.read_text())
    assert {row["merge"] for row in rows if row["images_of"] == "search"} == set(PRESETS)
    assert {row["merge"] for row in rows if row["chosen"]} == {plan.name}
    assert {row["precision"] for row in rows if row["images_of"] == "search"} == {"f32"}
    assert {row["precision"] for row in rows if row["chosen"]} == {"f32", "bf16"}
    assert "best in precision " in printed
    checked = [row for row in rows if row["images_of"] == "check"]
    assert checked[0]["merge"] == plan.name
    assert (checked[0]["images"], checked[0]["runtime"], checked[0]["plans"]) == (2, "torch", 7)
    assert (checked[0]["task"], checked[0]["images_to_search"]) == ("segmentation", 4)
    assert checked[0]["drop"] is not None
    assert checked[0]["speed_up"] > 0
    report = (tmp_path / "mine.md").read_text()
    for text in ("at most 100 points of mIoU lost", "2 held-out images", "mine.png", "| `hq` |"):
        assert text in report
    assert "# budget: at most 100" in out.read_text()
    assert yaml.safe_load(out.read_text()) == plan.to_dict()
    assert (tmp_path / "mine.png").stat().st_size > 10_000
    # The same command with more trials goes on.
    assert cli.main(words(root, out, *options, "--trials", "8")) == 0
    rows = json.loads(rows_file.read_text())
    assert len([row for row in rows if row["images_of"] == "search"]) == 8
    # Another budget is another study.
    assert cli.main(words(root, out, "--max-drop", "3")) == 2
    assert "mine.study is of other settings: budget was 'at most 100" in capsys.readouterr().err


def test_people(tmp_path: Path, capsys: Captured) -> None:
    model, root = tmp_path / "hands.safetensors", make_people(tmp_path / "people", "val", 6)
    network = trained(num_outputs=2)
    names = ("left_hand", "right_hand")
    network.metadata = Metadata(task="pose", labels=names, image_size=(64, 48))
    save(network, model)
    out, rows_file = tmp_path / "new" / "mine.yaml", tmp_path / "rows.json"
    command = ["tune", "--data", "coco", "--root", str(root), "--model", str(model)]
    command += ["--runtime", "torch", "--device", "cpu", "--json", str(rows_file)]
    command += ["--max-drop", "100", "--trials", str(len(PRESETS)), "--out", str(out)]
    assert cli.main(command) == 0
    assert "points of PCK@0.1 lost" in capsys.readouterr().out
    assert "keypoints kept" in out.with_suffix(".md").read_text()
    checked = [row for row in json.loads(rows_file.read_text()) if row["images_of"] == "check"]
    assert (checked[0]["task"], checked[0]["images"]) == ("pose", 2)
    assert 0 <= checked[0]["pck_0.1"] <= 100
    # What shrinks the image is not for people, so one plan besides the presets was tried.
    plans = {row["merge"] for row in json.loads(rows_file.read_text())}
    assert "downsample" not in plans
    assert len(plans) == len(PRESETS)
    assert cli.main([*command, "--classes", "a.yaml"]) == 2
    assert "classes: of images with masks" in capsys.readouterr().err


def test_a_check_that_fails_loses_nothing(
    root: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise UsageError("root: nothing in the masks counts")

    monkeypatch.setattr(evaluator.PlanEvaluator, "measure", fail)
    out = tmp_path / "mine.yaml"
    assert cli.main(words(root, out, "--max-drop", "100", "--trials", "2")) == 1
    assert "failed: not checked on held-out images: root: nothing" in capsys.readouterr().err
    assert MergePlan.parse(str(out))
    assert "Not checked on held-out images" in out.with_suffix(".md").read_text()


def test_images_without_masks_and_interrupted(
    root: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[MergePlan] = []
    before = evaluator.PlanEvaluator.open

    def open_three(self: evaluator.PlanEvaluator, plan: MergePlan, **more: object) -> object:
        opened.append(plan)
        if len(opened) == 3:
            raise KeyboardInterrupt
        return before(self, plan)

    monkeypatch.setattr(evaluator.PlanEvaluator, "open", open_three)
    out = tmp_path / "mine.yaml"
    command = words(root, out, "--min-agreement", "99")
    command[command.index("camvid")] = "images"
    command[command.index(str(root))] = str(root / "val")
    assert cli.main([*command, "--quiet"]) == 130
    captured = capsys.readouterr()
    assert captured.out == ""
    assert "interrupted: this is the best so far; the same command goes on" in captured.err
    assert "interrupted before it was checked" in out.read_text()
    assert "On images with noise, of a spread of 10 of 255. " in out.with_suffix(".md").read_text()
    assert MergePlan.parse(str(out)) in opened[:2]


def test_noise_is_on_what_is_searched_without_masks(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noisy = []

    def stop(network: object, parts: tuple[Images, Images], *_: object) -> None:
        noisy.append([bool((p.read(0)[0] != read_image(p.paths[0])).any()) for p in parts])
        raise UsageError("enough")

    monkeypatch.setattr(run, "tune", stop)
    command = words(root, tmp_path / "mine.yaml")
    assert cli.main(command) == 2
    assert cli.main([*command, "--noise", "5"]) == 2
    command[command.index("camvid")] = "images"
    command[command.index(str(root))] = str(root / "val")
    assert cli.main(command) == 2
    assert cli.main([*command, "--noise", "0"]) == 2
    assert noisy == [[False, False], [True, False], [True, False], [False, False]]


@pytest.mark.parametrize(
    ("data", "max_drop", "min_agreement", "expected"),
    [
        ("camvid", None, None, (0.3, 98.5)),
        ("camvid", 2.0, None, (2.0, 90.0)),
        ("camvid", 0.0, None, (0.0, 99.0)),
        ("camvid", 30.0, None, (30.0, None)),
        ("camvid", 0.3, 0.0, (0.3, 0.0)),
        ("camvid", None, 0.0, (0.3, 0.0)),
        ("camvid", None, 97.0, (None, 97.0)),
        ("images", None, None, (None, 98.0)),
        ("images", None, 99.0, (None, 99.0)),
        ("coco", None, None, (0.3, None)),
    ],
)
def test_points_allow_few_labels_to_change(
    data: str,
    max_drop: float | None,
    min_agreement: float | None,
    expected: tuple[float | None, float | None],
) -> None:
    budget = _budget(data, max_drop, min_agreement)
    assert (budget.max_drop, budget.min_agreement) == expected


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--root", ""], "root: the folder with the images is needed"),
        (
            ["--data", "foo"],
            "data: one of camvid, cityscapes, ade20k, folder, coco, images, not 'foo'",
        ),
        (["--data", "images", "--max-drop", "1"], "max_drop: needs masks"),
        (["--data", "images", "--check-split", "test"], "check_split: of datasets"),
        (["--data", "images", "--split", "val"], "split, check_split: of datasets"),
        (["--keypoints", "a.yaml"], "keypoints: of people, which are in --data coco"),
        (["--max-drop", "-1"], "max_drop: points of mIoU, from 0 to 100, not -1"),
        (["--min-agreement", "101"], "min_agreement: percent, from 0 to 100, not 101"),
        (["--minutes", "0"], "minutes: more than 0"),
        (["--trials", "0"], "trials: a whole number from 1"),
        (["--out", "plan.txt"], "out: a file ending in .yaml, not 'plan.txt'"),
        (["--precision", "int8", "--runtime", "openvino"], "precision: int8 is tried when"),
        (["--precision", "f32,int8"], "precision: int8 is for the runtime openvino, not for torch"),
        (["--model", "lsp-b0"], "model: one for pose, and the dataset has masks"),
        (["--images", "0"], "images: a whole number from 1"),
        (["--noise", "-1"], "noise: from 0 to 255, not -1"),
    ],
)
def test_wrong_usage(
    root: Path, tmp_path: Path, capsys: Captured, options: list[str], reason: str
) -> None:
    assert cli.main(words(root, tmp_path / "x.yaml", *options)) == 2
    error = capsys.readouterr().err
    assert reason in error
    assert error.count("\n") == 1


def test_without_optuna(
    root: Path, tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    assert cli.main(words(root, tmp_path / "x.yaml")) == 2
    assert 'needs optuna: pip install "segformerpp[tune]"' in capsys.readouterr().err
