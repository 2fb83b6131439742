"""Writing videos that every browser plays: H.264 in MP4, with the sound of the source."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

import av
import av.error
import cv2
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, VideoReformatter

from segformerpp.data.containers import av_reason
from segformerpp.data.files import whole_file
from segformerpp.data.sound import Sound
from segformerpp.data.video import Frame
from segformerpp.errors import VideoError

if TYPE_CHECKING:
    from av.container import OutputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

#: Of x264: a fast preset, with the look ahead that it leaves out (mbtree), which halves the files:
#: they are as large and as good as those of "veryfast", in two thirds of its time. Without frames
#: that are predicted from later ones, MP4 holds the duration of each frame, the last one's too.
_OPTIONS = {"preset": "superfast", "mbtree": "1", "rc-lookahead": "10", "bf": "0"}
_HDTV, _LIMITED = 1, 1  # colours and their range, in FFmpeg's numbers


class VideoWriter:
    """Writes one video, whole or not at all: it appears once the ``with`` block has ended well.

    Frames of other sizes than the first are scaled to fit into it, with black around. An odd width
    or height, which H.264 players cannot show, grows by a pixel that repeats the one beside it.

    Args:
        path: where to, as MP4; missing folders are made.
        rate: frames per second, about.
        time_base: seconds of which all times are multiples.
        audio: a file or address whose sound is copied, as far as MP4 can hold it.
        shift: the time of the source, in seconds, that the video is to begin with.

    Attributes:
        path: see above.
        cut_audio: set this if the video ends before its source: then the sound does too.

    Raises:
        VideoError: if FFmpeg here cannot encode H.264.
        OSError: if the file cannot be written; from any method.
    """

    def __init__(
        self,
        path: Path,
        rate: Fraction,
        time_base: Fraction,
        audio: str | None = None,
        shift: Fraction = Fraction(0),
    ) -> None:
        if "libx264" not in av.codecs_available:
            raise VideoError("this build of PyAV cannot write H.264; install PyAV from PyPI")
        self.path = path
        self._rate, self._time_base, self._shift = rate, time_base, shift
        self._audio_source = audio
        self._stack = ExitStack()
        self._reformatter = VideoReformatter()
        self._video: VideoStream | None = None
        self._sound: Sound | None = None
        self._durations: dict[int, int] = {}
        self.cut_audio = False
        self._last, self._end = -1, Fraction(0)

    def __enter__(self) -> VideoWriter:
        with ExitStack() as stack:
            temporary = stack.enter_context(whole_file(self.path))
            with self._errors():
                # The index in front: browsers play such a file while they load it.
                self._container: OutputContainer = av.open(
                    str(temporary), "w", format="mp4", options={"movflags": "+faststart"}
                )
            stack.callback(self._container.close)
            self._stack = stack.pop_all()
        return self

    def write(self, image: np.ndarray, source: Frame) -> None:
        """Add a frame.

        Args:
            image: (H, W, 3) uint8 RGB.
            source: the frame of the source in whose place it stands; later than the one before.
        """
        with self._errors():
            if self._video is None:
                self._video = self._open(image.shape[:2], source.aspect)
            size = self._video.height, self._video.width
            image = _even(image)
            if image.shape[:2] != size:
                image = _letterbox(image, size)
            frame = self._reformatter.reformat(
                av.VideoFrame.from_ndarray(image, format="rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                dst_color_range=ColorRange.MPEG,
            )
            frame.time_base = self._time_base
            frame.pts = max(round((source.time - self._shift) / self._time_base), self._last + 1)
            self._last = frame.pts
            self._durations[frame.pts] = duration = max(round(source.duration / self._time_base), 1)
            self._end = (frame.pts + duration) * self._time_base
            self._mux(self._video.encode(frame))

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        with self._errors(), self._stack as stack:
            if error is not None:
                stack.__exit__(kind, error, traceback)
                return
            if self._video:
                self._mux(self._video.encode(None))
            if self._sound:
                if self.cut_audio:
                    self._sound.end(self._end)
                else:
                    self._sound.copy(None)

    def _open(self, size: tuple[int, ...], aspect: Fraction) -> VideoStream:
        stream = self._container.add_stream("libx264", self._rate, options=_OPTIONS)
        stream.height, stream.width = (side + side % 2 for side in size)
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = stream.time_base = self._time_base
        stream.codec_context.sample_aspect_ratio = aspect
        stream.color_range = _LIMITED
        stream.colorspace = stream.color_primaries = stream.color_trc = _HDTV
        if self._audio_source:
            self._sound = self._stack.enter_context(
                Sound.opened(self._audio_source, self._container, self._shift)
            )
        return stream

    def _mux(self, packets: list[Packet]) -> None:
        for packet in packets:
            if packet.pts is not None:  # the encoder takes all frames to be equally long
                packet.duration = self._durations.pop(packet.pts, packet.duration)
            if self._sound and packet.dts is not None:
                self._sound.copy(packet.dts * packet.time_base)
            self._container.mux(packet)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except av.error.FFmpegError as error:
            if isinstance(error, OSError):
                raise OSError(error.errno, error.strerror, str(self.path)) from None
            raise VideoError(f"{self.path}: {av_reason(error)}") from None


def _even(image: np.ndarray) -> np.ndarray:
    height, width = image.shape[:2]
    if height % 2 == 0 and width % 2 == 0:
        return image
    return cv2.copyMakeBorder(image, 0, height % 2, 0, width % 2, cv2.BORDER_REPLICATE)


def _letterbox(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale (h, w, 3) to fit into a size (H, W), in the middle, with black around."""
    height, width = image.shape[:2]
    scale = min(size[0] / height, size[1] / width)
    inner = max(round(height * scale), 1), max(round(width * scale), 1)
    out = np.zeros((*size, 3), np.uint8)
    top, left = (size[0] - inner[0]) // 2, (size[1] - inner[1]) // 2
    out[top : top + inner[0], left : left + inner[1]] = cv2.resize(
        image, inner[::-1], interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    )
    return out
