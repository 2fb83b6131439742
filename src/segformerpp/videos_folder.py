"""Segmenting videos, streams and cameras into a folder, with a JSON line for each frame."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from threading import Event
from typing import IO, TYPE_CHECKING, Any

from segformerpp.arguments import whole_number
from segformerpp.data.files import check_writable, expand_user, write_whole
from segformerpp.errors import UsageError, VideoError
from segformerpp.tasks.pose_result import PoseResult
from segformerpp.tasks.segmentation_result import OUTPUTS, output_paths

if TYPE_CHECKING:
    from PIL import Image

    from segformerpp.data.streams import LiveReader
    from segformerpp.data.video import VideoReader
    from segformerpp.data.video_sources import VideoSource
    from segformerpp.predictor import Predictor
    from segformerpp.video import FrameDone

#: What can be shown of each frame as a video, and what draws it at the frame's size.
VIDEO_OUTPUTS: dict[str, Callable[[Any], Image.Image]] = {
    "overlay": lambda result: (
        result.plot() if isinstance(result, PoseResult) else result.plot(legend=False)
    ),
    "color": lambda result: result.color_map(),
}


@dataclass(frozen=True, slots=True)
class Selection:
    """What to take of a video.

    Args:
        start, end: seconds from the beginning.
        stride: every so many-th frame.
        patience: for how many seconds a live source that is lost is looked for.

    Raises:
        UsageError: if there is nothing to take, or a number makes no sense.
    """

    start: Fraction = Fraction(0)
    end: Fraction | None = None
    stride: int = 1
    patience: float = 30.0

    def __post_init__(self) -> None:
        if self.end is not None and self.end <= self.start:
            raise UsageError(f"end: later than start, which is {float(self.start):g}")
        if not 0 <= self.patience < math.inf:
            raise UsageError(f"reconnect: seconds, from 0 up, not {self.patience}")
        whole_number("stride", self.stride, 1)


class VideosFolder:
    """Names and writes what is made of videos.

    Args:
        folder: made if it is missing, once there is something to write.
        what: the outputs; those that are not among `VIDEO_OUTPUTS` are for images alone.
        report: a file for a JSON line for each frame; appears once the ``with`` block has ended
            well.
        outputs: all outputs that there are for images.
    """

    def __init__(
        self,
        folder: str | Path,
        what: Iterable[str],
        report: str | Path | None = None,
        outputs: Mapping[str, str] = OUTPUTS,
    ) -> None:
        self._outputs = outputs
        self.folder = expand_user(folder)
        self.what = tuple(what)
        self._report = None if report is None else expand_user(report)
        self._context: AbstractContextManager[IO[bytes] | None] = nullcontext()
        self._lines: IO[bytes] | None = None

    def check(self) -> None:
        """Try whether the outputs can be written.

        Raises:
            UsageError: if not, or if there are none.
        """
        output_paths(self.folder, "", self.what, self._outputs)
        if VIDEO_OUTPUTS.keys().isdisjoint(self.what) and not self._report:
            images_only = "polygons are for images; " if "polygons" in self.what else ""
            raise UsageError(
                f"save: {images_only}for videos {' or '.join(VIDEO_OUTPUTS)}, or use --json"
            )
        check_writable("out", self.folder)
        if self._report:
            if self._report.is_dir():
                raise UsageError(f"json: {self._report} is a folder, not a file")
            check_writable("json", self._report.parent)

    def paths(self, stem: str) -> dict[str, Path]:
        """Where the outputs of a video go, those that are wanted."""
        return {key: self.folder / f"{stem}_{key}.mp4" for key in VIDEO_OUTPUTS if key in self.what}

    def outputs(self, stem: str) -> list[Path]:
        """Where the outputs of a video go, all that there are."""
        return [self.folder / f"{stem}_{key}.mp4" for key in VIDEO_OUTPUTS]

    def is_done(self, video: VideoSource) -> bool:
        """Whether a video file has all its outputs."""
        paths = self.paths(video.stem).values()
        return video.is_file and bool(paths) and all(path.is_file() for path in paths)

    def __enter__(self) -> VideosFolder:
        if self._report:
            self._context = write_whole(self._report)
        self._lines = self._context.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._context.__exit__(*error)  # type: ignore[arg-type]

    def process(
        self,
        predictor: Predictor,
        video: VideoSource,
        reader: VideoReader | LiveReader,
        stop: Event,
    ) -> Generator[FrameDone]:
        """Segment one video; see `process_video`.

        Args:
            predictor: what to segment with.
            video: gives the outputs their names.
            reader: reads it.
            stop: set to finish early.
        """
        from segformerpp.video import process_video

        outputs = {path: VIDEO_OUTPUTS[key] for key, path in self.paths(video.stem).items()}
        steps = process_video(predictor, reader, outputs, stop, rows=self._lines is not None)
        with closing(steps):
            for step in steps:
                if self._lines:
                    row = {
                        "video": reader.name,
                        "frame": step.number,
                        "time": round(step.time, 6),
                        "latency_ms": round(1000 * step.latency_seconds, 3),
                        **(step.row or {}),
                    }
                    self._lines.write(json.dumps(row).encode() + b"\n")
                yield step

    def note_failure(self, name: str, error: Exception) -> None:
        """Say in a line what is wrong with a video."""
        if self._lines:
            self._lines.write(json.dumps({"video": name, "error": str(error)}).encode() + b"\n")


def open_reader(video: VideoSource, selection: Selection) -> VideoReader | LiveReader:
    """Open a video, stream or camera.

    Raises:
        VideoError: if that fails, or the selection makes no sense for it.
    """
    from segformerpp.data.containers import has_end
    from segformerpp.data.video import VideoReader

    source = video.source
    if isinstance(source, Path) or (isinstance(source, str) and has_end(source)):
        return VideoReader(source, selection.start, selection.end, selection.stride)
    from segformerpp.data.streams import LiveReader

    if selection.start:
        raise VideoError(f"{video.name}: start is only for videos with an end")
    return LiveReader(source, selection.end, selection.stride, selection.patience)
