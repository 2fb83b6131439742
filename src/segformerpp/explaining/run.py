"""Explaining a plan: the network runs without merging, then with it, and is watched."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from segformerpp import runtimes
from segformerpp.arguments import Size, checked_size, whole_number
from segformerpp.benchmark.cost import cost, stage_costs
from segformerpp.checkpoints import Checkpoint
from segformerpp.data.images import ImageSource, read_image
from segformerpp.data.labels import describe
from segformerpp.data.skeletons import describe_poses
from segformerpp.errors import ImageError, MemoryLimitError, UsageError
from segformerpp.explaining.explanation import Explanation, Spent
from segformerpp.explaining.groups import Place, recording
from segformerpp.models import Segformer, SegformerConfig
from segformerpp.people import PeopleFinder, checked_boxes
from segformerpp.plans import PRESETS, MergePlan
from segformerpp.runtimes import Runtime
from segformerpp.tasks import label_maps, segmentation
from segformerpp.tasks.pose import codec_of
from segformerpp.tasks.pose_result import PoseResult
from segformerpp.tasks.segmentation_result import SegmentationResult
from segformerpp.trained import open_trained

#: Larger images are explained at the size that has so many pixels: 1024 x 2048.
MOST_PIXELS = 2**21
_MOST_PIXELS_ASKED = 2**24
#: Rows of pictures that a figure has room for.
MOST_GROUPINGS = 24

Blocks = Literal["first", "last", "all"] | Sequence[int]


def explain(
    image: ImageSource,
    model: str | Path | Segformer = "camvid-b0",
    merge: MergePlan | str | Path | Mapping[str, Any] | None = None,
    *,
    stages: Sequence[int] | None = None,
    blocks: Blocks = "last",
    size: Size | None = None,
    box: Sequence[float] | None = None,
    device: str = "auto",
    threads: int | None = None,
    offline: bool = False,
    revision: str | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Explanation:
    """Look at what a plan merges on an image, what that saves, and what it changes.

    Runs the network twice, in PyTorch and float32. `Explanation.plot` shows what was found.

    Args:
        image: a path, a PIL image, or an array as `read_image` takes it.
        model: as for `Predictor`.
        merge: the merge plan, in any notation that `MergePlan.parse` reads; None for the model's,
            or ``hq`` where that merges nothing.
        stages: which of the stages 1 to 4 to look into; None for all that merge something.
        blocks: which of their blocks: ``first``, ``last``, ``all``, or numbers from 1 up.
        size: (H, W) that the image is resized to for the network; None for its own, scaled down
            to `MOST_PIXELS` where it has more. For poses the size of the network's input.
        box: for poses: x, y, width, height of the person in image pixels; None for one who fills
            the image.
        device: ``cpu``, ``cuda``, ``mps``, ``xpu``, or ``auto``.
        threads: processor threads for PyTorch.
        offline: whether to take models from the local cache only.
        revision: branch, tag or commit of a model on the hub.
        advance: called after each of the two runs.

    Raises:
        UsageError: if an argument makes no sense, such as a stage where the plan merges nothing.
        ImageError: if the image cannot be read, or does not fit into the memory.
        CheckpointError: if the model cannot be loaded.
        PlanError: if the merge plan is not understood.
    """
    runtimes.check("torch", "f32", device, threads)
    plan = None if merge is None else MergePlan.parse(merge)
    if plan == MergePlan():
        raise UsageError(
            "merge: none merges nothing, so there is nothing to explain; name a plan such as hq "
            "(see `segformerpp plans`)"
        )
    checkpoint = open_trained(model, plan, offline, revision)
    config = checkpoint.config
    if plan is None:
        plan = checkpoint.merge_plan if checkpoint.merge_plan != MergePlan() else PRESETS["hq"]
    places = _places(plan, config, stages, blocks)
    if size is not None and math.prod(checked_size("size", size)) > _MOST_PIXELS_ASKED:
        raise UsageError(f"size: at most {_MOST_PIXELS_ASKED} pixels, not {size[0]} x {size[1]}")
    runtime = runtimes.create(checkpoint, "torch", "f32", device, threads)
    with _memory_limits(image):
        pixels = read_image(image)
        if checkpoint.metadata.task == "pose":
            if plan.input_scale != 1:
                raise UsageError("merge: plans that shrink the image are for models that segment")
            scene = _person(checkpoint, runtime, pixels, size, box)
        elif box is not None:
            raise UsageError("box: for models of poses")
        else:
            scene = _view(checkpoint, runtime, pixels, size, plan)

        network, height = checkpoint.model(), scene.seen.shape[0]
        network.merge_plan = MergePlan()
        without = scene.look()
        advance()
        network.merge_plan = plan
        pixel = height / int(height * plan.input_scale)
        with recording(network.encoder, places, pixel) as groupings:
            merged = scene.look()
        advance()
    costs = [
        Spent(tuple(stage_costs(config, p, scene.size)), cost(config, p, scene.size).macs)
        for p in (MergePlan(), plan)
    ]
    return Explanation(
        name=Path(image).name if isinstance(image, str | Path) else "image",
        model=str(model) if isinstance(model, str | Path) else checkpoint.metadata.source,
        task=checkpoint.metadata.task,
        plan=plan,
        image=scene.seen,
        own_size=(pixels.shape[0], pixels.shape[1]),
        groupings=tuple(groupings),
        without=without,
        merged=merged,
        cost_without=costs[0],
        cost=costs[1],
        transform=scene.transform,
    )


@contextmanager
def _memory_limits(image: ImageSource) -> Iterator[None]:
    """Turn the end of the memory into an `ImageError`."""
    try:
        yield
    except (MemoryLimitError, MemoryError):
        name = image if isinstance(image, str | Path) else "image"
        raise ImageError(f"{name}: too large for the memory; choose a smaller size") from None


@dataclass(frozen=True, slots=True, eq=False)
class _Scene:
    """What the network is to see, (H, W, 3) uint8, and how to ask it what it finds there."""

    seen: np.ndarray
    look: Callable[[], SegmentationResult | PoseResult]
    transform: np.ndarray | None = None

    @property
    def size(self) -> Size:
        return self.seen.shape[0], self.seen.shape[1]


def _view(
    checkpoint: Checkpoint,
    runtime: Runtime,
    pixels: np.ndarray,
    size: Size | None,
    plan: MergePlan,
) -> _Scene:
    """An image that is segmented as a whole."""
    height, width = pixels.shape[:2]
    shrunk = math.sqrt(MOST_PIXELS / (height * width))
    if size is None and shrunk < 1:
        size = max(int(height * shrunk), 1), max(int(width * shrunk), 1)
    least = checkpoint.config.min_image_size_at(plan.input_scale)
    seen = segmentation.fit(pixels, size, least)
    x = segmentation.normalise(seen, checkpoint.metadata)[None]
    classes = describe(checkpoint.metadata, checkpoint.config.num_outputs)

    def look() -> SegmentationResult:
        label_map = label_maps.from_logits(runtime(x)[0], (seen.shape[0], seen.shape[1]))
        return SegmentationResult(label_map, classes.labels, classes.palette, seen)

    return _Scene(seen, look)


def _person(
    checkpoint: Checkpoint,
    runtime: Runtime,
    pixels: np.ndarray,
    size: Size | None,
    box: Sequence[float] | None,
) -> _Scene:
    """A person, cut out."""
    metadata = describe_poses(checkpoint.metadata, checkpoint.config.num_outputs)
    points = describe(metadata, checkpoint.config.num_outputs)
    metadata = replace(metadata, labels=points.labels, palette=points.palette)
    codec = codec_of(replace(metadata, image_size=size or metadata.image_size))
    least = checkpoint.config.min_image_size
    if min(codec.size) < least:
        raise UsageError(f"size: at least {least} pixels on each side")
    boxes = checked_boxes("image" if box is None else [box], pixels)
    people = PeopleFinder(runtime, codec, metadata, flip=False, batch=1)
    transform = codec.transform(boxes[0])
    return _Scene(codec.crop(pixels, transform), lambda: people.find(pixels, boxes), transform)


def _places(
    plan: MergePlan, config: SegformerConfig, stages: Sequence[int] | None, blocks: Blocks
) -> set[Place]:
    """The blocks to look into."""
    for key, numbers in (("stages", stages), ("blocks", blocks)):
        if numbers is not None and len(numbers) == 0:
            raise UsageError(f"{key}: one or more numbers")
    merging = [n for n, stage in enumerate(plan.stages, 1) if stage.q or stage.kv]
    chosen = merging if stages is None else [whole_number("stages", n, 1, 4) for n in stages]
    for stage in chosen:
        if stage not in merging:
            where = f"it does in {', '.join(map(str, merging))}" if merging else "nor elsewhere"
            raise UsageError(f"stages: the plan merges nothing in stage {stage}, {where}")
    places = set()
    for stage in chosen:
        depth = config.depths[stage - 1]
        known: dict[str, Sequence[int]]
        known = {"first": [1], "last": [depth], "all": range(1, depth + 1)}
        if isinstance(blocks, str) and blocks not in known:
            raise UsageError(f"blocks: {', '.join(known)}, or numbers from 1 up, not {blocks!r}")
        for block in known[blocks] if isinstance(blocks, str) else blocks:
            if whole_number("blocks", block, 1) > depth:
                raise UsageError(f"blocks: stage {stage} has {depth} blocks, and no block {block}")
            places.add((stage, block))
    halves = [half for n, _ in places for half in (plan.stages[n - 1].q, plan.stages[n - 1].kv)]
    if (count := sum(half is not None for half in halves)) > MOST_GROUPINGS:
        raise UsageError(
            f"stages, blocks: {count} rows are more than a figure has room for "
            f"({MOST_GROUPINGS}); name fewer"
        )
    return places
