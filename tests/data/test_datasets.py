from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segformerpp.data.datasets import SegmentationDataset, check, open_dataset
from segformerpp.errors import ImageError, UsageError

SIZE = (6, 8)


def write(path: Path, values: Any = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.broadcast_to(np.array(values, np.uint8), SIZE if np.ndim(values) < 2 else (*SIZE, 3))
    Image.fromarray(array).save(path)
    return path


def image(path: Path) -> Path:
    return write(path, np.zeros((1, 1, 3)))


def row(*ids: int) -> list[int]:
    """A row of the mask, filled with zeros."""
    return [*ids, *[0] * (SIZE[1] - len(ids))]


def ids(dataset: SegmentationDataset, index: int = 0) -> list[int]:
    found, mask = dataset.read(index)
    assert found.shape == (*SIZE, 3)
    assert mask.shape == SIZE
    assert mask.dtype == np.uint8
    first: list[int] = mask[0].tolist()
    return first


def test_camvid(tmp_path: Path) -> None:
    image(tmp_path / "val" / "b.webp")
    image(tmp_path / "val" / "a.jpg")
    write(tmp_path / "valannot" / "a.png", row(10, 11, 255, 1))
    write(tmp_path / "valannot" / "b.png")
    write(tmp_path / "valannot" / "._b.png")  # left by a file manager
    found = open_dataset("camvid", tmp_path, "val")
    assert (found.name, len(found), len(found.classes.labels)) == ("camvid val", 2, 11)
    assert [pair.image.name for pair in found.pairs] == ["a.jpg", "b.webp"]
    assert ids(found)[:4] == [10, 255, 255, 1]


def test_cityscapes(tmp_path: Path) -> None:
    for city in ("aachen", "bonn"):
        image(tmp_path / "leftImg8bit" / "train" / city / f"{city}_1_leftImg8bit.png")
        for kind, values in (("labelIds", row(7, 33, 6, 0, 255)), ("instanceIds", row(99))):
            write(tmp_path / "gtFine" / "train" / city / f"{city}_1_gtFine_{kind}.png", values)
    found = open_dataset("cityscapes", str(tmp_path), "train")
    assert len(found) == 2
    assert ids(found)[:5] == [0, 18, 255, 255, 255]


def test_ade20k(tmp_path: Path) -> None:
    image(tmp_path / "images" / "validation" / "a.jpg")
    write(tmp_path / "annotations" / "validation" / "a.png", row(0, 1, 150))
    for split in ("val", "validation"):
        found = open_dataset("ade20k", tmp_path, split)
        assert found.reduce_labels
        assert ids(found)[:3] == [255, 0, 149]
    write(tmp_path / "annotations" / "validation" / "a.png", row(151))
    with pytest.raises(ImageError, match="no class has the value 151"):
        found.read(0)


@pytest.mark.parametrize("layout", ["{split}/{kind}", "{kind}/{split}"])
@pytest.mark.parametrize("split", ["train", ""])
def test_folder(layout: str, split: str, tmp_path: Path) -> None:
    root = tmp_path / "mine"
    for kind, make in (("images", image), ("masks", write)):
        make(root / layout.format(split=split, kind=kind).strip("/") / "deep" / "a.b.png")
    (root / "classes.yaml").write_text("classes: [{name: x, id: 3}, {name: y, id: 0}]")
    found = open_dataset("folder", root, split)
    assert found.name == f"mine {split}".strip()
    assert found.classes.labels == ("x", "y")
    assert ids(found) == [1] * 8
    (tmp_path / "other.yaml").write_text("classes: [z]")
    found = open_dataset("folder", root, split, tmp_path / "other.yaml")
    assert found.classes.labels == ("z",)


@pytest.mark.parametrize(
    ("name", "root", "split", "classes", "reason"),
    [
        ("coco", ".", "val", None, "data: one of camvid, cityscapes, ade20k, folder, not 'coco'"),
        ("camvid", ".", "val", "x", "classes: only for folders; those of camvid are known"),
        ("camvid", "nope", "val", None, "root: there is no folder "),
        ("camvid", ".", "test", None, "split: 'test' is not there: no folder "),
        ("camvid", ".", "empty", None, "root: there are no images in "),
        ("camvid", ".", "alone", None, "for 0.png, 1.png, 2.png, 3.png, 4.png and 2 others"),
        ("camvid", ".", "twice", None, "a.png and a.tif are masks of the same image"),
        ("folder", ".", "val", None, "classes.yaml cannot be read: No such file"),
        ("folder", ".", "val", "nope", "nope cannot be read: No such file"),
    ],
)
def test_what_is_wrong_is_named(
    name: str,
    root: str,
    split: str,
    classes: str | None,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    for folder in ("empty", "emptyannot", "aloneannot"):
        (tmp_path / folder).mkdir()
    for i in range(7):
        image(tmp_path / "alone" / f"{i}.png")
    image(tmp_path / "twice" / "a.png")
    for ending in ("png", "tif"):
        write(tmp_path / "twiceannot" / f"a.{ending}")
    with pytest.raises(UsageError) as error:
        open_dataset(name, root, split, classes)
    assert reason in str(error.value)


def test_check_names_every_problem(tmp_path: Path) -> None:
    for i in range(5):
        image(tmp_path / "val" / f"{i}.png")
        write(tmp_path / "valannot" / f"{i}.png", row(77) if i == 3 else 0)
    (tmp_path / "val" / "1.png").write_text("text")
    Image.new("L", (3, 3)).save(tmp_path / "valannot" / "4.png")
    dataset = open_dataset("camvid", tmp_path, "val")
    steps: list[int] = []
    problems = check(dataset, lambda: steps.append(1))
    assert len(steps) == 5
    assert [str(problem).removeprefix(str(tmp_path)) for problem in problems] == [
        "/val/1.png: not an image of a known format",
        "/valannot/3.png: no class has the value 77 (6 pixels)",
        "/valannot/4.png: the mask is 3x3, its image 6x8",
    ]
    rest = dataset.without(problems)
    assert [pair.image.stem for pair in rest.pairs] == ["0", "2"]
    assert check(rest) == []


@pytest.mark.parametrize(
    ("folder", "split", "count", "classes"),
    [("cityscapes_sample", "train", 4, 19), ("ade20k_sample", "val", 3, 150)],
)
def test_samples(shared: Path, folder: str, split: str, count: int, classes: int) -> None:
    found = open_dataset(folder.removesuffix("_sample"), shared / "data" / folder, split)
    assert (len(found), len(found.classes.labels)) == (count, classes)
    assert check(found) == []
    for i in range(count):
        _, mask = found.read(i)
        assert len(np.unique(mask[mask < classes])) > 3
        assert set(np.unique(mask)) <= {*range(classes), 255}


def test_camvid_itself(shared: Path) -> None:
    found = open_dataset("camvid", shared / "data" / "camvid", "test")
    assert len(found) == 233
    _, mask = found.read(0)
    assert mask.shape == (360, 480)
    assert set(np.unique(mask)) <= {*range(11), 255}
