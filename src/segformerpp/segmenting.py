"""Segmenting images: whole or in tiles, network, label maps."""

from __future__ import annotations

import logging
import math
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

import numpy as np

from segformerpp.arguments import Size
from segformerpp.batching import Failure, Network, Outcome, Prepared, Steps, known
from segformerpp.data.images import ImageSource
from segformerpp.models.config import Metadata
from segformerpp.runtimes import Runtime
from segformerpp.tasks import label_maps, segmentation
from segformerpp.tasks.label_maps import LogitRows
from segformerpp.tasks.segmentation_result import SegmentationResult
from segformerpp.tasks.windows import Tiling, Windows

if TYPE_CHECKING:
    from segformerpp.auto_plan import AutoRuntime

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Segmenter:
    """A network for segmentation, ready to run.

    Args:
        runtime: executes it.
        metadata: for the normalisation, and the names and colours of the classes.
        size: (H, W) that images are resized to; None for their own.
        least: pixels that each side has at least for the network.
        cell: pixels in height and width that one logit stands for.
        tiling: which images go in tiles; None for none.
        batch: how many images of equal size, or tiles, go through the network together at most.
        pixels: as many as these have at most, together.
        probabilities: whether results carry class probabilities.
        classes: ids of the classes that results are about; None for all.
        auto: the runtime, if it chooses its plan by itself.
    """

    runtime: Runtime
    metadata: Metadata
    size: Size | None
    least: int
    cell: int
    tiling: Tiling | None
    batch: int
    pixels: int
    probabilities: bool
    classes: tuple[int, ...] | None
    auto: AutoRuntime | None

    def prepare(self, source: ImageSource, image: np.ndarray, size: Size | None = None) -> Prepared:
        """Bring an image (H, W, 3) uint8 to a size, or to the usual one, and normalise it."""
        fitted = segmentation.fit(image, size or self.size, self.least)
        tiled = self.tiling is not None and self.tiling.takes(fitted.shape[:2])
        x = None if tiled else segmentation.normalise(fitted, self.metadata)
        return Prepared(source, image, fitted, x)

    def together(self, size: Size) -> int:
        """How many images or tiles of this size go through the network together."""
        return max(1, min(self.batch, self.pixels // math.prod(size)))

    def shape(self, group: list[Prepared]) -> tuple[int, ...] | None:
        """(B, 3, H, W) of what goes through the network; None for an image that goes in tiles."""
        return None if group[0].input is None else (len(group), *group[0].input.shape)

    def run(self, group: list[Prepared], network: Network, share: float = 1) -> Steps:
        """Send images of one size through the network; what is left to do for each is returned.

        Args:
            group: the images.
            network: what executes it.
            share: of the threads, that it does so on.
        """
        if group[0].input is None:
            return [known(self._in_tiles(group[0], network))]
        inputs = [image.input for image in group if image.input is not None]
        x = inputs[0][None] if len(inputs) == 1 else np.stack(inputs)
        start = time.perf_counter()
        logits = network(x)
        seconds = (time.perf_counter() - start) / len(group) * share
        return [
            partial(self._try_to_finish, image, its_logits, seconds)
            for image, its_logits in zip(group, logits, strict=True)
        ]

    def logits(self, prepared: Prepared) -> tuple[np.ndarray, float]:
        """The logits (K, h, w) float32 of an image, and the seconds that the network took."""
        if prepared.input is None:
            windows, seconds = self._windows(prepared, self.runtime)
            return windows[:, 0 : windows.shape[1]], sum(seconds)
        start = time.perf_counter()
        logits: np.ndarray = self.runtime(prepared.input[None])[0]
        return logits, time.perf_counter() - start

    def _in_tiles(self, prepared: Prepared, network: Network) -> SegmentationResult:
        logits, seconds = self._windows(prepared, network)
        return replace(self._finish(prepared, logits, 0), network_seconds=sum(seconds))

    def _windows(self, prepared: Prepared, network: Network) -> tuple[Windows, list[float]]:
        """Logits that are computed as they are read, and the seconds that this takes then."""
        assert self.tiling is not None
        logger.info("%s: %d x %d pixels go in tiles", prepared.path, *prepared.size)
        seconds: list[float] = []

        def predict(windows: np.ndarray) -> np.ndarray:
            x = np.stack([segmentation.normalise(window, self.metadata) for window in windows])
            start = time.perf_counter()
            logits = network(x)
            seconds.append(time.perf_counter() - start)
            return logits

        batch, classes = self.together(self.tiling.tile), len(self.metadata.labels)
        windows = Windows(prepared.fitted, predict, classes, self.tiling, self.cell, batch)
        return windows, seconds

    def _try_to_finish(self, prepared: Prepared, logits: np.ndarray, seconds: float) -> Outcome:
        try:
            return self._finish(prepared, logits, seconds)
        except MemoryError as error:
            return Failure.of_memory(prepared.source, error)

    def _finish(self, prepared: Prepared, logits: LogitRows, seconds: float) -> SegmentationResult:
        size = (prepared.image.shape[0], prepared.image.shape[1])
        softmax = None
        if self.probabilities:
            logits = logits[:, 0 : logits.shape[1]]  # those of windows can be read only once
            softmax = segmentation.probabilities(logits, size, classes=self.classes)
        label_map = label_maps.from_logits(logits, size)
        labels, palette = self.metadata.labels, self.metadata.palette
        if self.classes is not None:
            label_map = segmentation.keep_classes(label_map, self.classes, len(labels))
        seen = self.tiling.tile if prepared.input is None and self.tiling else prepared.size
        return SegmentationResult(
            label_map=label_map,
            labels=labels,
            palette=palette,
            image=prepared.image,
            path=prepared.path,
            probabilities=softmax,
            network_seconds=seconds,
            classes=self.classes,
            merge=self.auto.choose(seen) if self.auto else "",
        )
