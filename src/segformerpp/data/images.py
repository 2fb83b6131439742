"""Reading images of every kind into one form: (H, W, 3) uint8 RGB."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, UnidentifiedImageError

from segformerpp.data.files import expand_user, write_whole
from segformerpp.errors import ImageError

#: A file, an opened image, or an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8.
ImageSource = str | Path | Image.Image | np.ndarray

#: What is refused as a decompression bomb; OpenCV draws the line here too.
MAX_PIXELS = 2**30

_ORIENTATION_TAG = 0x0112
_TO_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
#: Globals of libraries, which other users of these rely on, are changed by one thread at a time.
_pillow_limit, _opencv_log = threading.Lock(), threading.Lock()


def read_image(source: ImageSource) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB, rotated as its EXIF data says.

    Transparency is dropped, of an animation the first frame is taken. 16 bits are scaled to 8;
    32-bit integers likewise if they fit in 16 bits. Other integers and floating point numbers
    are taken as they are if they lie in 0..255 (floats in 0..1 times 255), else scaled from
    their own range.

    Raises:
        ImageError: if it cannot be read; the text names the file and the reason in one line.
    """
    if isinstance(source, np.ndarray):
        return _from_array(source)
    if isinstance(source, Image.Image):
        name = getattr(source, "filename", "") or f"image of {type(source).__name__}"
        with _one_line(str(name)):
            return _to_rgb(source)
    if not isinstance(source, str | Path):
        raise ImageError(f"image: a path, a PIL image or an array, not {type(source).__name__}")
    with _one_line(str(source)):
        data = expand_user(source).read_bytes()
        if not data:
            raise ValueError("the file is empty")
        try:
            with open_image(data) as image:
                return _to_rgb(image)
        except UnidentifiedImageError:
            if (array := _decode_tiff(data)) is None:
                raise
            return array


def write_image(path: str | Path, image: np.ndarray | Image.Image) -> None:
    """Write an image whole or not at all, in the format of the name's extension.

    Args:
        path: where to; missing folders are made.
        image: a PIL image, or an array (H, W) uint8 or uint16, or (H, W, 3) uint8 RGB.

    Raises:
        ImageError: if there is no such format, or it cannot hold this image.
        OSError: if the file cannot be written.
    """
    path = Path(path)
    try:
        encoded = _encode(image, path.suffix.lower())
    except (OSError, ValueError, cv2.error) as error:
        raise ImageError(f"{path}: {reason(error)}") from None
    with write_whole(path) as file:
        file.write(encoded)


def _encode(image: np.ndarray | Image.Image, extension: str) -> memoryview:
    if extension == ".png" and (isinstance(image, np.ndarray) or image.mode in ("L", "RGB")):
        # Several times faster than Pillow, at equal size.
        array = np.asarray(image)
        if array.ndim == 3:
            array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR)
        done, encoded = cv2.imencode(extension, array)
        if done:
            return encoded.data
    image = image if isinstance(image, Image.Image) else Image.fromarray(image)
    name = Image.registered_extensions().get(extension)
    if name not in Image.SAVE:
        raise ValueError(f"{extension or 'no extension'} is no format that can be written")
    buffer = io.BytesIO()
    image.save(buffer, format=name)
    return buffer.getbuffer()


def open_image(data: bytes) -> Image.Image:
    """Open an image file with Pillow, up to the size that this package reads.

    Raises:
        ValueError: if it has more pixels.
        Exception: whatever Pillow raises.
    """
    with _pillow_limit:
        limit, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
        try:
            image = Image.open(io.BytesIO(data))
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise ValueError(f"{height} x {width} pixels are more than this package reads")
            if limit is not None and width * height > limit:
                image.load()  # decoders such as that of TIFF look at the limit again
        finally:
            Image.MAX_IMAGE_PIXELS = limit
    return image


def _decode_tiff(data: bytes) -> np.ndarray | None:
    """Decode the TIFF files that Pillow has no mode for: several channels of floats, 64 bits."""
    if not data.startswith((b"II*\0", b"MM\0*")):
        return None
    # What OpenCV would report on standard error, we raise.
    with _opencv_log:
        level = cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            array = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_UNCHANGED)
        finally:
            cv2.utils.logging.setLogLevel(level)
    if array is None or array.size == 0:
        return None
    if array.dtype != np.uint8:
        array = _to_8_bit(array, sixteen_bit=array.dtype == np.uint16)
    if array.ndim == 3 and array.shape[2] >= 3:
        array = array[..., 2::-1]
    return _from_array(array)


def _to_rgb(image: Image.Image) -> np.ndarray:
    image.load()
    try:
        orientation = image.getexif().get(_ORIENTATION_TAG, 1)
    except Exception:
        orientation = 1
    mode = image.mode
    if mode.startswith("I") or mode == "F":
        image = Image.fromarray(_to_8_bit(np.asarray(image), sixteen_bit=mode.startswith("I;")))
    elif "transparency" in image.info or mode in ("La", "RGBa", "PA"):
        image = image.convert("LA" if mode == "La" else "RGBA")
    if orientation in _TO_UPRIGHT:
        image = image.transpose(_TO_UPRIGHT[orientation])
    array = np.asarray(image.convert("RGB"))
    if 0 in array.shape:
        raise ValueError("it has no pixels")
    return array


def _to_8_bit(values: np.ndarray, sixteen_bit: bool) -> np.ndarray:
    """Scale values of any number type to uint8; infinite ones are like the outermost others."""
    with np.errstate(over="ignore"):
        scaled = values.astype(np.float32)
    finite = scaled[np.isfinite(scaled)]
    low, high = float(finite.min(initial=0)), float(finite.max(initial=0))
    scaled = np.nan_to_num(scaled, posinf=high, neginf=low)
    is_float = np.issubdtype(values.dtype, np.floating)
    if sixteen_bit or (not is_float and low >= 0 and 255 < high <= 65535):
        scaled *= 255 / 65535
    elif is_float and low >= 0 and high <= 1:
        scaled *= 255
    elif low < 0 or high > 255:
        scale = 255 / (high - low)
        scaled = scaled * scale - low * scale
    return np.round(scaled).astype(np.uint8)


def _from_array(array: np.ndarray) -> np.ndarray:
    shape = array.shape
    grey = len(shape) == 2 or (len(shape) == 3 and shape[2] == 1)
    colour = len(shape) == 3 and shape[2] in (3, 4)
    if array.dtype != np.uint8 or not (grey or colour) or 0 in shape:
        raise ImageError(
            f"array: an image is (H, W), (H, W, 1), (H, W, 3) or (H, W, 4) of uint8, "
            f"not {shape} of {array.dtype}"
        )
    if grey:
        return np.repeat(array.reshape(*shape[:2], 1), 3, axis=2)
    # A copy: what a camera loop writes into its array next must not reach a result.
    return np.array(array[..., :3], order="C")


@contextmanager
def _one_line(name: str) -> Iterator[None]:
    """Turn whatever a decoder raises into an `ImageError` of one line."""
    try:
        yield
    except Exception as error:
        raise ImageError(f"{name}: {reason(error)}") from None


def reason(error: Exception) -> str:
    """What a decoder or the system says, in one line."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image of a known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror[0].lower() + error.strerror[1:]
    if isinstance(error, MemoryError):
        return "too large for the memory of this machine"
    return " ".join(str(error).split()) or type(error).__name__
