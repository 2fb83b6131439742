"""Running a predictor over a video: decode, network, overlay and encode at the same time."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from itertools import takewhile
from pathlib import Path
from threading import Event
from typing import Any, Protocol, TypeVar

import numpy as np
from PIL import Image

from segformerpp.data.behind import read_ahead, run_ahead, run_behind
from segformerpp.data.video import Frame
from segformerpp.data.video_writer import VideoWriter
from segformerpp.errors import ImageError, VideoError

#: How many frames may wait between decoding and the network, and between it and the encoder.
_WAITING = 4
#: Frames of a live source that are worked on together: one prepared or finished beside the network.
_LIVE_WORKERS = 2


class Result(Protocol):
    """What a predictor says of a frame."""

    @property
    def network_seconds(self) -> float:
        """How long the network took."""

    def row(self) -> dict[str, Any]:
        """What a JSON row says of it."""


R = TypeVar("R", bound=Result)
R_co = TypeVar("R_co", bound=Result, covariant=True)


class FramePredictor(Protocol[R_co]):
    """What videos need of a predictor, whatever its task."""

    def calls(self, images: Iterable[np.ndarray]) -> Iterator[Callable[[], R_co]]:
        """What works on each frame, (H, W, 3) uint8 RGB; called in several threads at a time."""

    def stream(self, images: Iterable[np.ndarray]) -> Iterator[R_co]:
        """Work on many, in order."""


class Reader(Protocol):
    """A source of frames: `VideoReader` or `LiveReader`, which say what these mean."""

    name: str
    live: bool
    rate: Fraction
    time_base: Fraction
    start: Fraction
    end: Fraction | None
    audio: str | None

    def __iter__(self) -> Iterator[Frame]:
        """The frames in order."""


@dataclass(frozen=True, slots=True)
class FrameDone:
    """A frame that has been written.

    Args:
        number: of the frame in the output, from 0.
        time: in the source, in seconds.
        network_seconds: how long the network took.
        latency_seconds: from the frame having been decoded to its having been written.
        row: what the result says of itself, if that was asked for.
    """

    number: int
    time: float
    network_seconds: float
    latency_seconds: float
    row: Mapping[str, Any] | None


def process_video(
    predictor: FramePredictor[R],
    reader: Reader,
    outputs: Mapping[Path, Callable[[R], Image.Image]],
    stop: Event | None = None,
    rows: bool = False,
) -> Generator[FrameDone]:
    """Run a predictor over a video and write what it shows as videos.

    Decoding, the network, drawing and encoding overlap, each in threads of its own, with few frames
    waiting between them. The outputs appear under their names, complete, once the generator has
    ended; if it is closed before or raises, they do not.

    Args:
        predictor: what to run.
        reader: where the frames come from.
        outputs: the MP4 files to write, each with what draws a result, at the frame's size.
        stop: once it is set, no more frames are taken, those under way are finished, and so are
            the outputs.
        rows: whether results are to say what a JSON row says of them.

    Yields:
        Each frame, in order, once it has been written.

    Raises:
        VideoError: if the source can no longer be read, there is not a single frame, or a frame
            does not fit into the memory.
        OSError: if an output cannot be written.
    """
    stop = stop or Event()
    writers: list[VideoWriter] = []

    def draw(result: R) -> tuple[list[np.ndarray], Mapping[str, Any] | None]:
        images = [np.asarray(plot(result)) for plot in outputs.values()]
        return images, result.row() if rows else None

    def write(
        number: int,
        frame: Frame,
        seconds: float,
        drawing: Future[tuple[list[np.ndarray], Mapping[str, Any] | None]],
    ) -> FrameDone:
        images, row = drawing.result()
        for writer, image in zip(writers, images, strict=True):
            writer.write(image, frame)
        latency = time.monotonic() - frame.decoded
        return FrameDone(number, float(frame.time), seconds, latency, row)

    with ExitStack() as stack:
        drawers = stack.enter_context(ThreadPoolExecutor(2, "segformerpp-draw"))

        def steps() -> Iterator[Callable[[], FrameDone]]:
            with closing(_results(predictor, reader, stop)) as results:
                for number, (frame, result) in enumerate(results):
                    if not number:
                        # At the beginning of a source, sound may come before the first frame.
                        shift = frame.time if reader.start else Fraction(0)
                        for path in outputs:
                            writer = VideoWriter(
                                path, reader.rate, reader.time_base, reader.audio, shift
                            )
                            writers.append(stack.enter_context(writer))
                    drawing = drawers.submit(draw, result)
                    yield partial(write, number, frame, result.network_seconds, drawing)

        with closing(run_behind(steps(), workers=1, waiting=_WAITING)) as done:
            yield from done
        if not writers and outputs:
            raise VideoError(f"{reader.name}: there was no frame before it was stopped")
        for writer in writers:
            writer.cut_audio = stop.is_set() or reader.end is not None


def _results(
    predictor: FramePredictor[R], reader: Reader, stop: Event
) -> Generator[tuple[Frame, R]]:
    """Frames with their results, in order."""

    def wanted(frames: Iterable[Frame]) -> Iterator[Frame]:
        return takewhile(lambda _: not stop.is_set(), frames)

    def work(call: tuple[Frame, Callable[[], R]]) -> tuple[Frame, R]:
        return call[0], call[1]()

    under_way: deque[Frame] = deque()
    try:
        if reader.live:
            # No frame is taken before there is somebody to work on it: it would get old.
            calls = predictor.calls(_noted(wanted(reader), under_way))
            of_frames = ((under_way.popleft(), call) for call in calls)
            ahead = run_ahead(work, of_frames, _LIVE_WORKERS, lambda _: _LIVE_WORKERS)
            with closing(ahead) as results:
                yield from results
            return
        with closing(read_ahead(reader, _WAITING)) as frames:
            for result in predictor.stream(_noted(wanted(frames), under_way)):
                yield under_way.popleft(), result
    except ImageError as error:  # of the memory: a frame has no other faults
        raise VideoError(f"{reader.name}: {error}") from None


def _noted(frames: Iterable[Frame], under_way: deque[Frame]) -> Iterator[np.ndarray]:
    for frame in frames:
        under_way.append(frame)
        yield frame.image
