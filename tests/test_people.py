import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnxruntime import InferenceSession
from PIL import Image

import segformerpp as sfpp
from segformerpp import cli
from segformerpp.checkpoints import save
from segformerpp.data.skeletons import skeleton
from segformerpp.errors import UsageError
from segformerpp.models import Metadata, Segformer, SegformerConfig
from segformerpp.people import checked_boxes
from segformerpp.predictor import Predictor
from segformerpp.runtimes.graph import IMAGES
from segformerpp.tasks.pose import PoseCodec, codec_of, to_image
from segformerpp.tasks.segmentation import normalise
from tests.training.test_batches import make_camvid


@pytest.fixture(scope="module")
def pose_model() -> Segformer:
    torch.manual_seed(0)
    lsp = skeleton("lsp")
    data = Metadata(
        task="pose",
        labels=lsp.names,
        palette=lsp.palette,
        skeleton=lsp.links,
        image_size=(64, 48),
        source="random",
    )
    return Segformer(SegformerConfig.of_size("b0", num_outputs=14), data).eval()


@pytest.fixture(scope="module")
def picture() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


BOXES = [(10.0, 5.0, 40.0, 70.0), (60.5, 20.0, 30.0, 30.0), (-20.0, -10.0, 60.0, 60.0)]


@pytest.mark.parametrize("runtime", ["torch", "openvino"])
def test_equals_crops_one_by_one(pose_model: Segformer, picture: np.ndarray, runtime: str) -> None:
    predict = Predictor(pose_model, runtime=runtime, batch=2, precision="f32")
    result = predict(picture, boxes=BOXES)
    assert result.keypoints.shape == (3, 14, 3)
    assert result.labels == skeleton("lsp").names
    assert result.network_seconds > 0
    codec = codec_of(pose_model.metadata)
    for box, found in zip(BOXES, result.keypoints, strict=True):
        transform = codec.transform(np.array(box))
        x = normalise(codec.crop(picture, transform), pose_model.metadata)
        with torch.no_grad():
            heatmaps = pose_model(torch.from_numpy(x[None])).numpy()
        expected = to_image(codec.decode(heatmaps)[0], transform)
        np.testing.assert_allclose(found[:, 2], expected[:, 2], atol=1e-4)
        # Peaks of random heatmaps may be as high as others; then another one is found.
        near = np.abs(found[:, :2] - expected[:, :2]).max(axis=1) < 0.5
        assert near.mean() > 0.9


def test_flipping_twice_is_the_mean(pose_model: Segformer, picture: np.ndarray) -> None:
    """A symmetric picture has symmetric keypoints under the flip test."""
    half = picture[:, :60]
    symmetric = np.concatenate((half, half[:, ::-1]), axis=1)
    predict = Predictor(pose_model, runtime="torch", flip=True)
    points = predict(symmetric, boxes="image").keypoints[0]
    mirrored = points[list(skeleton("lsp").mirror)]
    np.testing.assert_allclose(points[:, 2], mirrored[:, 2], atol=1e-4)


def test_the_whole_image_is_the_default(pose_model: Segformer, picture: np.ndarray) -> None:
    predict = Predictor(pose_model, runtime="torch")
    whole = predict(picture, boxes="image")
    assert whole.boxes.tolist() == [[-0.5, -0.5, 120, 90]]
    np.testing.assert_array_equal(predict(picture, boxes=whole.boxes).keypoints, whole.keypoints)
    [streamed] = predict.stream([picture], boxes=lambda _: "image")
    np.testing.assert_array_equal(streamed.keypoints, whole.keypoints)


@pytest.mark.parametrize("size", [(90, 120), (91, 64), (1, 7)])
def test_the_whole_image_is_as_large_as_its_mirror_image(size: tuple[int, int]) -> None:
    """Its middle is that of the input, in pixel centres: 59.5 of 120 pixels is 23.5 of 48."""
    height, width = size
    codec = PoseCodec((64, 48))
    [box] = checked_boxes("image", np.zeros((*size, 3), np.uint8))
    transform = codec.transform(box)
    middle = transform[:, :2] @ ((width - 1) / 2, (height - 1) / 2) + transform[:, 2]
    np.testing.assert_allclose(middle, (23.5, 31.5))
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    mirrored = codec.crop(np.ascontiguousarray(image[:, ::-1]), transform)[:, ::-1]
    # OpenCV rounds positions to 1/32 of a pixel, in the mirror to the other side.
    difference = np.abs(mirrored.astype(int) - codec.crop(image, transform))
    assert difference.max() <= 2 * 255 / 32 + 1


def test_where_the_image_ends(pose_model: Segformer, picture: np.ndarray) -> None:
    """Half a pixel before the centre of the first pixel, and after that of the last."""
    predict = Predictor(pose_model, runtime="torch")
    boxes = [(-10.5, 0, 10, 9), (-10.4, 0, 10, 9), (119.5, 0, 9, 9), (119.4, 0, 9, 9)]
    confidences = predict(picture, boxes=boxes).keypoints[..., 2]
    assert (confidences == 0).all(axis=1).tolist() == [True, False, True, False]


def test_a_detector_says_where_people_are(pose_model: Segformer, picture: np.ndarray) -> None:
    """Unless boxes are given; it sees the image as it was read."""
    seen: list[np.ndarray] = []

    def detect(image: np.ndarray) -> list[tuple[float, float, float, float]]:
        seen.append(image)
        return BOXES[:2]

    predict = Predictor(pose_model, runtime="torch", detector=detect)
    expected = Predictor(pose_model, runtime="torch")(picture, boxes=BOXES[:2])
    results: list[Any] = [predict(picture)]
    results += predict.stream([picture, Image.fromarray(picture)])
    for result in results:
        np.testing.assert_array_equal(result.keypoints, expected.keypoints)
    assert len(seen) == 3
    assert all(np.array_equal(image, picture) for image in seen)
    assert predict(picture, boxes=[]).keypoints.shape == (0, 14, 3)
    assert len(seen) == 3


def test_nobody_and_people_outside(pose_model: Segformer, picture: np.ndarray) -> None:
    predict = Predictor(pose_model, runtime="torch")
    assert predict(picture, boxes=[]).keypoints.shape == (0, 14, 3)
    assert predict(picture, boxes=[]).plot().size == (120, 90)
    outside = predict(picture, boxes=[(500, 10, 20, 20), (-90, 0, 50, 50)])
    assert (outside.keypoints[..., 2] == 0).all()
    assert np.array_equal(np.asarray(outside.plot()), picture)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"tile": (64, 64)}, "^tile: "),
        ({"probabilities": True}, "^probabilities: "),
        ({"merge": "downsample"}, "^merge: "),
        ({"size": (16, 64)}, "^size: at least 32"),
    ],
)
def test_what_poses_do_not_have(
    pose_model: Segformer, arguments: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UsageError, match=reason):
        Predictor(pose_model, runtime="torch", **arguments)


def test_boxes_that_make_no_sense(
    pose_model: Segformer, random_model: Segformer, picture: np.ndarray
) -> None:
    predict = Predictor(pose_model, runtime="torch")
    wrong: list[Any] = [[(0, 0, 0, 0)], 5, "person", [1, 2, 3, 4]]
    for boxes in wrong:
        with pytest.raises(UsageError, match=r"^box(es)?: "):
            predict(picture, boxes=boxes)
    with pytest.raises(UsageError, match="one of segmentation"):
        Predictor(random_model, runtime="torch")(picture, boxes=BOXES)
    with pytest.raises(UsageError, match=r"^flip: "):
        Predictor(random_model, runtime="torch", flip=True)


def test_saved_and_loaded(pose_model: Segformer, picture: np.ndarray, tmp_path: Path) -> None:
    save(pose_model, tmp_path / "pose.safetensors")
    Image.fromarray(picture).save(tmp_path / "people.png")
    predict = Predictor(tmp_path / "pose.safetensors", runtime="torch")
    assert predict.metadata == pose_model.metadata
    result = predict(tmp_path / "people.png", boxes=BOXES)
    expected = Predictor(pose_model, runtime="torch")(picture, boxes=BOXES)
    np.testing.assert_array_equal(result.keypoints, expected.keypoints)
    assert predict.facts["task"] == "pose"


def test_command(pose_model: Segformer, picture: np.ndarray, tmp_path: Path) -> None:
    save(pose_model, tmp_path / "pose.safetensors")
    for name in ("a.png", "b.png"):
        Image.fromarray(picture).save(tmp_path / name)
    (tmp_path / "boxes.txt").write_text("a.png 10 5 40 70\na.png 60.5 20 30 30\n")
    words = ["predict", str(tmp_path / "a.png"), str(tmp_path / "b.png"), "--quiet"]
    words += ["--model", str(tmp_path / "pose.safetensors"), "--runtime", "torch"]
    words += ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "rows.json")]
    assert cli.main([*words, "--boxes", str(tmp_path / "boxes.txt")]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["people"] for row in rows] == [2, 0]
    assert (rows[0]["task"], rows[0]["size"]) == ("pose", "90x120")
    first, second = json.loads((tmp_path / "out/a_keypoints.json").read_text())
    expected = Predictor(pose_model, runtime="torch")(picture, boxes=BOXES[:2]).keypoints
    np.testing.assert_allclose(first["keypoints"], expected[0].ravel(), atol=2e-3)
    np.testing.assert_allclose(second["keypoints"], expected[1].ravel(), atol=2e-3)
    assert json.loads((tmp_path / "out/b_keypoints.json").read_text()) == []
    assert Image.open(tmp_path / "out/a_overlay.png").size == (120, 90)
    assert cli.main([*words, "--save", "keypoints", "--flip"]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["people"] for row in rows] == [1, 1]


def test_commands_that_make_no_sense(
    pose_model: Segformer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save(pose_model, tmp_path / "pose.safetensors")
    Image.new("RGB", (40, 40)).save(tmp_path / "a.png")
    (tmp_path / "boxes.txt").write_text("a.png 0 0 10 10\n")
    (tmp_path / "others.txt").write_text("b.png 0 0 10 10\n")
    words = ["predict", str(tmp_path / "a.png"), "--out", str(tmp_path / "out"), "--quiet"]
    pose = ["--model", str(tmp_path / "pose.safetensors"), "--runtime", "torch"]
    for more, reason in (
        ([*pose, "--save", "labels"], "save: any of keypoints, overlay, not 'labels'"),
        (["--boxes", str(tmp_path / "boxes.txt")], "boxes: for models of poses"),
        ([*pose, "--boxes", str(tmp_path / "none.txt")], "boxes: "),
        ([*pose, "--boxes", str(tmp_path / "others.txt")], "boxes: of none of the 1 images"),
        (["--flip"], "flip: for models of poses"),
        (["--detector", "x"], "detector: for models of poses, and camvid-b0 is one of segment"),
        ([*pose, "--boxes", str(tmp_path / "boxes.txt"), "--detector", "x"], "not both"),
        ([*pose, "--task", "segmentation"], "task: segmentation, and "),
        (["--task", "pose", "--model", "camvid-b0"], "camvid-b0 is a model for segmentation"),
        (["--task", "faces"], "task: segmentation or pose, not 'faces'"),
    ):
        assert cli.main([*words, *more]) == 2
        assert reason in capsys.readouterr().err
    assert cli.main(["export", *pose[:2], "--labels", "--out", str(tmp_path / "a.onnx")]) == 2
    assert "labels: of models that segment" in capsys.readouterr().err
    root = make_camvid(tmp_path / "camvid", {"val": 1})
    assert cli.main(["eval", "--data", "camvid", "--root", str(root), "--quiet", *pose]) == 2
    assert "model: one for pose, and the dataset has masks" in capsys.readouterr().err


def test_the_task_chooses_the_model(tmp_path: Path) -> None:
    Image.new("RGB", (40, 60)).save(tmp_path / "a.png")
    words = ["predict", str(tmp_path / "a.png"), "--task", "pose", "--quiet", "--runtime", "torch"]
    words += ["--out", str(tmp_path / "out"), "--json", str(tmp_path / "rows.json")]
    assert cli.main(words) == 0
    [row] = json.loads((tmp_path / "rows.json").read_text())
    assert (row["model"], row["task"]) == ("lsp-b0", "pose")
    assert (tmp_path / "out/a_keypoints.json").is_file()


def test_exported(pose_model: Segformer, tmp_path: Path) -> None:
    """The file gives the heatmaps."""
    exported = sfpp.export(pose_model, tmp_path / "pose.onnx", size=(64, 48), format="onnx")
    assert exported.form.size.most == (64, 48)
    x = np.random.default_rng(0).normal(size=(1, 3, 64, 48)).astype(np.float32)
    [found] = InferenceSession(tmp_path / "pose.onnx").run(None, {IMAGES: x})
    with torch.no_grad():
        np.testing.assert_allclose(found, pose_model(torch.from_numpy(x)).numpy(), atol=1e-4)
