from dataclasses import replace

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text
from PIL import Image

from segformerpp.benchmark.cost import cost
from segformerpp.data.skeletons import skeleton
from segformerpp.errors import ImageError, MemoryLimitError, UsageError
from segformerpp.explaining import explain, run
from segformerpp.explaining.figure import draw
from segformerpp.models import Metadata, Segformer, SegformerConfig
from segformerpp.plans import PRESETS, MergePlan
from segformerpp.predictor import Predictor
from segformerpp.tasks import segmentation
from segformerpp.tasks.pose_result import PoseResult
from segformerpp.tasks.segmentation_result import SegmentationResult


@pytest.fixture(scope="module")
def pixels():
    return np.random.default_rng(0).integers(0, 255, (96, 160, 3), np.uint8)


def labels(result: SegmentationResult | PoseResult) -> np.ndarray:
    assert isinstance(result, SegmentationResult)
    return result.label_map


def keypoints(result: SegmentationResult | PoseResult) -> np.ndarray:
    assert isinstance(result, PoseResult)
    return result.keypoints


def test_labels_are_those_that_the_predictor_gives(pixels):
    found = explain(pixels, merge="hq", stages=[3])
    for plan, result in (("none", found.without), ("hq", found.merged)):
        predict = Predictor(merge=plan, runtime="torch", precision="f32")
        assert (predict(pixels).label_map == labels(result)).all()
    assert found.agreement == 100 * (labels(found.without) == labels(found.merged)).mean()


def test_rows(pixels):
    found = explain(pixels, merge="hq", blocks="all")
    rows = found.rows()
    assert [row["what"] for row in rows] == ["image"] + ["stage"] * 4 + ["groups"] * 8
    assert all(row["merge"] == "hq" and row["size"] == "96x160" for row in rows)
    config = SegformerConfig.of_size("b0", num_outputs=11)
    whole = cost(config, PRESETS["hq"], (96, 160)).macs / 1e9
    assert rows[0]["gmacs"] == pytest.approx(whole, abs=1e-3)
    for row in rows[1:5]:
        merges = row["stage"] != 4  # whose grid of 3 x 5 has no whole cell of 4 x 4
        assert (row["attention_gmacs"] < row["attention_gmacs_none"]) == merges
    third = [row for row in rows[5:] if row["stage"] == 3]
    assert [(row["block"], row["part"], row["grid"]) for row in third] == [
        (1, "q", "6x10"),
        (2, "q", "6x10"),
    ]
    for row in third:
        assert (row["tokens"], row["merged"], row["groups"]) == (60, 48, 12)
        assert row["destinations"] == 2
    for row, grouping in zip(rows[5:], found.groupings, strict=True):
        assert row["largest_group"] == np.bincount(grouping.group.ravel()).max()


def test_plans_that_only_shrink_have_no_groups(pixels):
    found = explain(pixels, merge="downsample")
    assert found.groupings == ()
    assert found.cost.whole < found.cost_without.whole / 3
    assert labels(found.merged).shape == labels(found.without).shape == (96, 160)


def test_the_default_plan_is_the_models_or_hq(pixels, random_model: Segformer):
    assert explain(pixels, random_model).plan == PRESETS["hq"]
    random_model.merge_plan = "2x2"
    try:
        assert explain(pixels, random_model, blocks="first").plan == PRESETS["2x2"]
        assert random_model.merge_plan == PRESETS["2x2"]  # a copy is looked at
    finally:
        random_model.merge_plan = MergePlan()


def test_large_images_are_explained_at_a_smaller_size(pixels, monkeypatch):
    monkeypatch.setattr(run, "MOST_PIXELS", 96 * 160 // 4)
    found = explain(pixels, merge="2x2", stages=[4])
    assert found.size == (48, 80)
    assert found.own_size == (96, 160)
    assert explain(pixels, merge="2x2", stages=[4], size=(64, 64)).size == (64, 64)


def test_grids_too_small_for_the_plan(pixels):
    found = explain(pixels[:40, :40], merge="q4:mode=bsm,r=0.8,sx=4,sy=4")
    assert [g.merged for g in found.groupings] == [0]
    assert found.rows()[-1]["similarity"] is None
    assert found.agreement == 100


def test_models_without_class_names(pixels):
    model = Segformer(SegformerConfig.of_size("b0", num_outputs=7))
    found = explain(pixels, model, stages=[4])
    assert found.merged.labels[6] == "class 6"


def test_people():
    pixels = np.random.default_rng(1).integers(0, 255, (90, 200, 3), np.uint8)
    box = (60, 10, 40, 70)
    found = explain(pixels, "lsp-b0", "2x2", stages=[3], box=box)
    for plan, result in (("none", found.without), ("2x2", found.merged)):
        predict = Predictor("lsp-b0", merge=plan, runtime="torch", precision="f32")
        expected = predict(pixels, boxes=[box]).keypoints
        assert keypoints(result) == pytest.approx(expected, abs=1e-3)
    rows = found.rows()
    assert [row["what"] for row in rows] == ["image", *["keypoint"] * 14, *["stage"] * 4, "groups"]
    difference = (keypoints(found.merged) - keypoints(found.without))[0, :, :2]
    distances = np.linalg.norm(difference, axis=1)
    assert [row["moved_px"] for row in rows[1:15]] == pytest.approx(distances, abs=0.01)
    assert found.size == (192, 192)


@pytest.mark.parametrize(("outputs", "known"), [(17, "coco"), (20, "jbd")])
def test_people_without_metadata(pixels, outputs, known):
    """As the Predictor: names, lines and size are those of the dataset."""
    metadata = Metadata(task="pose", sigma=3.0)
    model = Segformer(SegformerConfig.of_size("b0", num_outputs=outputs), metadata)
    found = explain(pixels, model, "2x2", stages=[4])
    assert isinstance(found.merged, PoseResult)
    assert found.merged.labels == skeleton(known).names
    assert found.merged.skeleton == skeleton(known).links
    assert found.merged.palette == skeleton(known).palette
    assert found.size == skeleton(known).size


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"merge": "none"}, "merge: none merges nothing"),
        ({"stages": [5]}, "stages: a whole number from 1 to 4, not 5"),
        ({"stages": [1]}, "stages: the plan merges nothing in stage 1, it does in 3, 4"),
        ({"blocks": [3]}, "blocks: stage 3 has 2 blocks, and no block 3"),
        ({"blocks": "middle"}, "blocks: first, last, all"),
        ({"stages": []}, "stages: one or more numbers"),
        ({"blocks": []}, "blocks: one or more numbers"),
        ({"merge": "downsample", "stages": [1]}, "stages: the plan merges nothing in stage 1"),
        ({"box": (0, 0, 9, 9)}, "box: for models of poses"),
        ({"model": "lsp-b0", "merge": "downsample"}, "merge: plans that shrink"),
        ({"model": "lsp-b0", "box": (0, 0, 0, 9)}, "box: x, y, width, height"),
        ({"size": (99999, 99999)}, "size: at most"),
        ({"size": (0, 9)}, "size: height and width"),
        ({"device": "toaster"}, "device: "),
    ],
)
def test_wrong_usage(pixels, arguments, text):
    given = {"merge": "q34:mode=n2d,sx=2,sy=2", **arguments}
    with pytest.raises(UsageError, match=f"^{text}"):
        explain(pixels, **given)


def test_more_than_a_figure_has_room_for(pixels):
    model = Segformer(SegformerConfig.of_size("b5", num_outputs=2))
    with pytest.raises(UsageError, match="52 rows are more than a figure has room for"):
        explain(pixels, model, "2x2", blocks="all")


def test_unreadable_image(tmp_path):
    with pytest.raises(ImageError, match="no such file"):
        explain(tmp_path / "missing.png", merge="hq")


@pytest.mark.parametrize(
    "error", [MemoryError(), MemoryLimitError("1 x 96 x 160 pixels do not fit")]
)
def test_image_that_does_not_fit_into_the_memory(pixels, monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr(segmentation, "normalise", fail)
    with pytest.raises(ImageError, match=r"^image: too large for the memory; choose a"):
        explain(pixels, merge="hq")


@pytest.mark.parametrize(
    ("ending", "start"),
    [("png", b"\x89PNG"), ("jpg", b"\xff\xd8\xff"), ("svg", b"<?xml"), ("pdf", b"%PDF")],
)
def test_formats(pixels, tmp_path, ending, start):
    path = explain(pixels, merge="2x2", stages=[4]).save(tmp_path / f"figure.{ending}")
    assert path.read_bytes().startswith(start)


def drawn(explanation):
    return [text.get_text() for text in draw(explanation).findobj(Text)]


def test_figure_says_what_it_shows(pixels, tmp_path):
    Image.fromarray(pixels).save(tmp_path / "street.png")
    found = explain(tmp_path / "street.png", merge="hq", stages=[3])
    texts = set(drawn(found))
    model = "model camvid-b0, segmentation, 96 x 160 pixels"
    assert "What hq merges in street.png" in texts
    assert f"{model}\nplan hq = {PRESETS['hq']}" in texts
    assert "Stage 3, block 2, queries: 60 tokens become 12 (80 % fewer)" in texts
    assert {"GMACs", "cosine similarity"} < texts
    texts = set(drawn(explain(pixels, "lsp-b0", "2x2", stages=[3])))
    assert "pixels moved (grey: confidence < 0.2)" in texts


def test_names_with_dollar_signs(pixels, tmp_path):
    """matplotlib takes what is between two of them for a formula, unless told otherwise."""
    name = "a$b_{$.png"
    Image.fromarray(pixels).save(tmp_path / name)
    labels = (name, *map(str, range(1, 7)))
    model = Segformer(SegformerConfig.of_size("b0", num_outputs=7), Metadata(labels=labels))
    found = replace(explain(tmp_path / name, model, "2x2", stages=[4]), model=name)
    assert found.plot().width > 1000


@pytest.mark.parametrize(("height", "white"), [(96, False), (108, True)])
def test_white_is_where_no_token_is(height, white):
    """As the legend says, in the picture of groups and in that of similarities."""
    image = np.random.default_rng(2).integers(0, 200, (height, 160, 3), np.uint8)
    found = explain(image, merge="kv3:mode=n2d,sx=2,sy=2")  # one key for 32 x 32 pixels
    figure = draw(found)
    assert ("white: too narrow for a token" in drawn(found)) == white
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    picture = np.asarray(canvas.buffer_rgba())
    for start in ("groups", "token similarity"):
        axis = next(a for a in figure.axes if a.get_title(loc="left").startswith(start))
        x, y = axis.transData.transform((80, height - 4))
        assert (picture[int(len(picture) - y), int(x)] == 255).all() == white


def test_figure_is_drawn_in_proportion(pixels):
    found = explain(pixels, merge="balanced", stages=[1])
    picture = found.plot()
    assert isinstance(picture, Image.Image)
    assert picture.mode == "RGB"
    taller = explain(np.swapaxes(pixels, 0, 1), merge="balanced", stages=[1]).plot()
    assert picture.width > taller.width
