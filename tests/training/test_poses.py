import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segformerpp.checkpoints import load
from segformerpp.data.poses import open_poses
from segformerpp.data.skeletons import Skeleton, skeleton
from segformerpp.errors import UsageError
from segformerpp.models import Metadata
from segformerpp.tasks.pose import PoseCodec
from segformerpp.training.losses import heatmap_loss
from segformerpp.training.module import PoseModule
from segformerpp.training.network import build, meaning
from segformerpp.training.people import PoseAugmentation
from segformerpp.training.run import train
from segformerpp.training.samples import PoseSamples
from segformerpp.training.settings import TrainSettings
from tests.data.test_poses import make_people

SETTINGS: dict[str, Any] = {
    "data": "coco",
    "crop": "64x48",
    "sigma": 1.5,
    "min_scale": 0.9,
    "max_scale": 1.1,
    "rotation": 10.0,
    "colour": 0.0,
    "batch": 8,
    "lr": 3e-3,
    "head_lr_factor": 1.0,
    "warmup": 5,
    "ema": 0.9,
    "workers": 0,
    "pictures": 1,
}


def make_jbd(lsp: Path, root: Path, people: int = 4) -> Path:
    """A few images of LSP with keypoints by the names of the Jump Broadcast dataset."""
    names, known = skeleton("jbd").names, skeleton("lsp").names
    same = {"head": "head_top", **{name: name for name in names}}
    for split in ("train", "val"):
        data = json.loads((lsp / f"annotations/person_keypoints_{split}.json").read_text())
        data["images"] = data["images"][:people]
        ids = {image["id"] for image in data["images"]}
        data["annotations"] = [a for a in data["annotations"] if a["image_id"] in ids]
        for entry in data["annotations"]:
            points = np.array(entry["keypoints"]).reshape(-1, 3)
            both = [
                points[known.index(same[name])] if same[name] in known else np.zeros(3)
                for name in names
            ]
            entry["keypoints"] = np.concatenate(both).tolist()
        data["categories"] = [{"id": 1, "name": "person", "keypoints": list(names)}]
        (root / "annotations").mkdir(parents=True, exist_ok=True)
        (root / "annotations" / f"{split}.json").write_text(json.dumps(data))
        (root / "images").mkdir(exist_ok=True)
        (root / "images" / split).symlink_to(lsp / "images" / split)
    return root


def test_learns(tmp_path: Path) -> None:
    names = ("red", "blue")  # of no side, for a mirror leaves colours as they are
    make_people(tmp_path, "train", 48, names=names)
    make_people(tmp_path, "val", 8, seed=1, names=names)
    sets = [open_poses(tmp_path, split) for split in ("train", "val")]
    said: list[str] = []
    wanted = TrainSettings(
        root=str(tmp_path), out=str(tmp_path / "out"), steps=90, val_every=45, **SETTINGS
    )
    row = train(wanted, *sets, report=said.append)
    assert row["pck_0.1"] > 50  # by chance: 3
    assert "PCK@0.1" in said[-1]
    model = load(tmp_path / "out" / "best")
    data = model.metadata
    assert (data.task, data.labels) == ("pose", names)
    assert (data.skeleton, data.sigma, data.coding) == (((0, 1),), 1.5, "udp")
    assert data.image_size == (64, 48)


def test_epochs_decide_the_steps(tmp_path: Path) -> None:
    dataset = open_poses(make_people(tmp_path, "train", 5), "train")
    changes = {**SETTINGS, "batch": 2, "epochs": 2, "warmup": 0}
    wanted = TrainSettings(root=str(tmp_path), out=str(tmp_path / "out"), **changes)
    assert train(wanted, dataset, None)["steps"] == 5


def test_plans_that_shrink_the_image_are_refused(tmp_path: Path) -> None:
    dataset = open_poses(make_people(tmp_path, "train", 1), "train")
    changes = {**SETTINGS, "crop": "96x64", "merge": "downsample", "steps": 6}
    wanted = TrainSettings(root=str(tmp_path), out=str(tmp_path / "out"), **changes)
    with pytest.raises(UsageError, match="merge: plans that shrink the image"):
        train(wanted, dataset, None)


def test_counts_stay_in_double_precision_where_a_device_has_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as Apple's: one process has nothing to add up, and nothing to move there."""
    dataset = open_poses(make_people(tmp_path, "train", 1), "train")
    wanted = TrainSettings(root=str(tmp_path), **SETTINGS)
    module = PoseModule(build(wanted, meaning(wanted, dataset)), wanted)
    monkeypatch.setattr(PoseModule, "device", torch.device("meta"))
    np.testing.assert_array_equal(module.add_up(np.array([1.0, 2.0])), [1.0, 2.0])


def test_command(tmp_path: Path) -> None:
    make_people(tmp_path, "train", 4)
    make_people(tmp_path, "val", 2)
    values = {**SETTINGS, "root": tmp_path, "out": tmp_path / "out", "steps": 2, "warmup": 0}
    options = [f"--{key}={value}" for key, value in values.items()]
    command = [sys.executable, "-m", "segformerpp", "train", *options]
    command += ["--json", str(tmp_path / "row")]
    ended = subprocess.run(command, check=True, capture_output=True, text=True)
    assert "all 4 images can be used" in ended.stdout
    [row] = json.loads((tmp_path / "row").read_text())
    assert (row["steps"], row["images"]) == (2, 4)
    (tmp_path / "images/train/1.png").write_bytes(b"none")
    ended = subprocess.run([*command, "--check-data"], check=False, capture_output=True, text=True)
    assert ended.returncode == 1
    assert "1.png" in ended.stderr


def test_loss_by_hand() -> None:
    rng = torch.Generator().manual_seed(0)
    found, wanted = torch.rand(2, 3, 4, 5, generator=rng), torch.rand(2, 3, 4, 5, generator=rng)
    weights = torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    expected = sum(
        ((found[b, k] - wanted[b, k]) ** 2).sum() for b in (0, 1) for k in range(3) if weights[b, k]
    )
    loss = heatmap_loss(found, wanted, weights)
    assert loss.item() == pytest.approx(float(expected) / 100 / 3)
    assert heatmap_loss(found, wanted, torch.zeros(2, 3)).item() == 0


@pytest.mark.parametrize("half_body", [0.0, 1.0])
def test_keypoints_stay_with_their_image(tmp_path: Path, half_body: float) -> None:
    """The red hand is where the left one is said to be, after a mirror the right one."""
    dataset = open_poses(make_people(tmp_path, "train", 6), "train")
    codec = PoseCodec((64, 48))
    augment = PoseAugmentation(codec, dataset.skeleton, half_body=half_body, colour=0)
    mirrored = 0
    for seed in range(40):
        image, person = dataset.read(seed % 6)
        crop, keypoints = augment(image, person, np.random.default_rng(seed))
        for i in (0, 1):
            x, y = np.rint(keypoints[i, :2]).astype(int)
            if not (2 < x < 45 and 2 < y < 61):
                continue
            red, _, blue = crop[y, x].astype(int)
            assert abs(red - blue) > 100
            mirrored += (i == 0) != (red > blue)
    assert 10 < mirrored < 60


def test_a_box_outside_the_image_teaches_nothing(tmp_path: Path) -> None:
    dataset = open_poses(make_people(tmp_path, "train", 1), "train")
    away = replace(dataset.people[0], box=np.array([900.0, 900, 20, 20]))
    dataset = replace(dataset, people=(away,))
    codec = PoseCodec((64, 48))
    augmentation = PoseAugmentation(codec, dataset.skeleton, half_body=0, colour=0)
    samples = PoseSamples(dataset, augmentation, codec, Metadata(task="pose"))
    image, heatmaps, weights = samples.draw(0, np.random.default_rng(0))
    assert np.isfinite(image).all()
    assert not heatmaps.any()
    assert not weights.any()


def test_half_bodies(tmp_path: Path) -> None:
    names = ("left_hip", "right_hip", "left_knee", "right_knee", "head", "neck", "left_hand", "x")
    augment = PoseAugmentation(PoseCodec((64, 48)), Skeleton(names), half_body=1.0)
    person = open_poses(make_people(tmp_path, "train", 1), "train").people[0]
    keypoints = np.array([[10 * i, 100 - 10 * i, 2] for i in range(8)], np.float32)
    person = replace(person, keypoints=keypoints, box=np.array([0.0, 0, 80, 110]))
    boxes = {
        tuple(augment._half(person, np.random.default_rng(seed)).tolist()) for seed in range(9)
    }
    # Around x 0..30 and 40..70, half as large again.
    assert boxes == {(-7.5, 62.5, 45.0, 45.0), (32.5, 22.5, 45.0, 45.0)}
    few = replace(person, keypoints=keypoints * (np.arange(8) < 7)[:, None])
    assert augment._half(few, np.random.default_rng(0)).tolist() == [0, 0, 80, 110]
