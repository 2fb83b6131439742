import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segformerpp.data.poses import PoseDataset, open_poses
from segformerpp.data.skeletons import skeleton
from segformerpp.errors import ImageError, UsageError
from segformerpp.evaluation.pictures import worst_poses
from segformerpp.evaluation.pose import PoseEvaluation, PoseScore
from segformerpp.evaluation.side_by_side import evaluate
from segformerpp.metrics.average_precision import average_precision
from segformerpp.models import Metadata
from segformerpp.plans import MergePlan
from segformerpp.tasks.pose_result import PoseResult
from tests.data.test_poses import edit, make_people

Shift = Callable[[int], Any]


@dataclass
class Fake:
    """Knows the labelled keypoints, by everyone's box, and is so many pixels off for each call."""

    dataset: PoseDataset
    shift: Shift = lambda _: 0.0
    labels: tuple[str, ...] = ()
    calls: int = 0
    merge_plan: MergePlan = field(default_factory=MergePlan)

    def __post_init__(self) -> None:
        self.labels = self.labels or self.dataset.skeleton.names
        self.metadata = Metadata(task="pose", labels=self.labels)

    def __call__(self, image: np.ndarray, boxes: Sequence[Sequence[float]]) -> PoseResult:
        self.calls += 1
        known = {tuple(p.box.tolist()): p.keypoints for p in self.dataset.people}
        found = np.stack([known[tuple(box)] for box in boxes]).astype(np.float32)
        found[..., 2] = 1
        found[..., :2] += self.shift(self.calls)
        skeleton = self.dataset.skeleton
        values = (np.array(boxes), skeleton.names, skeleton.links, skeleton.palette, image)
        return PoseResult(found, *values, network_seconds=0.1 * len(boxes))


def run(evaluation: PoseEvaluation, *fakes: Any) -> tuple[list[PoseScore], list[str]]:
    scores, problems = [evaluation.score() for _ in fakes], list[str]()

    def fail(error: ImageError) -> None:
        problems.append(str(error))

    evaluate(fakes, evaluation, scores, fail, lambda: None)
    return scores, problems


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Six people with boxes of their own, 50 pixels tall."""
    make_people(tmp_path, "train", 6)

    def change(data: Any) -> None:
        for i, entry in enumerate(data["annotations"]):
            entry["bbox"] = [5 + i / 8, 5, 40, 50]

    edit(tmp_path, change)
    return tmp_path


def test_by_hand(root: Path) -> None:
    """Boxes are 50 tall: 0.1 of that are 5 pixels, 0.05 are 2.5."""
    dataset = open_poses(root, "train")
    off = np.array([[[2.4, 0], [0, 2.6]]])  # of the left hand and the right one
    scores, _ = run(
        PoseEvaluation(dataset),
        Fake(dataset),
        Fake(dataset, lambda _: off),
        Fake(dataset, lambda call: 3 * off if call <= 3 else 0),
    )
    rows = [score.row(scores[0]) for score in scores]
    assert [row["pck_0.1"] for row in rows] == [100, 100, 50]
    assert [row["pck_0.05"] for row in rows] == [100, 50, 50]
    assert [row["agreement"] for row in rows] == [100, 50, 50]
    assert rows[1]["per_keypoint_pck_0.05"] == {"left_hand": 100, "right_hand": 0}
    assert rows[0]["per_keypoint_pck_0.1"] == {"left_hand": 100, "right_hand": 100}
    assert [(row["ap"], row["ar"]) for row in rows] == [(None, None)] * 3
    assert (rows[0]["images"], rows[0]["people"]) == (6, 6)
    assert (rows[0]["median_ms"], rows[1]["speed_up"]) == (100, 1)
    assert scores[1].quality[0] == pytest.approx(-0.05)
    assert set(sorted(scores[2].quality, key=lambda i: scores[2].quality[i])[:3]) == {0, 1, 2}


def test_unlabelled_keypoints_do_not_count(root: Path) -> None:
    def change(data: Any) -> None:
        for entry in data["annotations"]:
            entry["keypoints"][3:] = [0, 0, 0]

    edit(root, change)
    dataset = open_poses(root, "train")
    [score], _ = run(PoseEvaluation(dataset), Fake(dataset, lambda _: [[[0, 0], [99, 99]]]))
    row = score.row(score)
    assert row["pck_0.1"] == 100
    assert row["per_keypoint_pck_0.1"] == {"left_hand": 100, "right_hand": None}


@pytest.mark.parametrize("noise", [0, 2.0])
def test_ap_is_cocos(shared: Path, noise: float) -> None:
    """With 1 crowd, and people without keypoints, who count neither way."""
    dataset = open_poses(shared / "data/coco_sample", "val")
    rng = np.random.default_rng(0)
    fake = Fake(dataset, lambda _: rng.normal(0, noise, (17, 2)))
    [score], problems = run(PoseEvaluation(dataset, ap=True), fake)
    truth = json.loads(dataset.annotations.read_text())
    wanted = [a for a in truth["annotations"] if a["num_keypoints"] and not a["iscrowd"]]
    row = score.row(score)
    assert not problems
    assert (row["people"], len(score.results)) == (len(wanted), len(wanted))
    expected = average_precision(truth, score.results, skeleton("coco").sigmas)
    assert (row["ap"], row["ar"]) == (round(expected["ap"], 2), round(expected["ar"], 2))
    assert (row["ap"] == row["pck_0.1"] == 100) == (noise == 0)


def test_the_first_images(shared: Path) -> None:
    dataset = open_poses(shared / "data/coco_sample", "val")
    evaluation = PoseEvaluation(dataset, images=3, ap=True)
    [score], _ = run(evaluation, Fake(dataset))
    row = score.row(score)
    assert (len(evaluation), row["images"], row["ap"]) == (3, 3, 100)


def test_an_image_that_cannot_be_read_counts_for_nobody(root: Path) -> None:
    (root / "images/train/2.png").write_bytes(b"none")
    dataset = open_poses(root, "train")
    scores, problems = run(PoseEvaluation(dataset), Fake(dataset), Fake(dataset))
    assert len(problems) == 1
    assert "2.png" in problems[0]
    assert [list(score.quality) for score in scores] == [[0, 1, 3, 4, 5]] * 2


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (("a", "b", "c"), "tells 3 keypoints apart .*, the dataset 2"),
        (("right_hand", "left_hand"), "has the keypoints of the dataset in another order"),
        (("tip", "base"), "tells other keypoints apart"),
    ],
)
def test_keypoints_must_be_the_models(root: Path, names: tuple[str, ...], reason: str) -> None:
    dataset = open_poses(root, "train")
    fake: Any = Fake(dataset, labels=names)
    with pytest.raises(UsageError, match=f"^model: {reason}"):
        PoseEvaluation(dataset).check(fake)


def test_annotations_that_ap_cannot_be_had_from(root: Path) -> None:
    """Said before anything is predicted."""
    edit(root, lambda data: data["annotations"].append({"keypoints": [0] * 6, "image_id": 0}))
    dataset = open_poses(root, "train")
    dataset = replace(dataset, skeleton=replace(dataset.skeleton, sigmas=(0.1, 0.1)))
    with pytest.raises(UsageError, match=r"^annotations: .* is no JSON of COCO: KeyError"):
        PoseEvaluation(dataset, ap=True)


def test_a_picture_of_errors(root: Path) -> None:
    """One hand right, one too far away."""
    dataset = open_poses(root, "train")
    fake = Fake(dataset, lambda _: [[[0, 0], [0, -20]]])
    sample = PoseEvaluation(dataset).read(0)
    result = fake(sample.image, [person.box.tolist() for person in sample.people])
    keypoints = np.stack([person.keypoints for person in sample.people])
    picture = np.asarray(worst_poses(result, keypoints, 0.1, "a title"))
    red = (picture == (214, 39, 40)).all(axis=2)
    green = (picture == (31, 140, 60)).all(axis=2)
    assert red.sum() > 200 + 2 * 200  # a line of 20 * 12 pixels, more or less
    assert 50 < green.sum() < red.sum() + 500
