import io
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file

from segformerpp.checkpoints import load, save
from segformerpp.data.datasets import SegmentationDataset, open_dataset
from segformerpp.data.files import write_whole
from segformerpp.data.labels import LabelSet
from segformerpp.data.poses import PoseDataset, open_poses
from segformerpp.errors import ImageError, UsageError
from segformerpp.models import Metadata, Segformer, SegformerConfig
from segformerpp.training import keeping
from segformerpp.training.keeping import RESUME
from segformerpp.training.network import build, meaning, rate_at
from segformerpp.training.run import train
from segformerpp.training.settings import TrainSettings
from tests.training.test_batches import make_camvid
from tests.training.test_poses import make_jbd

CONFIGS = Path(__file__).parents[2] / "configs"
SETTINGS: dict[str, Any] = {
    "data": "camvid",
    "crop": "32x48",
    "batch": 2,
    "steps": 8,
    "lr": 1e-3,
    "head_lr_factor": 1.0,
    "warmup": 2,
    "ema": 0.9,
    "val_every": 4,
    "save_every": 1,
    "workers": 0,
    "pictures": 1,
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_camvid(tmp_path_factory.mktemp("camvid"), {"train": 6, "val": 3})


@pytest.fixture(scope="module")
def sets(root: Path) -> list[SegmentationDataset]:
    return [open_dataset("camvid", root, split) for split in ("train", "val")]


def settings(root: Path, out: Path, **changes: Any) -> TrainSettings:
    return TrainSettings(**{**SETTINGS, "root": str(root), "out": str(out), **changes})


def command(root: Path, out: Path, *words: str, **changes: Any) -> list[str]:
    values = {**SETTINGS, "root": root, "out": out, **changes}
    options = [f"--{key}={value}" for key, value in values.items()]
    return [sys.executable, "-m", "segformerpp", "train", *options, *words]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load(folder).state_dict()


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    assert [key for key in first if not torch.equal(first[key], second[key])] == []


def test_learns(root: Path, sets: list[SegmentationDataset], tmp_path: Path) -> None:
    said: list[str] = []
    steps = [0]

    def advance() -> None:
        steps[0] += 1

    wanted = settings(root, tmp_path, steps=60, val_every=20, lr=2e-3, merge="hq")
    row = train(wanted, *sets, report=said.append, advance=advance)
    assert steps == [60]
    assert len(said) == 3
    assert row["miou"] > 60  # one class alone: 30
    assert (row["steps"], row["images"], row["merge"]) == (60, 6, "hq")
    best = load(tmp_path / "best")
    assert best.merge_plan.name == "hq"
    assert best.metadata.labels == sets[0].classes.labels
    assert best.metadata.image_size == (32, 48)
    assert list((tmp_path / "logs/tensorboard").iterdir())
    lines = (tmp_path / "logs/csv/version_0/metrics.csv").read_text().splitlines()
    assert {"loss", "miou", "step"} <= set(lines[0].split(","))


def test_killed_runs_end_with_the_same_weights(root: Path, tmp_path: Path) -> None:
    subprocess.run(command(root, tmp_path / "a"), check=True, capture_output=True)
    killed = command(root, tmp_path / "b")
    process = subprocess.Popen(killed, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not (tmp_path / "b" / RESUME).exists():
        assert process.poll() is None
        time.sleep(0.02)
    time.sleep(random.uniform(0, 0.7))
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = torch.load(tmp_path / "b" / RESUME, weights_only=True)["global_step"]
    assert done >= 1
    ended = subprocess.run([*killed, "--resume"], check=False, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    for name in ("last", "best"):
        assert_same(weights(tmp_path / "a" / name), weights(tmp_path / "b" / name))


def test_interrupted(root: Path, tmp_path: Path) -> None:
    words = command(root, tmp_path, steps=10_000)
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / RESUME).exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert err.splitlines()[-1] == "interrupted: the same command with --resume goes on"


def test_interrupted_while_it_saves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / RESUME
    path.write_bytes(b"before")

    @contextmanager
    def interrupted(path: Path) -> Iterator[io.RawIOBase]:
        class File(io.RawIOBase):
            written = 0

            def writable(self) -> bool:
                return True

            def write(self, data: Any) -> int:
                self.written += len(data)
                if self.written > 100_000:
                    raise KeyboardInterrupt
                return len(data)

        with write_whole(path):
            yield File()

    monkeypatch.setattr(keeping, "write_whole", interrupted)
    with pytest.raises(KeyboardInterrupt):
        keeping.WholeFiles().save_checkpoint({"weights": torch.zeros(100_000)}, path)
    assert path.read_bytes() == b"before"


@pytest.mark.parametrize("done", [3, 4, 6])
def test_goes_on_from_any_step(
    root: Path, sets: list[SegmentationDataset], tmp_path: Path, done: int
) -> None:
    """From a validation too, behind which the weights are the best so far."""

    class Stopped(Exception):  # noqa: N818
        pass

    counted = [0]

    def stop() -> None:
        counted[0] += 1
        if counted[0] == done + 1:
            raise Stopped

    train(settings(root, tmp_path / "a", accumulate=2), *sets)
    broken = settings(root, tmp_path / "b", accumulate=2)
    with pytest.raises(Stopped):
        train(broken, *sets, advance=stop)
    said: list[str] = []
    train(broken, *sets, resume=True, report=said.append)
    assert [text.split()[1] for text in said] == (["8"] if done >= 4 else ["4", "8"])
    for name in ("last", "best"):
        assert_same(weights(tmp_path / "a" / name), weights(tmp_path / "b" / name))


def _losses(out: Path) -> list[float]:
    lines = [
        line.split(",")
        for line in (out / "logs/csv/version_0/metrics.csv").read_text().splitlines()
    ]
    column = lines[0].index("loss")
    return [float(line[column]) for line in lines[1:] if line[column]]


def test_two_processes_equal_one_with_twice_the_batch(root: Path, tmp_path: Path) -> None:
    """With norms that keep their statistics, and neither dropout nor drop path."""
    changes = {"drop_path": 0, "dropout": 0, "freeze_norms": "true", "log_every": 1, "steps": 12}
    one = command(root, tmp_path / "one", **changes, batch=4)
    two = command(root, tmp_path / "two", **changes, batch=2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={port}"]
    subprocess.run(one, check=True, capture_output=True)
    pair = [two[0], *launcher, *two[1:]]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(pair, check=False, capture_output=True, text=True, env=environment)
    assert ended.returncode == 0, ended.stderr[-2000:]
    alone, together = _losses(tmp_path / "one"), _losses(tmp_path / "two")
    assert len(alone) == 12
    np.testing.assert_allclose(together, alone, rtol=1e-3)
    assert ended.stdout.count("step 12 of 12") == 1


def test_a_run_is_not_overwritten(
    root: Path, sets: list[SegmentationDataset], tmp_path: Path
) -> None:
    train(settings(root, tmp_path, steps=2, warmup=0, save_every=5), *sets)
    with pytest.raises(UsageError, match="holds a run already"):
        train(settings(root, tmp_path, steps=2, warmup=0), *sets)
    with pytest.raises(UsageError, match=r"resume: not the run in .*: lr was 0.001"):
        train(settings(root, tmp_path, steps=2, warmup=0, lr=0.5), *sets, resume=True)
    fewer = replace(sets[0], pairs=sets[0].pairs[1:])
    with pytest.raises(UsageError, match=r"resume: not the run in .*: images was 6"):
        train(settings(root, tmp_path, steps=3, warmup=0), fewer, sets[1], resume=True)
    labels = LabelSet(("a", "b"), ((0, 0, 0), (1, 1, 1)))
    others = [replace(one, classes=labels) for one in sets]
    with pytest.raises(UsageError, match=r"resume: not the run in .*: labels was \['Sky', "):
        train(settings(root, tmp_path, steps=3, warmup=0), *others, resume=True)
    row = train(settings(root, tmp_path, steps=3, warmup=0), *sets, resume=True)
    assert row["steps"] == 3


def test_patience(root: Path, sets: list[SegmentationDataset], tmp_path: Path) -> None:
    wanted = settings(root, tmp_path, lr=1e-12, ema=0, steps=40, val_every=2, patience=2)
    done = train(wanted, *sets)
    assert done["steps"] <= 10
    again = train(wanted, *sets, resume=True)  # it has ended
    assert {**again, "seconds": 0} == {**done, "seconds": 0}
    longer = train(replace(wanted, patience=3), *sets, resume=True)
    assert longer["steps"] > done["steps"]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_breaks_in_training(
    root: Path, sets: list[SegmentationDataset], tmp_path: Path, workers: int
) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    pairs = (replace(sets[0].pairs[0], image=broken), *sets[0].pairs[1:])
    with pytest.raises(ImageError, match=r"^\S*broken.png: [^\n]*$"):
        train(settings(root, tmp_path, workers=workers), replace(sets[0], pairs=pairs), None)


def test_validates_on_images_that_are_smaller_than_the_plan_takes(
    root: Path, sets: list[SegmentationDataset], tmp_path: Path
) -> None:
    wanted = settings(root, tmp_path, steps=1, warmup=0, crop="64x64", merge="downsample")
    assert train(wanted, *sets)["miou"] >= 0


def test_masks_of_nothing_but_ignored_pixels_choose_nothing(
    root: Path, sets: list[SegmentationDataset], tmp_path: Path
) -> None:
    nothing = replace(sets[1], encode=partial(np.full_like, fill_value=255))
    row = train(settings(root, tmp_path, steps=2, warmup=0, patience=1), sets[0], nothing)
    assert (row["miou"], row["model"]) == (None, str(tmp_path / "last"))


@pytest.mark.parametrize("labels", [("a", "b", "c"), ("d", "e"), ("a", "b")])
def test_fine_tuning(
    random_model: Segformer, root: Path, tmp_path: Path, labels: Sequence[str]
) -> None:
    """The encoder is the checkpoint's; the classifier too, where the classes are."""
    start = build(settings(root, tmp_path), _meaning(("a", "b")))
    with torch.no_grad():
        for parameter in start.parameters():
            parameter.add_(0.1)
    start.merge_plan = "fast"
    save(start, tmp_path / "start.safetensors")
    wanted = settings(root, tmp_path, model=str(tmp_path / "start.safetensors"), dropout=0.3)
    model = build(wanted, _meaning(labels))
    assert_same(model.encoder.state_dict(), start.encoder.state_dict())
    kept = torch.equal(model.head.classifier.weight, start.head.classifier.weight)
    assert kept == (labels == ("a", "b"))
    assert model.metadata.labels == labels
    assert (model.config.num_outputs, model.config.dropout) == (len(labels), 0.3)
    assert model.merge_plan.name == "fast"
    assert build(replace(wanted, merge="none"), _meaning(labels)).merge_plan.name == "none"


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_the_head_of_an_encoder_alone_is_of_the_kind_that_is_wanted(
    root: Path, tmp_path: Path, kind: str
) -> None:
    encoder = Segformer(SegformerConfig.of_size("b0")).encoder.state_dict()
    save_file({f"encoder.{k}": v for k, v in encoder.items()}, tmp_path / "mit.safetensors")
    wanted = settings(root, tmp_path, model=str(tmp_path / "mit.safetensors"), head_kind=kind)
    model = build(wanted, _meaning(("a", "b")))
    assert (model.config.head_kind, model.config.num_outputs) == (kind, 2)
    assert_same(model.encoder.state_dict(), encoder)
    assert model.metadata.head_trained


def test_a_head_whose_classifier_alone_is_fresh_is_kept(root: Path, tmp_path: Path) -> None:
    save(load("camvid-b0", num_classes=5), tmp_path / "start.safetensors")
    wanted = settings(root, tmp_path, model=str(tmp_path / "start.safetensors"), head_kind="conv")
    model = build(wanted, _meaning(("a", "b")))
    assert model.config.head_kind == "linear"
    assert torch.equal(model.head.fuse.weight, load("camvid-b0").head.fuse.weight)


def _meaning(names: Sequence[str]) -> Metadata:
    return Metadata(labels=tuple(names), palette=tuple((i, i, i) for i in range(len(names))))


def test_rates() -> None:
    wanted = TrainSettings(root="x", steps=110, warmup=10, hold=0.5, power=2)
    assert [rate_at(step, wanted) for step in (0, 4, 9, 10, 59)] == [0.1, 0.5, 1, 1, 1]
    assert rate_at(85, wanted) == pytest.approx(0.25)
    assert rate_at(110, wanted) == 0
    held = TrainSettings(root="x", steps=110, warmup=10, hold=1)
    assert [rate_at(step, held) for step in (10, 109, 110)] == [1, 1, 1]  # last: at the end


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"root": ""}, "root: "),
        ({"crop": "12"}, "crop: height x width"),
        ({"batch": 0}, "batch: 1 or more, not 0"),
        ({"lr": -1.0}, "lr: more than 0"),
        ({"ema": 1.0}, "ema: from 0 to below 1"),
        ({"min_scale": 3.0}, "max_scale: min_scale or more"),
        ({"warmup": 8}, "warmup: less than 8 steps"),
        ({"warmup": 8, "epochs": 1}, "warmup: less than 3 steps"),
        ({"seed": -1}, "seed: 0 or more"),
        ({"crop": "31x48"}, "crop: at least 32 pixels on each side here, not 31x48"),
        ({"merge": "downsample"}, "crop: at least 64 pixels"),
        ({"precision": "f16", "device": "cpu"}, "precision: PyTorch has no fast f16"),
        ({"device": "tpu0"}, "device: "),
    ],
)
def test_refused(
    root: Path,
    sets: list[SegmentationDataset],
    tmp_path: Path,
    change: dict[str, Any],
    reason: str,
) -> None:
    with pytest.raises(UsageError, match=f"^{reason}"):
        train(settings(**{"root": root, "out": tmp_path, **change}), *sets)


def test_no_f16_where_auto_finds_a_processor(
    root: Path, sets: list[SegmentationDataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segformerpp.training.run.accelerators", list)
    with pytest.raises(UsageError, match=r"^precision: PyTorch has no fast f16"):
        train(settings(root=root, out=tmp_path, precision="f16"), *sets)


def test_command(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("data: camvid\nbatch: 2\ncrop: 32x48\nsteps: 9\nwarmup: 1\nworkers: 0\n")
    words = ["train", f"--config={file}", f"--root={root}", f"--out={tmp_path}", "--steps=3"]
    words += ["--val-every", "2", "--json", str(tmp_path / "row.json")]
    ended = subprocess.run(
        [sys.executable, "-m", "segformerpp", *words], check=True, capture_output=True, text=True
    )
    assert "step 2 of 3: mIoU" in ended.stdout
    assert "step 3 of 3: mIoU" in ended.stdout
    [row] = json.loads((tmp_path / "row.json").read_text())
    assert row["steps"] == 3
    assert (tmp_path / "best" / "model.safetensors").exists()


@pytest.mark.parametrize("name", sorted(path.stem for path in CONFIGS.glob("*.yaml")))
def test_shipped_configurations(shared: Path, tmp_path: Path, name: str) -> None:
    """They are understood whole, and train on the samples; the large ones only to the network."""
    values = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    data = values["data"]
    root = shared / "data" / ("camvid" if data == "camvid" else f"{data}_sample")
    split = {"camvid": "val", "cityscapes": "train", "ade20k": "val", "coco": "val"}[data]
    if name.startswith("jbd"):
        root = make_jbd(shared / "data" / "lsp", tmp_path / "jbd")
    small = {"crop": "64x96", "batch": 2, "steps": 2, "warmup": 1, "workers": 0, "val_every": 2}
    small |= {"epochs": 0, "val_every": 1}
    wanted = TrainSettings(**{**values, "root": str(root), "out": str(tmp_path), **small})
    dataset: SegmentationDataset | PoseDataset
    if data == "coco":
        dataset = open_poses(root, split)
        few: SegmentationDataset | PoseDataset = replace(dataset, people=dataset.people[:2])
        assert dataset.skeleton.links
    else:
        dataset = open_dataset(data, root, split)
        few = replace(dataset, pairs=dataset.pairs[:2])
    if values["model"] in ("b0", "b1", "camvid-b0"):
        row = train(wanted, few, few if data == "coco" else None)
        assert row["steps"] == 2
        assert data != "coco" or 0 <= row["pck_0.1"] <= 100
    else:
        assert build(wanted, meaning(wanted, dataset)).config.size == values["model"]
