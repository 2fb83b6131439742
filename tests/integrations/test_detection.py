import json
import sys
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from segformerpp import cli
from segformerpp.checkpoints import save
from segformerpp.errors import UsageError
from segformerpp.integrations.detection import PersonDetector
from segformerpp.models import Metadata
from segformerpp.predictor import Predictor
from tests.checkpoints.foreign import trained


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector as transformers writes it, of random weights; the second of its labels is chosen.

    Which class its queries say depends on the bias alone: of three classes the person wins, with a
    score of 0.8.
    """
    return write_detector(tmp_path_factory.mktemp("detector"), ["tree", "person"], 1)


def write_detector(folder: Path, labels: list[str], chosen: int) -> Path:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.YolosConfig(
        **sizes,
        intermediate_size=16,
        image_size=[64, 64],
        num_detection_tokens=4,
        id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )
    model = transformers.YolosForObjectDetection(config)
    last = model.class_labels_classifier.layers[-1]
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    last.bias.data[chosen] = np.log(8)
    for layer in model.bbox_predictor.layers:
        torch.nn.init.normal_(layer.weight, std=0.5)
    model.save_pretrained(folder)
    transformers.YolosImageProcessor(size={"height": 64, "width": 64}).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


def test_equals_transformers_pipeline(folder: Path, picture: np.ndarray) -> None:
    from transformers import pipeline

    found = PersonDetector(folder, device="cpu")(picture)
    assert len(found) == 4
    pipe: Any = pipeline("object-detection", model=str(folder), device="cpu")
    expected = pipe(Image.fromarray(picture), threshold=0.5)
    assert {row["label"] for row in expected} == {"person"}
    for (x, y, width, height), row in zip(found, expected, strict=True):
        box = row["box"]  # of whole numbers, cut off
        corners = (x + 0.5, y + 0.5, x + 0.5 + width, y + 0.5 + height)
        pairs = zip(corners, (box["xmin"], box["ymin"], box["xmax"], box["ymax"]), strict=True)
        assert all(abs(ours - theirs) < 1.001 for ours, theirs in pairs)


def test_only_people_and_only_sure_ones(folder: Path, picture: np.ndarray, tmp_path: Path) -> None:
    assert PersonDetector(folder, threshold=0.79)(picture)
    assert PersonDetector(folder, threshold=0.81)(picture) == []
    trees = write_detector(tmp_path, ["tree", "person"], 0)
    assert PersonDetector(trees)(picture) == []


def test_refused(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="detector_threshold: from 0 to 1, not 2"):
        PersonDetector(folder, threshold=2)
    with pytest.raises(UsageError, match=r"^detector: .*gone cannot be loaded: "):
        PersonDetector(tmp_path / "gone", offline=True)
    with pytest.raises(UsageError, match=r"finds no person, but tree, house and the like"):
        PersonDetector(write_detector(tmp_path, ["tree", "house"], 0))
    damaged = write_detector(tmp_path / "damaged", ["person"], 0)
    (damaged / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(UsageError, match=r"damaged cannot be loaded: "):
        PersonDetector(damaged)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UsageError, match=r"pip install 'segformerpp\[hf\]'"):
        PersonDetector(folder)


def test_command(folder: Path, picture: np.ndarray, tmp_path: Path) -> None:
    """An image and a video in one go."""
    network = trained(num_outputs=2)
    network.metadata = Metadata(task="pose", labels=("left", "right"), image_size=(64, 48))
    save(network, tmp_path / "pose.safetensors")
    Image.fromarray(picture).save(tmp_path / "a.png")
    with av.open(str(tmp_path / "b.mp4"), "w") as video:
        stream = video.add_stream("libx264", 5, width=90, height=60, pix_fmt="yuv420p")
        for _ in range(3):
            video.mux(stream.encode(av.VideoFrame.from_ndarray(picture)))
        video.mux(stream.encode(None))
    words = ["predict", str(tmp_path / "a.png"), str(tmp_path / "b.mp4"), "--quiet"]
    words += ["--model", str(tmp_path / "pose.safetensors"), "--runtime", "torch"]
    words += ["--detector", str(folder), "--out", str(tmp_path / "out")]
    assert cli.main(words) == 0
    people = json.loads((tmp_path / "out/a_keypoints.json").read_text())
    boxes = PersonDetector(folder)(picture)
    np.testing.assert_allclose([row["bbox"] for row in people], boxes, atol=2e-3)
    predict = Predictor(tmp_path / "pose.safetensors", runtime="torch")
    expected = predict(picture, boxes=boxes).to_coco()
    assert [row["keypoints"] for row in people] == [row["keypoints"] for row in expected]
    assert (tmp_path / "out/b_overlay.mp4").is_file()
