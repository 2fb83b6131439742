import io
import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from segformerpp.data.images import MAX_PIXELS, read_image, write_image
from segformerpp.errors import ImageError

RGB = np.random.default_rng(0).integers(0, 256, (24, 40, 3), dtype=np.uint8)
PICTURE = Image.fromarray(RGB)
LOSSLESS = {
    "png": "PNG",
    "bmp": "BMP",
    "tif": "TIFF",
    "ppm": "PPM",
    "tga": "TGA",
    "jp2": "JPEG2000",
}


def saved(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize("extension", LOSSLESS)
def test_lossless_formats_are_read_exactly(tmp_path: Path, extension: str) -> None:
    options = {"irreversible": False} if extension == "jp2" else {}
    image = read_image(saved(PICTURE, tmp_path / f"x.{extension}", **options))
    assert image.dtype == np.uint8
    np.testing.assert_array_equal(image, RGB)


@pytest.mark.parametrize(
    "mode", ["1", "L", "LA", "P", "RGBA", "CMYK", "YCbCr", "HSV", "LAB", "RGBX"]
)
def test_modes_as_pil_images(mode: str) -> None:
    image = read_image(PICTURE.convert(mode))
    assert image.shape == RGB.shape
    if mode in ("RGBA", "RGBX"):
        np.testing.assert_array_equal(image, RGB)
    if mode in ("HSV", "YCbCr", "CMYK", "LAB"):
        assert abs(image.astype(int) - RGB).mean() < 12
    if mode in ("1", "L", "LA"):
        np.testing.assert_array_equal(image[..., 0], image[..., 2])


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA"])
def test_rare_modes_are_read(mode: str) -> None:
    via = {"La": "LA", "RGBa": "RGBA", "PA": "P"}[mode]
    assert read_image(PICTURE.convert(via).convert(mode)).shape == RGB.shape


@pytest.mark.parametrize(("mode", "format_"), [("CMYK", "jpg"), ("L", "webp"), ("LAB", "tif")])
def test_modes_in_files(tmp_path: Path, mode: str, format_: str) -> None:
    assert read_image(saved(PICTURE.convert(mode), tmp_path / f"x.{format_}")).shape == RGB.shape


@pytest.mark.parametrize("extension", ["png", "tif"])
def test_16_bit_grey_is_scaled(tmp_path: Path, extension: str) -> None:
    values = np.array([[0, 257, 32896, 65535]], np.uint16).repeat(3, 0)
    image = read_image(saved(Image.fromarray(values), tmp_path / f"x.{extension}"))
    np.testing.assert_array_equal(image[0, :, 0], [0, 1, 128, 255])


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 0.5, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, 100.2, 255]], np.float32), [0, 100, 255]),
        (np.array([[-1, 0, 1]], np.float32), [0, 128, 255]),
        (np.array([[0, np.nan, 1]], np.float32), [0, 0, 255]),
        (np.array([[-np.inf, 0.5, 1, np.inf]], np.float32), [0, 128, 255, 255]),
        (np.array([[-np.inf, -100, 100, np.inf]], np.float32), [0, 0, 255, 255]),
        (np.array([[-3e38, 0, 3e38]], np.float32), [0, 128, 255]),
        (np.array([[np.inf, np.nan]], np.float32), [0, 0]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),
        (np.array([[0, 7, 255]], np.int32), [0, 7, 255]),
        (np.array([[-(2**31), 0, 2**31 - 1]], np.int32), [0, 128, 255]),
        (np.array([[5, 5, 5]], np.int32), [5, 5, 5]),
        (np.array([[-5, -5, -5]], np.int32), [0, 0, 0]),
    ],
)
def test_wide_numbers(tmp_path: Path, values: np.ndarray, expected: list[int]) -> None:
    image = read_image(saved(Image.fromarray(values), tmp_path / "x.tif"))
    assert image[0, :, 1].tolist() == expected


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_tiff_of_floats(
    tmp_path: Path, channels: int, dtype: type, capfd: pytest.CaptureFixture[str]
) -> None:
    values: np.ndarray = np.random.default_rng(0).random((20, 30, channels)).astype(dtype)
    path = tmp_path / "x.tif"
    cv2.imwrite(str(path), values)
    rgb = values[..., 2::-1] if channels > 1 else values.repeat(3, axis=2)
    np.testing.assert_allclose(read_image(path), rgb * 255, atol=0.51)
    path.write_bytes(path.read_bytes()[:2000])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageError, match=r"x\.tif: "):
            read_image(path)
    assert capfd.readouterr() == ("", "")


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = PICTURE.quantize(16)
    path = saved(image, tmp_path / "x.png", transparency=bytes(range(16)))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(read_image(path), np.asarray(image.convert("RGB")))


def test_alpha_is_dropped(tmp_path: Path) -> None:
    array = np.dstack([RGB, np.zeros(RGB.shape[:2], np.uint8)])
    np.testing.assert_array_equal(
        read_image(saved(Image.fromarray(array), tmp_path / "x.png")), RGB
    )


@pytest.mark.parametrize("extension", ["jpg", "png", "tif", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(tmp_path: Path, orientation: int, extension: str) -> None:
    upright = np.zeros((40, 64, 3), np.uint8)
    upright[:8, :8] = 255  # only one corner, so every orientation looks different
    turned = {
        1: lambda a: a,
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.swapaxes(0, 1),
        6: lambda a: a.swapaxes(0, 1)[::-1],
        7: lambda a: a.swapaxes(0, 1)[::-1, ::-1],
        8: lambda a: a.swapaxes(0, 1)[:, ::-1],
    }[orientation](upright)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(turned))
    path = saved(stored, tmp_path / f"x.{extension}", exif=exif)
    image = read_image(path)
    assert image.shape == upright.shape
    assert abs(image.astype(int) - upright).mean() < 3
    with Image.open(path) as opened:
        np.testing.assert_array_equal(read_image(opened), image)


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    path = saved(frames[0], tmp_path / "x.gif", save_all=True, append_images=frames[1:])
    assert read_image(path)[0, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("size", [(1, 1), (20000, 32), (3, 5000)])
def test_extreme_sizes(tmp_path: Path, size: tuple[int, int]) -> None:
    path = saved(Image.new("RGB", size), tmp_path / "x.png")
    assert read_image(path).shape == (size[1], size[0], 3)


@pytest.mark.parametrize("extension", [*LOSSLESS, "jpg", "gif", "webp", "avif"])
def test_larger_than_pillow_likes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extension: str
) -> None:
    path = saved(PICTURE, tmp_path / f"x.{extension}")
    for limit in (700, 100):  # Pillow warns about the first, and refuses the second
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert read_image(path).shape == RGB.shape
        assert limit == Image.MAX_IMAGE_PIXELS


def test_bombs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.pgm"
    path.write_bytes(b"P5 100000 %d 255\n" % (MAX_PIXELS // 100000 + 1))
    with pytest.raises(ImageError, match="more than"):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "empty"), (b"just text\n", "not an image"), (b"\x89PNG\r\n\x1a\n", "x.png: ")],
)
def test_no_image(tmp_path: Path, content: bytes, reason: str) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    with pytest.raises(ImageError, match=reason) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="no such file"):
        read_image(tmp_path / "x.png")
    with pytest.raises(ImageError, match="is a directory"):
        read_image(tmp_path)
    with pytest.raises(ImageError, match="no such file"):
        read_image("~no-such-user/x.png")


def test_a_name_that_begins_with_a_tilde(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read_image(saved(PICTURE, Path("~x.png"))).shape == RGB.shape


FORMATS = ["PNG", "JPEG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "TGA", "JPEG2000", "AVIF"]


@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(
    format_=st.sampled_from(FORMATS),
    keep=st.floats(0, 1),
    damage=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=5),
)
def test_damaged_files(
    tmp_path: Path, format_: str, keep: float, damage: list[tuple[float, int]]
) -> None:
    buffer = io.BytesIO()
    PICTURE.save(buffer, format=format_)
    content = bytearray(buffer.getvalue())
    for where, value in damage:
        content[int(where * len(content))] = value
    path = tmp_path / "x"
    path.write_bytes(content[: round(keep * len(content))])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            image = read_image(path)
        except ImageError as error:
            text = str(error)
        else:
            text = f"{path}: "
            assert image.dtype == np.uint8
            assert image.ndim == 3
            assert image.shape[2] == 3
        assert text.startswith(f"{path}: ")
        assert "\n" not in text


def test_truncated_files_are_no_images(tmp_path: Path) -> None:
    for format_ in ("PNG", "JPEG", "WEBP"):
        buffer = io.BytesIO()
        PICTURE.save(buffer, format=format_)
        for keep in (0.1, 0.5, 0.8):
            path = tmp_path / "x"
            path.write_bytes(buffer.getvalue()[: int(keep * len(buffer.getvalue()))])
            with pytest.raises(ImageError):
                read_image(path)


@pytest.mark.parametrize("shape", [(4, 5), (4, 5, 1), (4, 5, 3), (4, 5, 4)])
def test_arrays(shape: tuple[int, ...]) -> None:
    array = np.full(shape, 9, np.uint8)[::-1]
    image = read_image(array)
    assert image.shape == (4, 5, 3)
    assert (image == 9).all()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 5, 3), np.float32),
        np.zeros((4, 5, 3), np.int64),
        np.zeros((3, 4, 5), np.uint8),
        np.zeros((4, 5, 2), np.uint8),
        np.zeros((0, 5, 3), np.uint8),
        np.zeros((1, 4, 5, 3), np.uint8),
    ],
)
def test_wrong_arrays(array: np.ndarray) -> None:
    with pytest.raises(ImageError, match="of uint8, not"):
        read_image(array)


def test_wrong_types() -> None:
    with pytest.raises(ImageError, match="not int"):
        read_image(7)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "array", [RGB, RGB[..., 0], RGB[..., 1].astype(np.uint16) * 300, RGB[:, ::-1]]
)
def test_png_round_trip(tmp_path: Path, array: np.ndarray) -> None:
    write_image(tmp_path / "new" / "x.png", array)
    np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "new" / "x.png")), array)


def test_what_opencv_fails_to_write_pillow_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "imencode", lambda *_: (False, np.zeros(0, np.uint8)))
    write_image(tmp_path / "x.png", RGB)
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), RGB)


def test_pil_images_and_other_formats(tmp_path: Path) -> None:
    for name in ("x.png", "x.bmp", "x.webp", "x.JPG"):
        write_image(tmp_path / name, PICTURE)
        assert read_image(tmp_path / name).shape == RGB.shape
    write_image(tmp_path / "p.png", PICTURE.quantize(8))
    assert Image.open(tmp_path / "p.png").mode == "P"


def test_nothing_is_left_of_what_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ImageError, match="no format"):
        write_image(tmp_path / "x.foo", RGB)
    with pytest.raises(ImageError, match=r"x\.jpg: "):
        write_image(tmp_path / "x.jpg", PICTURE.convert("RGBA"))
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"file/x\.png"):
        write_image(tmp_path / "file" / "x.png", RGB)
    write_image(tmp_path / "x.png", RGB)

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match=r"No space left on device.*x\.png"):
        write_image(tmp_path / "x.png", np.zeros_like(RGB))
    np.testing.assert_array_equal(read_image(tmp_path / "x.png"), RGB)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "x.png"]
