"""From a checkpoint to a file that runs without this package, and what its precision costs."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, SupportsIndex

from segformerpp.arguments import Size, checked_size, whole_number
from segformerpp.calibration import Calibration, check_rgb
from segformerpp.checkpoints import Checkpoint, open_checkpoint
from segformerpp.checkpoints.sources import WEIGHTS_SUFFIXES
from segformerpp.data.files import expand_user
from segformerpp.data.outputs import check_writable_file
from segformerpp.errors import ImageError, UsageError
from segformerpp.evaluation import agreement
from segformerpp.plans import MergePlan
from segformerpp.runtimes.export import ENDINGS, FileForm, Range, write

if TYPE_CHECKING:
    from segformerpp.models import Segformer


@dataclass(frozen=True, slots=True)
class Exported:
    """What `export` wrote.

    Attributes:
        files: all of them, the one to load first.
        notes: what stands in the file about the network.
        checkpoint: the network.
        form: what goes in and comes out.
    """

    files: tuple[Path, ...]
    notes: dict[str, str]
    checkpoint: Checkpoint
    form: FileForm


def export(
    model: str | Path | Segformer,
    path: str | Path | None = None,
    *,
    merge: MergePlan | str | Path | Mapping[str, Any] | None = None,
    format: str | None = None,
    size: Size | tuple[Size, Size] | None = None,
    batch: int | tuple[int, int] | None = 1,
    precision: str = "f32",
    pixels: bool = False,
    labels: bool = False,
    target: str = "any",
    calibrate: str | Path | None = None,
    offline: bool = False,
    revision: str | None = None,
) -> Exported:
    """Write a network, with token merging inside, as a file that runs without this package.

    Args:
        model: what `segformerpp.load` takes, or a `Segformer`.
        path: ends in ``.xml`` (OpenVINO; weights go beside it, into a file that ends in ``.bin``)
            or ``.onnx``; None for a name made of the model's, the plan's, the size, and where they
            are not the usual ones precision and target.
        merge: the merge plan, in any notation that `MergePlan.parse` reads; None for the model's.
        format: ``openvino`` or ``onnx``; None for what the path says, else ``openvino``, or
            ``onnx`` for a target.
        size: (H, W) of the images, the fastest; or the smallest and the largest; None for any.
        batch: how many images go in together; or the least and the most; None for any number.
        precision: of the stored weights: ``f32``; ``f16``, half as large, where what computes
            with them decides on its own precision; ``int8``, activations too.
        pixels: whether (B, H, W, 3) uint8 RGB images go in, instead of normalised ones
            (B, 3, H, W) float32.
        labels: whether label maps (B, H, W) come out, instead of logits (B, K, h, w) at a quarter
            of the size.
        target: ``any``; or, for ONNX, ``onnxruntime``: what it alone reads, and computes in less
            memory on a processor; or ``tensorrt``: a form that TensorRT's parser takes.
        calibrate: folder with some images, for ``int8``.
        offline: whether to take models from the local cache only.
        revision: branch, tag or commit of a model on the hub.

    Raises:
        UsageError: if an argument makes no sense, or contradicts another one.
        CheckpointError: if the model cannot be loaded.
        PlanError: if the merge plan is not understood.
        OSError: if the file cannot be written.
    """
    if format is not None and format not in ENDINGS:
        raise UsageError(f"format: one of {', '.join(ENDINGS)}, not {format!r}")
    if calibrate and precision != "int8":
        raise UsageError("calibrate: only for the precision int8")
    plan = None if merge is None else MergePlan.parse(merge)
    if isinstance(model, str | Path):
        checkpoint = open_checkpoint(model, plan, offline=offline, revision=revision)
    else:
        checkpoint = Checkpoint.of_model(copy.deepcopy(model).cpu().float(), plan)
    channels, means = checkpoint.config.in_channels, len(checkpoint.metadata.mean)
    if calibrate:
        check_rgb(channels)
    if pixels and means != channels:
        raise UsageError(
            f"pixels: the model's mean and std have {means} values for {channels} channels"
        )
    if labels and checkpoint.metadata.task != "segmentation":
        raise UsageError("labels: of models that segment; those of poses give heatmaps")
    form = FileForm(
        size=_sizes(size) or Range.any_size(checkpoint),
        batch=_batches(batch),
        precision=precision,
        pixels=pixels,
        labels=labels,
        target=target,
    )
    ending = ENDINGS[format or ("openvino" if target == "any" else "onnx")]
    path = expand_user(path) if path else _named(checkpoint, form, ending)
    if format and path.suffix != ending:
        raise UsageError(f"out: a file for the format {format} ends in {ending}, not {path.name!r}")
    check_writable_file("out", path)  # it may take minutes until it is written
    images = Calibration(calibrate, checkpoint.metadata) if calibrate else None
    notes = write(checkpoint, path, form, images)
    weights = [path.with_suffix(".bin")] * (path.suffix != ENDINGS["onnx"])
    return Exported((path, *weights), notes, checkpoint, form)


def compare(
    exported: Exported,
    pairs: Sequence[agreement.Pair],
    advance: Callable[[], None],
    on_error: Callable[[ImageError], None],
) -> dict[str, Any]:
    """Compare label maps of a file with those of the same file in f32; see `agreement.compare`."""
    network, path = exported.checkpoint, exported.files[0]
    with TemporaryDirectory() as folder:
        plain, form = Path(folder, f"f32{path.suffix}"), replace(exported.form, precision="f32")
        write(network, plain, form)
        first = agreement.exported(plain, network.metadata, form)
        second = agreement.exported(path, network.metadata, exported.form)
        return agreement.compare(
            *(first, second, pairs, network.config.num_outputs, network.metadata.reduce_labels),
            *(advance, on_error),
        )


def _sizes(size: Size | tuple[Size, Size] | None) -> Range | None:
    if size is None:
        return None
    try:
        least, most = (size, size) if isinstance(size[0], SupportsIndex) else size
    except (TypeError, ValueError, LookupError):
        raise UsageError(
            f"size: height and width in pixels, or the smallest and the largest, not {size!r}"
        ) from None
    return Range("size", checked_size("size", least), checked_size("size", most))


def _batches(batch: int | tuple[int, int] | None) -> Range:
    if batch is None:
        return Range("batch", (1,), None)
    if isinstance(batch, tuple) and len(batch) != 2:
        raise UsageError(f"batch: a whole number, or the least and the most, not {batch!r}")
    least, most = batch if isinstance(batch, tuple) else (batch, batch)
    return Range("batch", (whole_number("batch", least, 1),), (whole_number("batch", most, 1),))


def _named(checkpoint: Checkpoint, form: FileForm, ending: str) -> Path:
    """Such as ``camvid-b0-hq-512x1024-int8.onnx``."""
    whole = str(form.size).replace("..", "-") if form.size.most else "any"
    model, path = checkpoint.name, Path(checkpoint.name)
    if path.suffix in WEIGHTS_SUFFIXES:  # others may have dots, too
        model = path.stem
    elif path.exists():
        model = path.name
    parts = [model or "segformer", checkpoint.merge_plan.name, whole]
    if form.precision != "f32":
        parts.append(form.precision)
    if form.target != "any":
        parts.append(form.target)
    return Path(re.sub(r"[^\w.-]+", "-", "-".join(parts)) + ending)
