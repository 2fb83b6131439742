"""From images to results: wires reading, pre-processing, the network and post-processing."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from operator import length_hint
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, SupportsIndex, cast, overload

import numpy as np

from segformerpp import runtimes
from segformerpp.arguments import Size, checked_size, whole_number
from segformerpp.batching import (
    AHEAD_BYTES,
    Failure,
    Network,
    Prepared,
    Steps,
    groups,
    in_streams,
    known,
)
from segformerpp.data.behind import run_ahead, run_behind
from segformerpp.data.images import MAX_PIXELS, ImageSource, read_image
from segformerpp.data.labels import class_ids, describe
from segformerpp.data.skeletons import describe_poses
from segformerpp.errors import ImageError, MemoryLimitError, UsageError
from segformerpp.people import Boxes, PeopleFinder
from segformerpp.plans import MergePlan
from segformerpp.plans.plan import is_auto
from segformerpp.reuse import FramesNetwork, Turn, checked_reuse
from segformerpp.runtimes import Runtime
from segformerpp.segmenting import Segmenter
from segformerpp.tasks.pose import PoseCodec, codec_of
from segformerpp.tasks.pose_result import PoseResult
from segformerpp.tasks.segmentation_result import SegmentationResult
from segformerpp.tiling import tiling_of, without_tiles
from segformerpp.trained import open_trained

if TYPE_CHECKING:
    from segformerpp.auto_plan import AutoRuntime
    from segformerpp.models import Segformer

_WORKERS = 4


class Predictor:
    """Segments images, or finds the keypoints of people in them, as its model was trained to.

    A checkpoint, made ready to run. May be used from several threads.

    Args:
        model: what `segformerpp.load` takes (a bundled name, a file, a folder or a hub id), or a
            `Segformer`, of which a copy is made.
        merge: the merge plan, in any notation that `MergePlan.parse` reads; None for the model's;
            ``"auto"`` for the preset that is the fastest here among those that keep at least 98 %
            of the labels, for each size of images by itself. What is the fastest is measured once
            and kept, see `auto_plan`.
        runtime, precision, device: see `runtimes.create`.
        threads: processor threads for the network; None for what the runtime chooses.
        size: (H, W) that images are resized to for the network, whatever their proportions; None
            for their own size. Results are at the image's own size in any case. For poses: what
            people are resized to, with their proportions; None for what the model was trained with.
        tile: (h, w) in pixels of the windows that larger images go through the network in;
            None to never use windows; ``"auto"`` for windows of 1024 x 1024 where the whole image
            would take more than about 4 GiB (see `runtimes.memory`), and batches no larger than
            fit into that.
        overlap: pixels that neighbouring windows share at least, one number or (h, w); None for a
            quarter of the tile. Logits are averaged there.
        batch: how many images of equal size (or windows) go through the network together at
            most; see `tile`. Several such batches are on their way in a `stream` at the same time
            only where about 1 GiB is enough for them all.
        probabilities: whether results carry class probabilities (large: 2 bytes for each class
            and pixel).
        classes: names or ids of the classes that results are about, see `class_ids`: pixels of
            others are ignored in them (see `SegmentationResult.only`). None for all.
        flip: for poses: whether to look at everyone in a mirror too, and take the mean: a little
            better, in twice the time.
        detector: for poses: finds the people in an image (H, W, 3) uint8 for which no boxes are
            given, such as a `PersonDetector`; called in several threads. None for one person who
            fills the image.
        reuse_match: in so many images of a `stream` in a row use what bipartite matching found in
            the first of them, as long as the size stays: for videos, whose frames are alike. The
            first is segmented as ever; the others then depend on it. Calls match anew. With the
            runtimes torch, openvino and onnxruntime (but int8), and batches of 1; images that go
            in tiles match by themselves.
        calibrate: a folder with some images like those to come, or their files, for the precision
            ``int8``; needed once for each model and plan.
        offline: whether to take models from the local cache only.
        revision: branch, tag or commit of a model on the hub.

    Attributes:
        metadata: what the model's inputs and outputs mean.
        labels, palette: names and RGB colours of its classes or keypoints.
        merge_plan: the plan in force; under ``auto`` of the latest image.
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
        overlap: SupportsIndex | Size | None = None,
        batch: int = 1,
        probabilities: bool = False,
        classes: str | Iterable[str | int] | None = None,
        flip: bool = False,
        detector: Callable[[np.ndarray], Boxes] | None = None,
        reuse_match: int = 1,
        calibrate: str | Path | Sequence[Path] | None = None,
        offline: bool = False,
        revision: str | None = None,
    ) -> None:
        runtimes.check(runtime, precision, device, threads)
        self._batch = whole_number("batch", batch, 1)
        self._size = None if size is None else checked_size("size", size)
        automatic = is_auto(merge)
        plan = MergePlan() if automatic else None if merge is None else MergePlan.parse(merge)
        network = open_trained(model, plan, offline, revision)

        self._name = str(model) if isinstance(model, str | Path) else network.metadata.source
        self.metadata, self._plan = network.metadata, network.merge_plan
        if self.metadata.task == "pose":
            self.metadata = describe_poses(self.metadata, network.config.num_outputs)
            if classes is not None:
                raise UsageError("classes: of models that segment")
        outputs = describe(self.metadata, network.config.num_outputs)
        self.labels, self.palette = outputs.labels, outputs.palette
        self._classes = None if classes is None else class_ids(classes, self.labels)
        if automatic and reuse_match != 1:
            raise UsageError("reuse_match: with a plan, not with merge auto")
        self._reuse = checked_reuse(
            *(reuse_match, self._plan, self._batch, self.metadata.task),
            tiles=not without_tiles(tile),
        )
        least = network.config.min_image_size_at(self._plan.input_scale)
        if self._size:
            _check_pixels(self._size, least)
        images = None
        if precision == "int8":  # whose graph takes images of any size down to a larger one
            from segformerpp.runtimes.sizes import least_size

            least = max(least_size(network.config, self._plan))
        if calibrate is not None:
            if precision != "int8":
                raise UsageError("calibrate: only for the precision int8")
            from segformerpp.calibration import Calibration

            images = Calibration(calibrate, network.metadata, self._size)
        tiling, pixels = tiling_of(tile, overlap, least, network, self._plan, runtime)
        codec = self._codec(tile, flip, probabilities, least)
        if detector and not codec:
            raise UsageError("detector: for models of poses")
        self._auto: AutoRuntime | None = None
        if automatic:
            from segformerpp.auto_plan import AutoRuntime

            self._auto = AutoRuntime(network, runtime, precision, device, threads)
        executor = self._auto or runtimes.create(
            network, runtime, precision, device, threads, images
        )
        self._matching = None if self._reuse == 1 else runtimes.matching(executor)
        named = replace(self.metadata, labels=self.labels, palette=self.palette)
        self._task: PeopleFinder | Segmenter
        if codec:
            together = max(1, min(self._batch, pixels // math.prod(codec.size)))
            self._task = PeopleFinder(executor, codec, named, flip, together, detector)
        else:
            self._task = Segmenter(
                runtime=executor,
                metadata=named,
                size=self._size,
                least=least,
                cell=math.ceil(4 / self._plan.input_scale),
                tiling=tiling,
                batch=self._batch,
                pixels=pixels,
                probabilities=probabilities,
                classes=self._classes,
                auto=self._auto,
            )

    @property
    def runtime(self) -> Runtime:
        """See the class."""
        return self._task.runtime

    @property
    def merge_plan(self) -> MergePlan:
        """See the class."""
        return self._auto.merge_plan if self._auto else self._plan

    @property
    def facts(self) -> dict[str, Any]:
        """What results depend on, with the keys that JSON rows have everywhere.

        And ``classes``, the names of those that were chosen, if any were.
        """
        names = [self.labels[i] for i in self._classes or ()]
        chosen = {"classes": names} if names else {}
        facts = {
            "model": self._name,
            "task": self.metadata.task,
            "batch": self._batch,
            "merge": self._auto.described if self._auto else self._plan.name,
            "runtime": self.runtime.name,
            "precision": self.runtime.precision,
            "device": self.runtime.device,
            "threads": self.runtime.threads,
            **chosen,
        }
        return facts if self._reuse == 1 else facts | {"reuse_match": self._reuse}

    @overload
    def __call__(self, image: ImageSource) -> SegmentationResult: ...

    @overload
    def __call__(self, image: ImageSource, boxes: Boxes) -> PoseResult: ...

    def __call__(
        self, image: ImageSource, boxes: Boxes | None = None
    ) -> SegmentationResult | PoseResult:
        """Segment one image, or find the keypoints of the people in it.

        Args:
            image: a path, a PIL image, or an array as `read_image` takes it.
            boxes: for poses: x, y, width, height of each person in image pixels; ``"image"`` for
                one person who fills the image; None for what the detector finds, without one the
                same as ``"image"``.

        Returns:
            A `PoseResult` from a model for poses, else a `SegmentationResult`.

        Raises:
            ImageError: if it cannot be read, or does not fit into the memory.
            UsageError: if a box is none, or there are boxes for a model that segments.
        """
        self._check_boxes(boxes)
        return self._one(image, self.runtime, boxes)

    def calls(self, images: Iterable[ImageSource]) -> Iterator[Callable[[], SegmentationResult]]:
        """Work on many images in threads of one's own; see `stream` for the usual way.

        Args:
            images: as for a single call; the next one is taken as the next call is.

        Yields:
            For each image what does as a call of the predictor with it would. Each is to be called
            once, in any thread. Under `reuse_match` they are to be started in the order in which
            they came, and each waits until those before it have been through the network.
        """
        if self._matching is None:
            for image in images:
                yield partial(self, image)
            return
        network = self._network()
        turn: Turn | None = None
        for image in images:
            turn = Turn(turn)
            call = partial(self._one, image, network, turn=turn)
            yield cast(Callable[[], SegmentationResult], call)  # others reuse nothing

    def _one(
        self,
        image: ImageSource,
        network: Network,
        boxes: Boxes | None = None,
        turn: Turn | None = None,
    ) -> SegmentationResult | PoseResult:
        with turn or nullcontext():
            prepared = self._prepare(image, boxes=boxes)
            if turn:
                turn.wait()
            group = prepared if isinstance(prepared, Failure) else [prepared]
            (finish,) = self._run(group, network)
        outcome = finish()
        if isinstance(outcome, Failure):
            raise outcome.error
        return outcome

    def _network(self) -> Network:
        """What executes the network for the images of one source, in order."""
        return FramesNetwork(self._matching, self._reuse) if self._matching else self.runtime

    def logits(self, image: ImageSource, size: Size | None = None) -> tuple[np.ndarray, float]:
        """What the network gives for one image, before it is resized to the image's size.

        Args:
            image: as for a call.
            size: (H, W) to resize this image to for the network, instead of the predictor's size.

        Returns:
            (K, h, w) float32, and the seconds that the network took.

        Raises:
            ImageError: if it cannot be read, or does not fit into the memory.
            UsageError: if the size is none, or has more pixels than an image may have.
        """
        if isinstance(self._task, PeopleFinder):
            raise UsageError("logits: of models that segment")
        if size is not None:
            size = checked_size("size", size)
            _check_pixels(size, self._task.least)
        prepared = self._prepare(image, size)
        if isinstance(prepared, Failure):
            raise prepared.error
        try:
            return self._task.logits(prepared)
        except (MemoryLimitError, MemoryError) as error:
            failure = Failure.of_memory(image, error)
        raise failure.error

    @overload
    def stream(
        self,
        images: Iterable[ImageSource],
        on_error: Callable[[ImageSource, ImageError], None] | None = None,
    ) -> Iterator[SegmentationResult]: ...

    @overload
    def stream(
        self,
        images: Iterable[ImageSource],
        on_error: Callable[[ImageSource, ImageError], None] | None = None,
        *,
        boxes: Callable[[ImageSource], Boxes],
    ) -> Iterator[PoseResult]: ...

    def stream(
        self,
        images: Iterable[ImageSource],
        on_error: Callable[[ImageSource, ImageError], None] | None = None,
        *,
        boxes: Callable[[ImageSource], Boxes] | None = None,
    ) -> Iterator[SegmentationResult] | Iterator[PoseResult]:
        """Work on many images; results come in order, and equal those of single calls.

        Up to rounding; under `reuse_match` those of every so many-th do.

        Some images are taken and decoded ahead of the network, and results are finished behind
        it, in other threads. With OpenVINO on a processor several images go through the network
        at the same time, each on some of the threads, unless there are just a few of them or they
        are very large: more are done in a second, though each takes longer.

        Args:
            images: as for a single call.
            on_error: called with an image that cannot be read or does not fit into the memory,
                and why; the image is left out of the results. Without it the error is raised,
                after the results of the images before.
            boxes: for poses: gives the people in an image, as for a single call; called in other
                threads. None for what the detector finds, without one for one person who fills
                each image.

        Raises:
            ImageError: if an image comes to nothing and there is no `on_error`.
            UsageError: if `images` is a single path, or there are boxes that make no sense.
        """
        self._check_boxes(boxes)
        if isinstance(images, str | Path):
            raise UsageError(f"images: many of them, such as a list of paths, not {str(images)!r}")
        return self._stream(images, on_error, boxes or (lambda _: None))

    def _stream(
        self,
        images: Iterable[ImageSource],
        on_error: Callable[[ImageSource, ImageError], None] | None,
        boxes: Callable[[ImageSource], Boxes | None],
    ) -> Iterator[Any]:
        def prepare(source: ImageSource) -> Prepared | Failure:
            return self._prepare(source, boxes=boxes(source))

        with closing(run_ahead(prepare, images, _WORKERS, self._ahead)) as prepared:
            batches = groups(prepared, self._task.together)
            with closing(self._passed(batches, images)) as passed:
                steps = (step for group in passed for step in group)
                with closing(run_behind(steps, _WORKERS, waiting=self._batch)) as outcomes:
                    for outcome in outcomes:
                        if not isinstance(outcome, Failure):
                            yield outcome
                        elif on_error is None:
                            raise outcome.error
                        else:
                            on_error(outcome.source, outcome.error)

    def _passed(
        self, batches: Iterable[list[Prepared] | Failure], images: Iterable[ImageSource]
    ) -> Generator[Steps]:
        """What is left to do for images that have been through the network, in order."""
        network = self._network()
        many = None if self._matching else runtimes.parallel(self.runtime)
        # Of a few images the last ones would be waited for longer.
        few = 2 * self._batch * (many.streams if many else 0)
        if many and length_hint(images, few) >= few:
            alone = partial(self._run, network=network)
            yield from in_streams(batches, many, self._task.shape, self._task.run, alone)
        else:
            for batch in batches:
                yield self._run(batch, network)

    def _check_boxes(self, boxes: object) -> None:
        if boxes is not None and not isinstance(self._task, PeopleFinder):
            raise UsageError(f"boxes: for models of poses, and {self._name} is one of segmentation")

    def _codec(self, tile: object, flip: bool, probabilities: bool, least: int) -> PoseCodec | None:
        """What turns boxes into inputs and heatmaps into keypoints; None for segmentation."""
        if self.metadata.task != "pose":
            if flip:
                raise UsageError("flip: for models of poses")
            return None
        if not without_tiles(tile):
            raise UsageError("tile: for models that segment")
        if probabilities:
            raise UsageError("probabilities: of models that segment")
        if self._plan.input_scale != 1:
            raise UsageError("merge: plans that shrink the image are for models that segment")
        codec = codec_of(replace(self.metadata, image_size=self._size or self.metadata.image_size))
        if min(codec.size) < least:
            raise UsageError(f"size: at least {least} pixels on each side")
        return codec

    def _prepare(
        self, source: ImageSource, size: Size | None = None, boxes: Boxes | None = None
    ) -> Prepared | Failure:
        try:
            image = read_image(source)
            if isinstance(self._task, PeopleFinder):
                return self._task.prepare(source, image, boxes)
            return self._task.prepare(source, image, size)
        except ImageError as error:
            return Failure(source, error)
        except MemoryError as error:
            return Failure.of_memory(source, error)

    def _ahead(self, latest: Prepared | Failure) -> int:
        """How many images may wait for the network."""
        if isinstance(latest, Failure):
            return _WORKERS
        return min(max(AHEAD_BYTES // latest.nbytes, 1), self._batch + _WORKERS)

    def _run(self, group: list[Prepared] | Failure, network: Network) -> Steps:
        """Send images through the network; what is left to do for each is returned."""
        if isinstance(group, Failure):
            return [known(group)]
        try:
            return self._task.run(group, network)
        except (MemoryLimitError, MemoryError) as error:
            failure = Failure.of_memory(group[0].source, error)
        # Not in the handler, where the error keeps alive what the network had allocated.
        if len(group) > 1:
            return [step for image in group for step in self._run([image], network)]
        return [known(failure)]


def _check_pixels(size: Size, least: int) -> None:
    """Refuse a size (H, W) that is too large once its sides are scaled up to `least`."""
    if math.prod(max(side, least) for side in size) > MAX_PIXELS:
        raise UsageError(f"size: at most {MAX_PIXELS} pixels, not {size[0]} x {size[1]}")
