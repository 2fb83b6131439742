"""Reading videos: every frame, upright, with its time."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av
import av.error
import numpy as np
from av.sidedata.sidedata import Type as SideData
from av.stream import Disposition

from segformerpp.data.video_sources import without_password
from segformerpp.errors import UsageError, VideoError

if TYPE_CHECKING:
    from av.buffer import Buffer
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

#: How long a source on the network may take to answer, or to send the next packet, in seconds.
TIMEOUT_SECONDS = 10.0
#: A file is given up after so many errors with nothing readable between them.
_ERRORS_IN_A_ROW = 100
_DEFAULT_RATE = Fraction(25)
_UNSTATED = 2  # a colour space, in FFmpeg's numbers


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One frame of a video.

    Args:
        image: (H, W, 3) uint8 RGB, as it is to be seen: rotated as the video says.
        time: seconds from the beginning of the source.
        duration: seconds until the next frame.
        aspect: width of a pixel over its height.
        decoded: when it was decoded, in seconds of `time.monotonic`.
    """

    image: np.ndarray
    time: Fraction
    duration: Fraction
    aspect: Fraction
    decoded: float


class VideoReader:
    """The frames of a video with an end: a file, or one that a server holds.

    Args:
        source: a file or an address.
        start, end: seconds from the beginning; frames of ``start <= time < end`` are read.
        stride: take every so many-th frame; each lasts until the next one taken.

    Attributes:
        name: the source, without a password.
        live: False.
        start, end: see above.
        rate: frames per second on average, of those taken.
        time_base: seconds of which all times are multiples.
        count: about how many frames there are to take; None if unknown.
        audio: where the sound is, for `VideoWriter`; None if there is none.
        broken: how many packets could not be decoded so far; they are skipped.
        dropped, lost: 0 and None: of use for live sources alone.

    Raises:
        VideoError: if it cannot be opened, holds no video, or ends before `start`.
        UsageError: if there is nothing between `start` and `end`.
    """

    live = False
    lost: str | None = None
    dropped = 0

    def __init__(
        self,
        source: str | Path,
        start: Fraction = Fraction(0),
        end: Fraction | None = None,
        stride: int = 1,
    ) -> None:
        self.name = without_password(str(source))
        self.start, self.end = start, end
        self._source, self._stride = str(source), stride
        self.broken = 0
        with open_container(self._source) as container:
            stream = video_stream(container, self.name)
            self.rate = (stream.average_rate or stream.guessed_rate or _DEFAULT_RATE) / stride
            self.time_base = stream.time_base or 1 / _DEFAULT_RATE
            self._origin = origin(container, stream)
            self._aspect = stream.sample_aspect_ratio or Fraction(1)
            length = _length(container, stream)
            self.audio = self._source if container.streams.audio else None
        if end is not None and end <= start:
            raise UsageError(f"end: later than start, which is {float(start):g}")
        if length is not None and start >= length:
            raise VideoError(f"{self.name}: ends before start, after {float(length):g} seconds")
        if length is not None and end is not None:
            length = min(length, end)
        self.count = None if length is None else max(1, round((length - start) * self.rate))

    def __iter__(self) -> Iterator[Frame]:
        """Read from the start.

        Raises:
            VideoError: if it can no longer be read, or nothing in it could be decoded.
        """
        count = 0
        with closing(self._timed()) as frames:
            for frame, when, duration in frames:
                image, transposed = upright(frame)
                aspect = 1 / self._aspect if transposed else self._aspect
                yield Frame(image, when, duration, aspect, time.monotonic())
                count += 1
        if not count:
            raise VideoError(f"{self.name}: no frame in it can be decoded")

    def close(self) -> None:
        """Do nothing: what is open closes with the iterator."""

    def _timed(self) -> Generator[tuple[VideoFrame, Fraction, Fraction]]:
        """The frames to take, each with its time and duration in seconds."""
        usual = 1 / (self.rate * self._stride)
        last = -usual
        held: tuple[VideoFrame, Fraction] | None = None
        until, seen = Fraction(0), 0
        with closing(self._decoded()) as frames:
            for frame in frames:
                when = last + usual
                if frame.pts is not None and frame.time_base is not None:
                    stated = frame.pts * frame.time_base - self._origin
                    # A clock that jumps back, as in files that were joined, goes on instead.
                    when = stated if stated > last or seen == 0 else when
                last = when
                if when < self.start:
                    continue
                if self.end is not None and when >= self.end:
                    break
                if seen % self._stride == 0:
                    if held:
                        yield *held, when - held[1]
                    held = frame, when
                seen += 1
                until = when + (frame.duration * self.time_base if frame.duration else usual)
        if held:
            until = until if self.end is None else min(until, self.end)
            yield *held, max(until - held[1], self.time_base)

    def _decoded(self) -> Generator[VideoFrame]:
        # Where there is no index, a search may end too late, and is begun earlier; at last at 0.
        for earlier in (0, 5, 30, None) if self.start else (None,):
            with open_container(self._source) as container:
                stream = video_stream(container, self.name)
                if earlier is not None:
                    wanted = self.start + self._origin - earlier
                    container.seek(int(wanted * 1_000_000), backward=True)
                try:
                    frames = decode(container, stream, self._count_broken)
                    first = next(frames, None)
                    if earlier is None or (first and self._reached(first)):
                        yield from () if first is None else (first,)
                        yield from frames
                        return
                except av.error.FFmpegError as error:
                    raise VideoError(f"{self.name}: {av_reason(error)}") from None

    def _reached(self, frame: VideoFrame) -> bool:
        """Whether a frame is not later than where to begin."""
        if frame.pts is None or frame.time_base is None:
            return False
        return frame.pts * frame.time_base - self._origin <= self.start

    def _count_broken(self) -> None:
        self.broken += 1


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


def upright(frame: VideoFrame) -> tuple[np.ndarray, bool]:
    """Decode a frame's colours and turn it as its display matrix says.

    Returns:
        (H, W, 3) uint8 RGB, and whether rows have become columns.
    """
    # Where nothing is said, players take videos of this height to be in the colours of HDTV.
    colours = "ITU709" if frame.colorspace == _UNSTATED and frame.height >= 720 else None
    image = frame.to_ndarray(format="rgb24", src_colorspace=colours)
    side_data: Mapping[SideData, Buffer] = frame.side_data  # type: ignore[assignment]
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
        return _length(container, video_stream(container, without_password(source))) is not None


def av_reason(error: Exception) -> str:
    """What FFmpeg says, in one line."""
    if isinstance(error, av.error.ExitError):
        return f"nothing came for {TIMEOUT_SECONDS:g} seconds"
    if isinstance(error, av.error.InvalidDataError):
        return "not a video of a known format"
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return text[0].lower() + " ".join(text[1:].split())


def _length(container: InputContainer, stream: VideoStream) -> Fraction | None:
    """Seconds that a video lasts, if that is known."""
    if stream.duration and stream.time_base:
        return stream.duration * stream.time_base
    return Fraction(container.duration, 1_000_000) if container.duration else None
