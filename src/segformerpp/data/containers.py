"""What FFmpeg tells of a video: opening, decoding, turning upright; errors in one line."""

from __future__ import annotations

import re
from collections.abc import Callable, Generator, Mapping
from contextlib import suppress
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import av.error
import numpy as np
from av.sidedata.sidedata import SideDataContainer
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition
from av.video.reformatter import Colorspace

from segformerpp.data.video_sources import without_password
from segformerpp.errors import VideoError

if TYPE_CHECKING:
    from av.buffer import Buffer
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.reformatter import VideoReformatter
    from av.video.stream import VideoStream

#: How long a source on the network may take to answer, or to send the next packet, in seconds.
TIMEOUT_SECONDS = 10.0
#: A file is given up after so many errors with nothing readable between them.
_ERRORS_IN_A_ROW = 100
_UNSTATED = 2  # a colour space, in FFmpeg's numbers


def open_container(source: str) -> InputContainer:
    """Open a file or an address for reading.

    Raises:
        VideoError: if that fails; the text names the source and the reason.
    """
    address = re.match(r"([a-z0-9+]+)://", source)
    # Over UDP a lost packet smears the picture until the next key frame.
    options = {"rtsp_flags": "prefer_tcp"} if address and address[1] == "rtsp" else {}
    # A colon in the name of a file would be taken for an address.
    name = source if address else f"file:{source}"
    timeout = TIMEOUT_SECONDS if address else None
    try:
        return av.open(name, "r", options=options, timeout=timeout, metadata_errors="replace")
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{without_password(source)}: {av_reason(error)}") from None


def video_stream(container: InputContainer, name: str) -> VideoStream:
    """The video in a container; a cover picture is none.

    Raises:
        VideoError: if there is none, or none that this build of FFmpeg can decode.
    """
    found = [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]
    if not found:
        raise VideoError(f"{name}: there is no video in it")
    # Streams of unknown codecs have no context at all.
    if getattr(found[0], "codec_context", None) is None:
        raise VideoError(f"{name}: its video is of a kind that cannot be decoded here")
    return found[0]


def decode(
    container: InputContainer, stream: VideoStream, on_broken: Callable[[], None]
) -> Generator[VideoFrame]:
    """Decode what comes, skipping packets that are broken.

    Args:
        container: open for reading.
        stream: its video.
        on_broken: called for each packet that cannot be read or decoded.

    Raises:
        av.error.FFmpegError: if the source can no longer be read.
    """
    errors = 0
    while errors < _ERRORS_IN_A_ROW:
        try:
            for packet in container.demux(stream):
                try:
                    frames = packet.decode()
                except av.error.InvalidDataError:
                    on_broken()
                    continue
                errors = 0
                yield from frames
            return
        except av.error.InvalidDataError:
            errors += 1
            on_broken()
        except av.error.FFmpegError:
            with suppress(av.error.FFmpegError):  # what the decoder still holds came before
                yield from stream.decode(None)
            raise


def upright(frame: VideoFrame, reformatter: VideoReformatter) -> tuple[np.ndarray, bool]:
    """Decode a frame's colours and turn it as its display matrix says.

    Args:
        frame: as it was decoded.
        reformatter: one for all frames of a source. Each has threads and tables of its own, and a
            frame that is asked to reformat itself makes one and keeps it.

    Returns:
        (H, W, 3) uint8 RGB, and whether rows have become columns.
    """
    # Where nothing is said, players take videos of this height to be in the colours of HDTV.
    colours = Colorspace.ITU709 if frame.colorspace == _UNSTATED and frame.height >= 720 else None
    rgb = reformatter.reformat(frame, format="rgb24", src_colorspace=colours)
    image = rgb.to_ndarray()
    # Not `frame.side_data`, which the frame would keep. That refers to the frame in turn, whose
    # memory would then be freed only when Python looks for circles.
    side_data: Mapping[SideData, Buffer] = SideDataContainer(frame)  # type: ignore[call-arg]
    if (matrix := side_data.get(SideData.DISPLAYMATRIX)) is None:
        return np.asarray(image, np.uint8), False
    # Of (x, y) the place on the screen is (a x + c y, b x + d y), in 16.16 fixed point.
    a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
    transposed = abs(b) > abs(a)
    if transposed:
        image = image.transpose(1, 0, 2)
        a, d = c, b
    image = image[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
    return np.ascontiguousarray(image, np.uint8), transposed


def origin(container: InputContainer, stream: VideoStream) -> Fraction:
    """When the first of sound and video begins, in seconds of the container's clock."""
    starts = [
        one.start_time * one.time_base
        for one in (stream, *container.streams.audio)
        if one.start_time is not None and one.time_base is not None
    ]
    return min(starts, default=Fraction(0))


def has_end(source: str) -> bool:
    """Whether an address holds a video with an end, rather than a live stream.

    Raises:
        VideoError: if it cannot be opened.
    """
    if not source.startswith(("http://", "https://")):
        return False
    with open_container(source) as container:
        return length(container, video_stream(container, without_password(source))) is not None


def av_reason(error: Exception) -> str:
    """What FFmpeg says, in one line."""
    if isinstance(error, av.error.ExitError):
        return f"nothing came for {TIMEOUT_SECONDS:g} seconds"
    if isinstance(error, av.error.InvalidDataError):
        return "not a video of a known format"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text[0].lower() + " ".join(text[1:].split())


def length(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """Seconds that a video lasts, if that is known."""
    if stream.duration and stream.time_base:
        return stream.duration * stream.time_base
    return Fraction(container.duration, 1_000_000) if container.duration else None
