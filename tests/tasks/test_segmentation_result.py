import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segformerpp.data.labels import generated_palette, label_set
from segformerpp.errors import UsageError
from segformerpp.tasks.segmentation_result import OUTPUTS, SegmentationResult, output_paths


def result(height: int = 20, width: int = 30, classes: int = 11) -> SegmentationResult:
    rng = np.random.default_rng(0)
    names = tuple(f"class {i}" for i in range(classes))
    return SegmentationResult(
        rng.integers(0, classes, (height, width)).astype(np.uint8 if classes <= 256 else np.uint16),
        names,
        generated_palette(classes),
        rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
        probabilities=np.full((classes, height, width), 1 / classes, np.float16),
    )


@pytest.mark.parametrize("classes", [1, 11, 300])
def test_shares(classes: int) -> None:
    found = result(classes=classes)
    assert found.shares.shape == (classes,)
    assert found.shares.sum() == pytest.approx(1)
    assert found.shares[0] == (found.label_map == 0).mean()


def test_a_result_says_what_it_is() -> None:
    label_map = np.array([[0, 0, 0, 2]], np.uint8)
    image = np.zeros((1, 4, 3), np.uint8)
    found = SegmentationResult(label_map, ("a", "b", "c"), generated_palette(3), image, Path("x"))
    assert repr(found) == "SegmentationResult(x, 1x4: a 75%, c 25%)"


@pytest.mark.parametrize("classes", [11, 300])
def test_color_map(classes: int) -> None:
    found = result(classes=classes)
    colours = np.asarray(found.color_map())
    np.testing.assert_array_equal(colours, np.array(found.palette)[found.label_map])


def test_overlay() -> None:
    found = result()
    np.testing.assert_array_equal(np.asarray(found.plot(0, legend=False)), found.image)
    np.testing.assert_array_equal(np.asarray(found.plot(1, legend=False)), found.color_map())
    half = np.asarray(found.plot(legend=False)).astype(int)
    mean = (found.image + np.asarray(found.color_map()).astype(int)) / 2
    assert abs(half - mean).max() <= 0.5
    with pytest.raises(UsageError, match="alpha"):
        found.plot(1.5)


@pytest.mark.parametrize(
    ("height", "width"), [(1, 1), (1, 3000), (3000, 1), (20, 30), (600, 800), (1200, 1100)]
)
def test_legend_leaves_the_image_as_it_is(height: int, width: int) -> None:
    found = result(height, width)
    plot = np.asarray(found.plot())
    np.testing.assert_array_equal(plot[:height, :width], np.asarray(found.plot(legend=False)))
    if width > 3 * height:
        assert plot.shape[0] > height
    else:
        assert plot.shape[1] > width
    present = {tuple(found.palette[i]) for i in np.unique(found.label_map)}
    outside = plot.copy()
    outside[:height, :width] = 255
    drawn = {tuple(int(v) for v in colour) for colour in np.unique(outside.reshape(-1, 3), axis=0)}
    assert present <= drawn
    assert not {tuple(colour) for colour in found.palette} - present & drawn


def test_legend_of_many_classes_and_long_names() -> None:
    rng = np.random.default_rng(0)
    names = tuple(f"a\nvery long name {'x' * 50} {i}" for i in range(150))
    found = SegmentationResult(
        rng.integers(0, 150, (64, 64), dtype=np.uint8),
        names,
        label_set("ade20k").palette,
        np.zeros((64, 64, 3), np.uint8),
    )
    assert found.plot().height < 1000


@pytest.mark.parametrize("classes", [11, 300])
def test_saved_files(tmp_path: Path, classes: int) -> None:
    found = result(classes=classes)
    paths = found.save(tmp_path / "new", "deep/name.v2", OUTPUTS)
    assert paths == [
        tmp_path / "new" / "deep" / f"name.v2_{end}"
        for end in ("labels.png", "overlay.png", "color.png", "probs.npz", "polygons.json")
    ]
    labels = Image.open(paths[0])
    assert labels.mode == ("L" if classes <= 256 else "I;16")
    np.testing.assert_array_equal(np.asarray(labels), found.label_map)
    np.testing.assert_array_equal(np.asarray(Image.open(paths[1])), np.asarray(found.plot()))
    np.testing.assert_array_equal(np.asarray(Image.open(paths[2])), np.asarray(found.color_map()))
    assert found.probabilities is not None
    np.testing.assert_array_equal(np.load(paths[3])["probabilities"], found.probabilities)
    assert np.load(paths[3])["class_ids"].tolist() == list(range(classes))
    assert json.loads(paths[4].read_text()) == found.polygons()
    assert len(list(paths[0].parent.iterdir())) == 5


@pytest.mark.parametrize(("classes", "ignored"), [(11, 255), (256, 65535), (300, 65535)])
def test_chosen_classes(tmp_path: Path, classes: int, ignored: int) -> None:
    everything = result(60, 90, classes)
    everything.label_map[:9, :9] = 7
    found = everything.only([7, "CLASS 2"])
    kept = np.isin(everything.label_map, (2, 7))
    expected = np.where(kept, everything.label_map.astype(int), ignored)
    np.testing.assert_array_equal(found.label_map, expected)
    np.testing.assert_array_equal(found.shares[[2, 7]], everything.shares[[2, 7]])
    assert set(found.row()["shares"]) == {"class 2", "class 7"}
    overlay = np.asarray(found.plot(legend=False))
    np.testing.assert_array_equal(overlay[kept], np.asarray(everything.plot(legend=False))[kept])
    np.testing.assert_array_equal(overlay[~kept], found.image[~kept])
    colours = np.asarray(found.color_map())
    assert not colours[~kept].any()
    coco = found.polygons()
    assert [category["id"] for category in coco["categories"]] == [2, 7]
    assert [annotation["category_id"] for annotation in coco["annotations"]] == [7]
    labels, probs = found.save(tmp_path, "a", ["labels", "probs"])
    np.testing.assert_array_equal(np.asarray(Image.open(labels)), found.label_map)
    assert np.load(probs)["probabilities"].shape == (2, 60, 90)
    assert np.load(probs)["class_ids"].tolist() == [2, 7]
    fewer = found.only("class 7, class 1")
    assert (fewer.classes, fewer.shares[2]) == ((7,), 0)
    assert fewer.only("1").plot().size == (90, 60)  # nothing is left to put into a legend


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(
        UsageError, match="any of labels, overlay, color, probs, polygons, not 'foo'"
    ):
        output_paths(tmp_path, "x", ["labels", "foo"])
    bare = SegmentationResult(
        np.zeros((2, 2), np.uint8), ("a",), ((1, 2, 3),), np.zeros((2, 2, 3), np.uint8)
    )
    with pytest.raises(UsageError, match="probabilities=False"):
        bare.save(tmp_path, "x", ["labels", "probs"])
    assert not list(tmp_path.iterdir())
