import struct
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from segformerpp.data.masks import IGNORED, either, from_colours, from_ids, read_mask
from segformerpp.errors import ImageError, UsageError

IDS = np.array([[0, 1, 2], [2, 1, 255]])
PALETTE = {(255, 0, 0): 0, (0, 255, 0): 1, (10, 0, 255): 2}
COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[10, 0, 255], [0, 0, 0]]], np.uint8)
NUMBERS = from_ids(range(3))


def grey_png(rows: list[bytes], width: int, bits: int) -> bytes:
    """A PNG of grey values of fewer than 8 bits."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", width, len(rows), bits, 0, 0, 0, 0)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        [chunk(b"IHDR", header), chunk(b"IDAT", data), chunk(b"IEND", b"")]
    )


@pytest.mark.parametrize("mode", ["L", "P", "I;16", "I"])
def test_numbers_in_every_form(mode: str, tmp_path: Path) -> None:
    types = {"I;16": np.uint16, "I": np.int32}
    image = Image.fromarray(IDS.astype(types.get(mode, np.uint8)))
    if mode == "P":
        image.putpalette([7, 7, 7] * 256)  # what the colours are does not matter
    path = tmp_path / ("x.tif" if mode == "I" else "x.png")
    image.save(path)
    with Image.open(path) as file:
        assert file.mode == mode
    found = read_mask(path, (2, 3), NUMBERS)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, IDS)


@pytest.mark.parametrize(
    ("bits", "row", "ids"),
    [(1, b"\xa0", [1, 0, 1, 0]), (2, b"\x1b", [0, 1, 2, 3]), (4, b"\x01\x2f", [0, 1, 2, 15])],
)
def test_grey_of_few_bits_is_not_scaled(
    bits: int, row: bytes, ids: list[int], tmp_path: Path
) -> None:
    (tmp_path / "x.png").write_bytes(grey_png([row], 4, bits))
    assert read_mask(tmp_path / "x.png", (1, 4), from_ids(range(16))).tolist() == [ids]


def test_masks_may_be_as_large_as_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "x.png").write_bytes(grey_png([b"\x01\x2f"], 4, 4))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1)  # Pillow's own limit is 179 million pixels
    found = read_mask(tmp_path / "x.png", (1, 4), from_ids(range(16)))
    assert found.tolist() == [[0, 1, 2, 15]]


@pytest.mark.parametrize("channels", [3, 4])
def test_colours(channels: int, tmp_path: Path) -> None:
    alpha = np.full((2, 2, channels - 3), 9, np.uint8)
    Image.fromarray(np.concatenate([COLOURS, alpha], 2)).save(tmp_path / "x.png")
    encode = either(NUMBERS, from_colours(PALETTE, ignored=[(0, 0, 0)]))
    assert read_mask(tmp_path / "x.png", (2, 2), encode).tolist() == [[0, 1], [2, 255]]
    Image.fromarray(IDS.astype(np.uint8)).save(tmp_path / "y.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "y.png", (2, 3), encode), IDS)


def test_what_is_wrong_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.png"

    def fails(image: Image.Image, reason: str, size: tuple[int, int] = (2, 3)) -> None:
        image.save(path)
        with pytest.raises(ImageError) as error:
            read_mask(path, size, either(NUMBERS, from_colours(PALETTE)))
        assert str(error.value) == f"{path}: {reason}"

    ids = IDS.astype(np.uint8)
    fails(Image.fromarray(ids), "the mask is 2x3, its image 4x5", size=(4, 5))
    fails(Image.fromarray(ids * 2), "no class has the value 4 (2 pixels), 254 (1 pixels)")
    many = np.arange(6, dtype=np.uint8).reshape(2, 3) + 100
    values = ", ".join(f"{i} (1 pixels)" for i in range(100, 105))
    fails(Image.fromarray(many), f"no class has the value {values} and 1 others")
    unknown = "no class has the value [0, 0, 0] (1 pixels)"
    fails(Image.fromarray(COLOURS), unknown, size=(2, 2))
    grey_alpha = Image.fromarray(np.zeros((2, 3, 2), np.uint8))
    fails(grey_alpha, "a mask holds numbers or RGB colours, not LA")
    Image.fromarray(COLOURS).save(path)
    with pytest.raises(ImageError, match="the mask holds colours, not a number for each pixel"):
        read_mask(path, (2, 2), NUMBERS)
    with pytest.raises(ImageError, match="holds numbers, not colours"):
        from_colours(PALETTE)(ids)
    with pytest.raises(UsageError, match="of at most 255 classes, not 256"):
        from_ids(range(256))


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"x\.png: cannot be read as a mask: no such file"):
        read_mask(tmp_path / "x.png", (2, 3), NUMBERS)
    (tmp_path / "x.png").write_text("text")
    with pytest.raises(ImageError, match="mask: not an image of a known format"):
        read_mask(tmp_path / "x.png", (2, 3), NUMBERS)


@given(data=st.data())
def test_broken_files_end_in_an_error_of_ours(
    data: st.DataObject, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "broken.png"
    Image.fromarray(np.zeros((40, 40), np.uint8)).save(path)
    content = bytearray(path.read_bytes())
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    with suppress(ImageError):
        assert read_mask(path, (40, 40), from_ids(range(255))).shape == (40, 40)


IDS_OF_CLASSES = st.lists(st.integers(0, 2**16 - 1), min_size=1, max_size=20, unique=True)


@given(IDS_OF_CLASSES, st.lists(st.integers(0, 2**16 - 1), max_size=5), st.data())
def test_numbers_are_as_a_dictionary_has_them(
    ids: list[int], ignored: list[int], data: st.DataObject
) -> None:
    ignored = [value for value in ignored if value not in ids]
    expected = dict.fromkeys(ignored, IGNORED) | {value: i for i, value in enumerate(ids)}
    encode = from_ids(ids, ignored)
    values = data.draw(st.lists(st.sampled_from(sorted(expected)), min_size=1, max_size=9))
    found = encode(np.array([values], np.int64))
    assert found.tolist() == [[expected[value] for value in values]]
    stranger = data.draw(st.integers(-(2**31), 2**31 - 1).filter(lambda v: v not in expected))
    with pytest.raises(ImageError, match=rf"no class has the value {stranger} \(1 pixels\)"):
        encode(np.array([[*values, stranger]], np.int64))


COLOUR = st.tuples(*[st.integers(0, 255)] * 3)


@given(st.lists(COLOUR, min_size=2, max_size=20, unique=True), st.data())
def test_colours_are_as_a_dictionary_has_them(
    colours: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    classes = {colour: i for i, colour in enumerate(colours[1:])}
    encode = from_colours(classes, ignored=colours[:1])
    values = data.draw(st.lists(st.sampled_from(colours), min_size=1, max_size=9))
    found = encode(np.array([values], np.uint8))
    assert found.tolist() == [[classes.get(value, IGNORED) for value in values]]
    stranger = data.draw(COLOUR.filter(lambda colour: colour not in colours))
    with pytest.raises(ImageError, match="no class has the value"):
        encode(np.array([[*values, stranger]], np.uint8))
