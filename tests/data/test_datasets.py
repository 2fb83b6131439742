from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segformerpp.data.classes import FolderClasses
from segformerpp.data.datasets import check, open_dataset
from segformerpp.errors import UsageError

CLASSES = "classes: [background, {name: road, id: 7, color: [128, 64, 128]}, car]\n"


def make(root: Path, files: Mapping[str, object], classes: str | None = None) -> Path:
    """Images of 4x6 (names that end in .jpg), and masks with these values."""
    for name, values in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if values is None:
            Image.new("RGB", (6, 4), (9, 9, 9)).save(path)
        else:
            full = np.resize(np.array(values, np.uint8), (4, 6))
            Image.fromarray(full).save(path)
    if classes is not None:
        (root / "classes.yaml").write_text(classes)
    return root


@pytest.mark.parametrize(
    ("name", "split", "files", "expected"),
    [
        ("camvid", "val", {"val/a.png": None, "valannot/a.png": [0, 10, 11]}, [0, 10, 255]),
        (
            "cityscapes",
            "train",
            {
                "leftImg8bit/train/x/x_1_2_leftImg8bit.png": None,
                "gtFine/train/x/x_1_2_gtFine_labelIds.png": [7, 33, 0],
                "gtFine/train/x/x_1_2_gtFine_instanceIds.png": [1, 1, 1],
            },
            [0, 18, 255],
        ),
        (
            "ade20k",
            "val",
            {"images/validation/a.jpg": None, "annotations/validation/a.png": [0, 1, 150]},
            [255, 0, 149],
        ),
        ("folder", "val", {"images/val/s/a.jpg": None, "masks/val/s/a.png": [0, 7, 2]}, [0, 1, 2]),
        ("folder", "val", {"val/images/a.jpg": None, "val/masks/a.png": [0, 7, 255]}, [0, 1, 255]),
        ("folder", "", {"images/a.jpg": None, "masks/a.png": [0, 7, 2]}, [0, 1, 2]),
    ],
)
def test_layouts(
    tmp_path: Path, name: str, split: str, files: dict[str, object], expected: list[int]
) -> None:
    dataset = open_dataset(name, make(tmp_path, files, CLASSES), split)
    assert len(dataset) == 1
    image, mask = dataset.read(0)
    assert (image.shape, mask.shape) == ((4, 6, 3), (4, 6))
    assert mask.dtype == np.uint8
    assert mask[0, :3].tolist() == expected
    assert dataset.reduce_labels == (name == "ade20k")
    assert check(dataset) == []


@pytest.mark.parametrize(
    ("name", "folder", "split", "images", "most"),
    [
        ("camvid", "camvid", "test", 233, 10),
        ("camvid", "camvid", "train", 367, 10),
        ("cityscapes", "cityscapes_sample", "train", 4, 18),
        ("ade20k", "ade20k_sample", "validation", 3, 149),
    ],
)
def test_samples(shared: Path, name: str, folder: str, split: str, images: int, most: int) -> None:
    dataset = open_dataset(name, shared / "data" / folder, split)
    assert len(dataset) == images
    image, mask = dataset.read(images - 1)
    assert image.shape[:2] == mask.shape
    known = mask[mask != 255]
    assert known.size > 0.5 * mask.size
    assert known.max() <= most


def test_colours_and_numbers(tmp_path: Path) -> None:
    classes = "classes:\n- {name: a, color: [1, 2, 3]}\n- {name: b, color: [200, 0, 0]}\n"
    files = {"images/a.jpg": None, "images/b.jpg": None, "masks/a.png": [0, 1, 255]}
    root = make(tmp_path, files, classes + "ignore: [255, [0, 0, 0]]\n")
    colours = np.zeros((4, 6, 3), np.uint8)
    colours[0, 0], colours[0, 1] = (1, 2, 3), (200, 0, 0)
    Image.fromarray(colours).save(root / "masks/b.png")
    dataset = open_dataset("folder", root, "")
    assert dataset.classes.palette == ((1, 2, 3), (200, 0, 0))
    assert [dataset.read(i)[1][0, :3].tolist() for i in (0, 1)] == [[0, 1, 255]] * 2


def test_problems_are_named_and_left_out(tmp_path: Path) -> None:
    names = {f"images/{n}.jpg": None for n in "abcd"} | {f"masks/{n}.png": [0, 7] for n in "abc"}
    root = make(tmp_path, {**names, "masks/d.png": [3]}, CLASSES)
    (root / "images/a.jpg").write_bytes(b"no image")
    Image.new("L", (6, 5)).save(root / "masks/b.png")
    dataset = open_dataset("folder", root, "")
    steps: list[int] = []
    problems = check(dataset, lambda: steps.append(1))
    assert len(steps) == 4
    assert [problem.pair.image.stem for problem in problems] == ["a", "b", "d"]
    texts = [str(problem) for problem in problems]
    assert "a.jpg" in texts[0]
    assert "b.png: the mask is 5x6, its image 4x6" in texts[1]
    assert "d.png: no class has the value 3 (24 pixels)" in texts[2]
    assert [pair.image.stem for pair in dataset.without(problems).pairs] == ["c"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (("foo", ".", "val"), "data: one of camvid, cityscapes, ade20k, folder, not 'foo'"),
        (("folder", "missing", ""), "root: there is no folder"),
        (("folder", ".", "test"), "split: 'test' is not there: no folder .*images/test"),
        (("folder", "unmasked", ""), "root: no mask in .*masks for x.jpg"),
        (("folder", "empty", ""), "root: there are no images in"),
        (("camvid", ".", "val", "x.yaml"), "classes: only for folders; those of camvid are known"),
        (("folder", ".", "", "x.yaml"), "classes: x.yaml cannot be read: No such file"),
    ],
)
def test_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], reason: str
) -> None:
    make(tmp_path, {"images/a.jpg": None, "masks/a.png": [0]}, CLASSES)
    make(tmp_path / "unmasked", {"images/x.jpg": None, "masks/y.png": [0]}, CLASSES)
    make(tmp_path / "empty", {"masks/y.png": [0]}, CLASSES)
    (tmp_path / "empty" / "images").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=f"^{reason}"):
        open_dataset(*arguments)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("- a\n- b\n", "a file with the key 'classes' and a list"),
        ("classes: 3\n", "a file with the key 'classes' and a list"),
        ("classes: [a]\nfoo: 1\n", "unknown key 'foo'; there are 'classes' and 'ignore'"),
        ("classes: []\n", "from 1 to 255 classes, not 0"),
        ("classes: [1]\n", "class 0: a name, or a mapping with one, not 1"),
        ("classes: [{name: a, colour: 1}]\n", "class a: unknown key 'colour'"),
        ("classes: [{name: a, id: -1}]\n", "class a: id: a number in the masks, not -1"),
        ("classes: [{name: a, color: 5}]\n", r"class a: color: \[red, green, blue\], not 5"),
        ("classes: [a, a]\n", "two classes have the name 'a'"),
        ("classes: [{name: a, id: 1}, b]\n", "two classes have the id 1"),
        ("classes: [a]\nignore: [0]\n", "ignore: 0 is the id of a class"),
        ("classes: [a]\nignore: x\n", "ignore: a list of numbers and colours, not 'x'"),
        (
            "classes: [{name: a, color: [1, 1, 1]}]\nignore: [[1, 1, 1]]\n",
            "is the color of a class",
        ),
        ("classes: [a\n", "is not YAML: "),
    ],
)
def test_classes_that_make_no_sense(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=f"^classes: .*c.yaml.*{reason}") as found:
        FolderClasses.read(path)
    assert "\n" not in str(found.value)
