"""Reading live sources, cameras and streams: the newest frame, whatever happened before."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import av.error
import cv2
import numpy as np
from av.video.reformatter import VideoReformatter

from segformerpp.data.containers import (
    TIMEOUT_SECONDS,
    av_reason,
    decode,
    open_container,
    upright,
    video_stream,
)
from segformerpp.data.video import Frame
from segformerpp.data.video_sources import VideoSource
from segformerpp.errors import VideoError

if TYPE_CHECKING:
    from av.video.stream import VideoStream

logger = logging.getLogger(__name__)

#: Seconds between attempts to connect again: at first, and at most.
_PAUSES = 0.5, 5.0
_CLOCK = Fraction(1, 90_000)  # that of MPEG streams
_USUAL_RATE = Fraction(25)


@dataclass(frozen=True, slots=True, eq=False)
class _Picture:
    image: np.ndarray
    aspect: Fraction
    decoded: float


class LiveReader:
    """The frames of a camera or stream, as many as can be worked on.

    A frame that is newer replaces one that has not been taken yet. Times are those at which frames
    were decoded here, so that they go on evenly when a connection is lost and made again.

    Args:
        source: an address, the path of a camera, or the number of one.
        end: how many seconds after the first frame to stop; None to go on.
        stride: take every so many-th frame only.
        patience: for how many seconds a source that is lost is looked for.

    Attributes:
        name: the source, without a password.
        live: True.
        start, end: 0, and see above.
        rate: frames per second that the source states.
        time_base: seconds of which all times are multiples.
        count: None: how many frames come is unknown.
        audio: None: sound is not recorded.
        broken: how many packets could not be decoded so far; they are skipped.
        dropped: how many frames were replaced by newer ones.
        lost: why there are no more frames, if that was not asked for.

    Raises:
        VideoError: if it cannot be opened.
    """

    live = True
    count: int | None = None
    audio: str | None = None
    time_base = _CLOCK

    def __init__(
        self,
        source: str | int,
        end: Fraction | None = None,
        stride: int = 1,
        patience: float = 30.0,
    ) -> None:
        self.name = VideoSource(source, "").name
        self.start, self.end = Fraction(0), end
        self._source, self._stride, self._patience = source, stride, patience
        self.rate = _USUAL_RATE
        self.broken = self.dropped = 0
        self.lost: str | None = None
        self._changed, self._closed = threading.Condition(), threading.Event()
        self._ready: _Picture | None = None
        self._first: VideoError | None = None
        self._heard = time.monotonic()
        self._thread = threading.Thread(target=self._read, name="segformerpp-live", daemon=True)
        self._thread.start()
        with self._changed:
            # Opening, and finding out what comes, may each take as long as that.
            self._changed.wait_for(lambda: self._ready or self._first, 3 * TIMEOUT_SECONDS)
        if not self._ready:
            self.close()
            raise self._first or VideoError(f"{self.name}: no picture comes")

    def __iter__(self) -> Iterator[Frame]:
        """Wait for frames; ends when `close` has been called, or the source stays lost."""
        begin: float | None = None
        while picture := self._take():
            begin = picture.decoded if begin is None else begin
            when = round((picture.decoded - begin) / _CLOCK) * _CLOCK
            if self.end is not None and when >= self.end:
                break
            yield Frame(picture.image, when, 1 / self.rate, picture.aspect, picture.decoded)
        self.close()

    def close(self) -> None:
        """Give no more frames; may be called from any thread."""
        self._closed.set()

    def _take(self) -> _Picture | None:
        """The newest frame, once there is one that was not taken yet."""
        with self._changed:
            # Looking now and then, because `close` may be called from a signal handler.
            while not self._closed.is_set():
                if self._ready:
                    picture, self._ready = self._ready, None
                    return picture
                if time.monotonic() - self._heard > self._patience + TIMEOUT_SECONDS:
                    self.lost = self.lost or "no picture comes"  # a reader that hangs
                if self.lost:
                    return None
                self._changed.wait(0.1)
        return None

    def _read(self) -> None:
        """Keep the newest frame ready, connecting as often as needed (in a thread of its own)."""
        seen, pause = 0, _PAUSES[0]
        while not self._closed.is_set():
            try:
                with closing(self._pictures()) as pictures:
                    for picture in pictures:
                        self._heard, pause = picture.decoded, _PAUSES[0]
                        if seen % self._stride == 0:
                            self._put(picture)
                        seen += 1
                        if self._closed.is_set():
                            return
                trouble = VideoError(f"{self.name}: it ended")
            except VideoError as error:
                trouble = error
            with self._changed:
                if not seen:
                    self._first = trouble
                elif time.monotonic() - self._heard + pause > self._patience:
                    self.lost = str(trouble).removeprefix(f"{self.name}: ")
                self._changed.notify_all()
                if self._first or self.lost:
                    return
            logger.warning("%s; connecting again", trouble)
            self._closed.wait(pause)
            pause = min(2 * pause, _PAUSES[1])

    def _put(self, picture: _Picture) -> None:
        with self._changed:
            self.dropped += self._ready is not None
            self._ready = picture
            self._changed.notify_all()

    def _pictures(self) -> Generator[_Picture]:
        """The frames of one connection."""
        if isinstance(self._source, int) or self._source.startswith("/dev/"):
            return self._of_camera(self._source)
        return self._of_stream(self._source)

    def _of_stream(self, address: str) -> Generator[_Picture]:
        try:
            with open_container(address) as container:
                stream = video_stream(container, self.name)
                self.rate = _stated_rate(stream)
                aspect = stream.sample_aspect_ratio or Fraction(1)
                reformatter = VideoReformatter()
                with closing(decode(container, stream, self._count_broken)) as frames:
                    for frame in frames:
                        image, transposed = upright(frame, reformatter)
                        shape = 1 / aspect if transposed else aspect
                        yield _Picture(image, shape, time.monotonic())
        except (av.error.FFmpegError, OSError) as error:
            raise VideoError(f"{self.name}: {av_reason(error)}") from None

    def _of_camera(self, camera: int | str) -> Generator[_Picture]:
        capture = cv2.VideoCapture(camera)
        try:
            if not capture.isOpened():
                raise VideoError(f"{self.name}: there is no such camera, or it is in use")
            rate = capture.get(cv2.CAP_PROP_FPS)
            self.rate = Fraction(rate).limit_denominator(1001) if 1 <= rate <= 240 else _USUAL_RATE
            while True:
                done, image = capture.read()
                if not done:
                    raise VideoError(f"{self.name}: no picture comes")
                rgb = cv2.cvtColor(image, cv2.COLOR_BGR2RGB)
                yield _Picture(rgb, Fraction(1), time.monotonic())
        finally:
            capture.release()

    def _count_broken(self) -> None:
        self.broken += 1


def _stated_rate(stream: VideoStream) -> Fraction:
    rate = stream.average_rate or stream.guessed_rate or _USUAL_RATE
    return rate if 1 <= rate <= 240 else _USUAL_RATE
