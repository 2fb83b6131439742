"""Reading videos: every frame, upright, with its time."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

import av.error
import numpy as np
from av.video.reformatter import VideoReformatter

from segformerpp.data.containers import (
    av_reason,
    decode,
    length,
    open_container,
    origin,
    upright,
    video_stream,
)
from segformerpp.data.video_sources import without_password
from segformerpp.errors import UsageError, VideoError

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

_DEFAULT_RATE = Fraction(25)


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
            seconds = length(container, stream)
            self.audio = self._source if container.streams.audio else None
        if end is not None and end <= start:
            raise UsageError(f"end: later than start, which is {float(start):g}")
        if seconds is not None and start >= seconds:
            raise VideoError(f"{self.name}: ends before start, after {float(seconds):g} seconds")
        if seconds is not None and end is not None:
            seconds = min(seconds, end)
        self.count = None if seconds is None else max(1, round((seconds - start) * self.rate))

    def __iter__(self) -> Iterator[Frame]:
        """Read from the start.

        Raises:
            VideoError: if it can no longer be read, or nothing in it could be decoded.
        """
        count, reformatter = 0, VideoReformatter()
        with closing(self._timed()) as frames:
            for frame, when, duration in frames:
                image, transposed = upright(frame, reformatter)
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
