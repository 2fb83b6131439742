"""Images on their way to the network: which of them go through it together."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from segformerpp.arguments import Size
from segformerpp.data.images import ImageSource
from segformerpp.errors import ImageError, MemoryLimitError
from segformerpp.runtimes import ParallelRuntime
from segformerpp.tasks.pose_result import PoseResult
from segformerpp.tasks.segmentation_result import SegmentationResult

#: How much memory images that wait for the network may take, unless one alone takes more; and how
#: much those that are in its streams.
AHEAD_BYTES = 2**30
#: How many shapes of images there are streams for at a time: where more of them take turns, they go
#: one by one.
_SHAPES = 2


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """An image on its way to the network.

    Args:
        source: where it came from.
        image: (H, W, 3) uint8 at its own size.
        fitted: (h, w, 3) uint8 as the network is to see it.
        input: the same as (3, h, w) float32; None for an image that goes in parts, which are tiles
            or people.
        boxes: (P, 4) float64: x, y, width, height of the people; None for segmentation.
    """

    source: ImageSource
    image: np.ndarray
    fitted: np.ndarray
    input: np.ndarray | None
    boxes: np.ndarray | None = None

    @property
    def path(self) -> Path | None:
        """The file that it came from, if it did."""
        return Path(self.source) if isinstance(self.source, str | Path) else None

    @property
    def size(self) -> Size:
        """(h, w) for the network."""
        return self.fitted.shape[0], self.fitted.shape[1]

    @property
    def nbytes(self) -> int:
        """How much memory it takes."""
        fitted = 0 if self.fitted is self.image else self.fitted.nbytes
        return self.image.nbytes + fitted + (0 if self.input is None else self.input.nbytes)


@dataclass(frozen=True, slots=True, eq=False)
class Failure:
    """An image that comes to nothing; keeps its place among the others."""

    source: ImageSource
    error: ImageError

    @classmethod
    def of_memory(cls, source: ImageSource, error: Exception) -> Failure:
        """The failure of an image that is too large."""
        name = source if isinstance(source, str | Path) else "image"
        return cls(source, ImageError(f"{name}: {str(error) or 'too large for the memory'}"))


Outcome = SegmentationResult | PoseResult | Failure
#: What is left to do for the images of a group.
Steps = list[Callable[[], Outcome]]
#: Normalised images (B, 3, H, W) float32 -> logits (B, K, h, w) float32.
Network = Callable[[np.ndarray], np.ndarray]


def known(outcome: Outcome) -> Callable[[], Outcome]:
    """A step that has nothing left to do."""
    return lambda: outcome


def groups(
    images: Iterable[Prepared | Failure], together: Callable[[Size], int]
) -> Iterator[list[Prepared] | Failure]:
    """Images that go through the network together: neighbours of equal size.

    Args:
        images: in order.
        together: how many of such a size at most.

    Yields:
        The images in their order. An exception of `images` is raised after those before it.
    """
    group: list[Prepared] = []
    try:
        for image in images:
            if group and (isinstance(image, Failure) or image.size != group[0].size):
                yield group
                group = []
            if isinstance(image, Failure):
                yield image
                continue
            group.append(image)
            # An image that goes in tiles fills batches of its own.
            if image.input is None or len(group) == together(image.size):
                yield group
                group = []
    except Exception:
        if group:
            yield group
        raise
    if group:
        yield group


def in_streams(
    batches: Iterable[list[Prepared] | Failure],
    runtime: ParallelRuntime,
    shape: Callable[[list[Prepared]], tuple[int, ...] | None],
    run: Callable[[list[Prepared], Network, float], Steps],
    alone: Callable[[list[Prepared] | Failure], Steps],
) -> Generator[Steps]:
    """Send images through the network, several groups at the same time where that is possible.

    Args:
        batches: which images go together, in order.
        runtime: executes the network.
        shape: of what goes through the network for a group; None if it is to go alone.
        run: sends a group through a network that has a share of the threads.
        alone: sends a group through the network when no other is in it.

    Yields:
        What is left to do for the images of each group, in order. An exception of `batches` is
        raised after those before it.
    """
    pool = ThreadPoolExecutor(runtime.streams, "segformerpp-stream")
    under_way: deque[tuple[list[Prepared], Future[Steps]]] = deque()
    failure: Exception | None = None

    def first() -> Steps:
        group, future = under_way.popleft()
        try:
            return future.result()
        except (MemoryLimitError, MemoryError):
            pass
        # What does not fit beside others may fit alone; the error keeps alive what it had taken.
        del future
        wait([other for _, other in under_way])
        return alone(group)

    ready: deque[tuple[int, ...]] = deque(maxlen=_SHAPES)
    last: tuple[int, ...] | None = None
    groups = iter(batches)
    try:
        while True:
            try:
                group = next(groups)
            except StopIteration:
                break
            except Exception as error:
                failure = error
                break
            before, last = last, None if isinstance(group, Failure) else shape(group)
            stream = None
            if last not in ready:
                # What has to be made for a shape is made, and measured, while nothing else runs.
                while under_way:
                    yield first()
            if last and (last in ready or len(ready) < _SHAPES or last == before):
                stream = runtime.stream(last)
            if stream is None or isinstance(group, Failure):
                while under_way:
                    yield first()
                yield alone(group)
                continue
            if last and last not in ready:
                ready.append(last)
            under_way.append((group, pool.submit(run, group, stream, 1 / runtime.streams)))
            del stream
            # One more than there are streams, so that none of them waits.
            room = AHEAD_BYTES // sum(image.nbytes for image in group)
            most = max(min(runtime.streams + 1, room), 1)
            while under_way and (under_way[0][1].done() or len(under_way) > most):
                yield first()
        while under_way:
            yield first()
        if failure:
            raise failure
    finally:
        pool.shutdown(cancel_futures=True)
