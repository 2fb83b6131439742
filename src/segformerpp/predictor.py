"""From images to results: wires reading, pre-processing, the network and post-processing."""

from __future__ import annotations

import copy
import functools
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segformerpp import checkpoints, runtimes
from segformerpp.data.behind import run_behind
from segformerpp.data.images import ImageSource, read_image
from segformerpp.data.labels import describe
from segformerpp.errors import ImageError, UsageError
from segformerpp.merging import MergePlan
from segformerpp.models import Segformer
from segformerpp.models.encoder import MIN_SIZE
from segformerpp.runtimes.memory import bytes_per_pixel
from segformerpp.tasks import segmentation
from segformerpp.tasks.segmentation import LogitRows, Size, checked_size
from segformerpp.tasks.segmentation_result import SegmentationResult
from segformerpp.tasks.windows import Tiling, Windows

logger = logging.getLogger(__name__)

#: What `tile="auto"` means: images that would need more memory go in square tiles of this side.
AUTO_TILE_BYTES = 4 * 2**30
AUTO_TILE = 1024
#: How much memory images that wait for the network may take, unless one alone takes more.
_AHEAD_BYTES = 2**30
_WORKERS = 4


@dataclass(frozen=True, slots=True, eq=False)
class _Prepared:
    """An image on its way to the network."""

    path: Path | None
    image: np.ndarray  # (H, W, 3) uint8 at its own size
    fitted: np.ndarray  # (h, w, 3) uint8 as the network is to see it
    input: np.ndarray | None  # (3, h, w) float32; None for an image that goes in tiles

    @property
    def nbytes(self) -> int:
        return self.image.nbytes + (0 if self.input is None else self.input.nbytes)


class Predictor:
    """Segments images: a checkpoint, made ready to run. May be used from several threads.

    Args:
        model: what `segformerpp.load` takes (a bundled name, a file, a folder or a hub id), or a
            `Segformer`, of which a copy is made.
        merge: the merge plan, in any notation that `MergePlan.parse` reads; None for the model's.
        runtime, precision, device: see `runtimes.create`.
        threads: processor threads for the network; None for what the runtime chooses.
        size: (H, W) that images are resized to for the network, whatever their proportions; None
            for their own size. Results are at the image's own size in any case.
        tile: (h, w) in pixels of the windows that larger images go through the network in;
            None to never use windows; ``"auto"`` for windows of 1024 x 1024 where the whole image
            would take more than about 4 GiB (see `runtimes.memory`).
        overlap: pixels that neighbouring windows share at least, one number or (h, w); None for a
            quarter of the tile. Logits are averaged there.
        batch: how many images of equal size (or windows) go through the network together.
        probabilities: whether results carry class probabilities (large: 2 bytes for each class
            and pixel).
        offline: whether to take models from the local cache only.
        revision: branch, tag or commit of a model on the hub.

    Attributes:
        metadata: what the model's inputs and outputs mean.
        labels, palette: names and RGB colours of its classes.
        merge_plan: the plan in force.
        runtime: what executes the network; has `name`, `precision`, `device`, `threads`.
        facts: all that in one dictionary.

    Raises:
        UsageError: if an argument makes no sense, this machine lacks what was asked for, or the
            model's decode head is untrained.
        CheckpointError: if the model cannot be loaded.
        PlanError: if the merge plan is not understood.
    """

    def __init__(
        self,
        model: str | Path | Segformer = "camvid-b0",
        *,
        merge: MergePlan | str | Path | Mapping[str, Any] | None = None,
        runtime: str = "auto",
        precision: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        size: Size | None = None,
        tile: Size | Literal["auto"] | None = "auto",
        overlap: int | Size | None = None,
        batch: int = 1,
        probabilities: bool = False,
        offline: bool = False,
        revision: str | None = None,
    ) -> None:
        runtimes.check(runtime, precision, device, threads)
        if batch < 1:
            raise UsageError(f"batch: a whole number from 1 up, not {batch}")
        self._size = None if size is None else checked_size("size", size)
        plan = None if merge is None else MergePlan.parse(merge)
        network = _network(model, plan, offline, revision)

        self._name = network.metadata.source if isinstance(model, Segformer) else str(model)
        self.metadata, self.merge_plan = network.metadata, network.merge_plan
        classes = describe(network.metadata, network.config.num_outputs)
        self.labels, self.palette = classes.labels, classes.palette
        scale = self.merge_plan.input_scale
        self._least = math.ceil(MIN_SIZE / scale)
        self._cell = math.ceil(4 / scale)
        self._tiling: Tiling | None = None
        if tile == "auto":
            limit = AUTO_TILE_BYTES / (bytes_per_pixel(network.config) * scale**2)
            side = max(AUTO_TILE, self._least)
            self._tiling = Tiling.of((side, side), overlap, self._least, above=int(limit))
        elif tile is not None:
            self._tiling = Tiling.of(tile, overlap, self._least)
        self._batch = batch
        self._probabilities = probabilities
        self.runtime = runtimes.create(network, runtime, precision, device, threads)

    @property
    def facts(self) -> dict[str, Any]:
        """What results depend on, with the keys that JSON rows have everywhere."""
        return {
            "model": self._name,
            "task": self.metadata.task,
            "batch": self._batch,
            "merge": self.merge_plan.name,
            "runtime": self.runtime.name,
            "precision": self.runtime.precision,
            "device": self.runtime.device,
            "threads": self.runtime.threads,
        }

    def __call__(self, image: ImageSource) -> SegmentationResult:
        """Segment one image.

        Args:
            image: a path, a PIL image, or an array as `read_image` takes it.

        Raises:
            ImageError: if it cannot be read.
        """
        return self._run([self._prepare(image)])[0]()

    def stream(
        self,
        images: Iterable[ImageSource],
        on_error: Callable[[ImageSource, ImageError], None] | None = None,
    ) -> Iterator[SegmentationResult]:
        """Segment many images; results come in order, and equal those of single calls.

        Some images are taken and decoded ahead of the network, and results are finished behind
        it, in other threads.

        Args:
            images: as for a single call.
            on_error: called with an image that cannot be read, and why; the image is left out
                of the results. Without it the error is raised.

        Raises:
            ImageError: if an image cannot be read and there is no `on_error`.
        """
        pool = ThreadPoolExecutor(_WORKERS, "segformerpp")
        try:
            groups = self._groups(self._read_ahead(pool, images, on_error))
            finishes = (finish for group in groups for finish in self._run(group))
            yield from run_behind(finishes, _WORKERS, waiting=self._batch)
        finally:
            pool.shutdown(cancel_futures=True)

    def _prepare(self, source: ImageSource) -> _Prepared:
        image = read_image(source)
        fitted = segmentation.fit(image, self._size, self._least)
        path = Path(source) if isinstance(source, str | Path) else None
        tiled = self._tiling is not None and self._tiling.takes(fitted.shape[:2])
        x = None if tiled else segmentation.normalise(fitted, self.metadata)
        return _Prepared(path, image, fitted, x)

    def _read_ahead(
        self,
        pool: ThreadPoolExecutor,
        images: Iterable[ImageSource],
        on_error: Callable[[ImageSource, ImageError], None] | None,
    ) -> Iterator[_Prepared]:
        """Prepared images in order, while the next ones are being decoded."""
        waiting: deque[tuple[ImageSource, Future[_Prepared]]] = deque()
        sources = iter(images)
        ahead, most = 2, self._batch + _WORKERS
        while True:
            for source in itertools.islice(sources, max(ahead - len(waiting), 0)):
                waiting.append((source, pool.submit(self._prepare, source)))
            if not waiting:
                return
            source, future = waiting.popleft()
            try:
                prepared = future.result()
            except ImageError as error:
                if on_error is None:
                    raise
                on_error(source, error)
                continue
            ahead = min(max(_AHEAD_BYTES // prepared.nbytes, 1), most)
            yield prepared

    def _groups(self, images: Iterable[_Prepared]) -> Iterator[list[_Prepared]]:
        """Images that go through the network together: neighbours of equal size."""
        group: list[_Prepared] = []
        for prepared in images:
            if group and prepared.fitted.shape != group[0].fitted.shape:
                yield group
                group = []
            group.append(prepared)
            # An image that goes in tiles fills batches of its own.
            if len(group) == self._batch or prepared.input is None:
                yield group
                group = []
        if group:
            yield group

    def _run(self, group: list[_Prepared]) -> list[Callable[[], SegmentationResult]]:
        """Send images through the network; what is left to do for each is returned."""
        if group[0].input is None:
            result = self._run_tiled(group[0])
            return [lambda: result]
        start = time.perf_counter()
        logits = self.runtime(np.stack([image.input for image in group if image.input is not None]))
        seconds = (time.perf_counter() - start) / len(group)
        return [
            functools.partial(self._finish, image, its_logits, seconds)
            for image, its_logits in zip(group, logits, strict=True)
        ]

    def _run_tiled(self, prepared: _Prepared) -> SegmentationResult:
        assert self._tiling is not None
        logger.info("%s: %d x %d pixels go in tiles", prepared.path, *prepared.fitted.shape[:2])
        seconds = 0.0

        def network(windows: np.ndarray) -> np.ndarray:
            nonlocal seconds
            x = np.stack([segmentation.normalise(window, self.metadata) for window in windows])
            start = time.perf_counter()
            logits = self.runtime(x)
            seconds += time.perf_counter() - start
            return logits

        logits = Windows(
            prepared.fitted, network, len(self.labels), self._tiling, self._cell, self._batch
        )
        return replace(self._finish(prepared, logits, 0), network_seconds=seconds)

    def _finish(self, prepared: _Prepared, logits: LogitRows, seconds: float) -> SegmentationResult:
        size = (prepared.image.shape[0], prepared.image.shape[1])
        softmax = None
        if self._probabilities:
            logits = logits[:, 0 : logits.shape[1]]  # those of windows can be read only once
            softmax = segmentation.probabilities(logits, size)
        return SegmentationResult(
            label_map=segmentation.postprocess(logits, size),
            labels=self.labels,
            palette=self.palette,
            image=prepared.image,
            path=prepared.path,
            probabilities=softmax,
            network_seconds=seconds,
        )


def _network(
    model: str | Path | Segformer, plan: MergePlan | None, offline: bool, revision: str | None
) -> Segformer:
    """The model in evaluation mode, not shared with anyone."""
    if isinstance(model, Segformer):
        network = copy.deepcopy(model).float().eval()
        network.merge_plan = network.merge_plan if plan is None else plan
    else:
        network = checkpoints.load(model, plan, offline=offline, revision=revision)
    if not network.metadata.head_trained:
        raise UsageError(
            f"model: {network.metadata.source or 'this one'} has a fresh decode head; train it "
            f"before predicting with it"
        )
    if network.config.in_channels != 3:
        raise UsageError(f"model: reads RGB images, not {network.config.in_channels} channels")
    if network.metadata.task != "segmentation":
        raise UsageError(f"model: one for segmentation, not for {network.metadata.task}")
    return network.requires_grad_(False)
