from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segformerpp.data.masks import either, from_colours, from_ids, read_mask
from segformerpp.errors import ImageError

IDS = from_ids([7, 8, 300], ignored=[0, 255])
COLOURS = from_colours({(1, 2, 3): 0, (200, 0, 0): 1}, ignored=[(0, 0, 0)])


@given(ids=st.lists(st.integers(0, 999), min_size=1, max_size=20, unique=True), data=st.data())
def test_every_id_becomes_its_class(ids: list[int], data: st.DataObject) -> None:
    ignored = data.draw(st.lists(st.integers(0, 999).filter(lambda i: i not in ids)))
    values = data.draw(st.lists(st.sampled_from([*ids, *ignored]), min_size=1))
    found = from_ids(ids, ignored)(np.array([values], np.uint16))
    assert found.dtype == np.uint8
    assert found[0].tolist() == [ids.index(v) if v in ids else 255 for v in values]


@given(st.lists(st.tuples(*[st.integers(0, 255)] * 3), min_size=1, max_size=9, unique=True))
def test_every_colour_becomes_its_class(colours: list[tuple[int, int, int]]) -> None:
    classes = {colour: i for i, colour in enumerate(colours[1:])}
    encode = from_colours(classes, ignored=colours[:1])
    expected = [255, *range(len(classes))]
    assert encode(np.array([colours], np.uint8))[0].tolist() == expected


@pytest.mark.parametrize(
    ("mode", "values", "expected"),
    [
        ("L", [7, 8, 0], [0, 1, 255]),
        ("I;16", [300, 8, 7], [2, 1, 0]),
        ("P", [7, 255, 8], [0, 255, 1]),
    ],
)
def test_numbers(tmp_path: Path, mode: str, values: list[int], expected: list[int]) -> None:
    path = tmp_path / "mask.png"
    array = np.array([values], np.uint16 if mode == "I;16" else np.uint8)
    image = Image.fromarray(array)
    if mode == "P":
        image = Image.new("P", (3, 1))
        image.putpalette([i for i in range(256) for _ in range(3)])
        image.putdata(values)
    image.save(path)
    assert Image.open(path).mode == mode
    assert read_mask(path, (1, 3), IDS).tolist() == [expected]


def test_one_bit(tmp_path: Path) -> None:
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png", (1, 2), from_ids([0, 1])).tolist() == [[1, 0]]


@pytest.mark.parametrize("channels", [3, 4])
def test_colours(tmp_path: Path, channels: int) -> None:
    values = np.array([[[1, 2, 3, 9], [0, 0, 0, 9], [200, 0, 0, 9]]], np.uint8)[..., :channels]
    Image.fromarray(values).save(tmp_path / "mask.png")
    assert read_mask(tmp_path / "mask.png", (1, 3), either(IDS, COLOURS)).tolist() == [[0, 255, 1]]


@pytest.mark.parametrize(
    ("array", "encode", "reason"),
    [
        ([[7, 9, 9]], IDS, r"no class has the value 9 \(2 pixels\)"),
        ([[7, 8]], IDS, "the mask is 1x2, its image 1x3"),
        ([range(1, 4)], from_ids([9], []), r"the value 1 \(1 pixels\), 2 .*, 3 \(1 pixels\)$"),
        ([[[1, 2, 3]] * 3], IDS, "holds colours, not a number"),
        ([[7, 8, 7]], COLOURS, "holds numbers, not colours"),
        ([[[1, 2, 4]] * 3], COLOURS, r"no class has the value \[1, 2, 4\] \(3 pixels\)"),
    ],
)
def test_refused(tmp_path: Path, array: list, encode, reason: str) -> None:
    path = tmp_path / "mask.png"
    Image.fromarray(np.array(array, np.uint8)).save(path)
    with pytest.raises(ImageError, match=f"mask.png: .*{reason}"):
        read_mask(path, (1, 3), encode)


def test_many_unknown_values_are_counted() -> None:
    with pytest.raises(ImageError, match=r"and 15 others$"):
        IDS(np.arange(20, 40)[None])


def test_no_images(tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(b"no image")
    for name in ("mask.png", "missing.png"):
        with pytest.raises(ImageError, match=f"{name}: cannot be read as a mask"):
            read_mask(tmp_path / name, (1, 1), IDS)
    Image.new("LAB", (1, 1)).save(tmp_path / "lab.tif")
    with pytest.raises(ImageError, match="numbers or RGB colours, not LAB"):
        read_mask(tmp_path / "lab.tif", (1, 1), IDS)
