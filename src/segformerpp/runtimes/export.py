"""Writing networks as files that run without this package."""

from __future__ import annotations

import json
import math
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, cast

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from segformerpp import __version__
from segformerpp.arguments import Size
from segformerpp.checkpoints import Checkpoint
from segformerpp.errors import UsageError
from segformerpp.runtimes.graph import IMAGES, OPSET, Form, Interface, build
from segformerpp.runtimes.openvino_core import core, ov
from segformerpp.runtimes.sizes import least_size, matchings

if TYPE_CHECKING:
    from segformerpp.runtimes.int8 import Images

#: How files of a format end.
ENDINGS = {"onnx": ".onnx", "openvino": ".xml"}
PRECISIONS = ("f32", "f16", "int8")
TARGETS = ("any", "onnxruntime", "tensorrt")
#: How many values TensorRT selects at most.
TENSORRT_TOPK = 3840
#: The largest number of 16 bits, and how many numbers are not worth a conversion.
_LARGEST_HALF, _FEW = 65504, 64


@dataclass(frozen=True, slots=True)
class Range:
    """Sizes (H, W), or batches (B,), from `least` to `most`.

    Args:
        key: what it is of, for errors.
        least: the smallest.
        most: the largest, side by side; None for no limit.

    Raises:
        UsageError: if the largest is smaller.
    """

    key: str
    least: tuple[int, ...]
    most: tuple[int, ...] | None

    def __post_init__(self) -> None:
        if self.most and any(a > b for a, b in zip(self.least, self.most, strict=True)):
            raise UsageError(f"{self.key}: from the smaller to the larger, not {self}")

    @classmethod
    def any_size(cls, checkpoint: Checkpoint) -> Range:
        """All sizes that one file can take."""
        return cls("size", least_size(checkpoint.config, checkpoint.merge_plan), None)

    @property
    def fixed(self) -> bool:
        """Whether there is one only."""
        return self.least == self.most

    def __str__(self) -> str:
        least = "x".join(map(str, self.least))
        if self.fixed:
            return least
        return f"{least}..{'x'.join(map(str, self.most)) if self.most else ''}"

    def nearest(self, size: Size) -> Size:
        """The size (H, W) within the range that is closest, side by side."""
        most = self.most or (sys.maxsize, sys.maxsize)
        height, width = (
            min(max(side, a), b) for side, a, b in zip(size, self.least, most, strict=True)
        )
        return height, width

    def dims(self) -> list[ov.Dimension]:
        """As OpenVINO has them."""
        most = self.most or [-1] * len(self.least)
        return [ov.Dimension(*pair) for pair in zip(self.least, most, strict=True)]


@dataclass(frozen=True, slots=True)
class FileForm:
    """What a file takes in and gives out, and for whom it is.

    Args:
        size: of the images. One size is fastest, and lets `labels` come strip by strip; otherwise
            full-size logits exist at once.
        batch: how many images go in together.
        precision: of the stored weights: ``f32``; ``f16``, half as large, where what computes
            with them decides on its own precision; ``int8``, activations too.
        pixels: whether (B, H, W, 3) uint8 RGB images go in, instead of normalised ones
            (B, 3, H, W) float32.
        labels: whether label maps (B, H, W) come out, instead of logits (B, K, h, w) at a quarter
            of the size.
        target: ``any``; ``onnxruntime`` for what it alone reads and computes in less memory on a
            processor; or ``tensorrt`` for a form that its parser takes.

    Raises:
        UsageError: if a value is unknown.
    """

    size: Range
    batch: Range
    precision: str = "f32"
    pixels: bool = False
    labels: bool = False
    target: str = "any"

    def __post_init__(self) -> None:
        for key, value, known in (
            ("precision", self.precision, PRECISIONS),
            ("target", self.target, TARGETS),
        ):
            if value not in known:
                raise UsageError(f"{key}: one of {', '.join(known)}, not {value!r}")


def write(
    checkpoint: Checkpoint, path: Path, form: FileForm, images: Images | None = None
) -> dict[str, str]:
    """Write a network with its merge plan into a file.

    The file appears whole or not at all, after the checker of its format has passed it.

    Args:
        checkpoint: the network.
        path: ends in ``.onnx``, or in ``.xml`` for OpenVINO, whose weights go beside it in a file
            that ends in ``.bin``.
        form: what goes in and comes out.
        images: what to quantise on for ``int8``.

    Returns:
        What stands in the file about the network.

    Raises:
        UsageError: if arguments contradict each other, or a package is missing.
        OSError: if the file cannot be written.
    """
    endings = list(ENDINGS.values())
    if path.suffix not in endings:
        raise UsageError(f"out: a file that ends in {' or '.join(endings)}, not {path.name!r}")
    is_onnx, size, batch = path.suffix == ENDINGS["onnx"], form.size, form.batch
    _check(checkpoint, is_onnx, form, images)
    notes = _notes(checkpoint, form)
    interface = Interface(
        _pair(size.least) if size.fixed else None,
        batch.least[0] if batch.fixed else None,
        form.pixels,
        form.labels,
        None if size.fixed else _pair(size.least),
    )
    kind: Form = "processor"
    if form.precision == "int8":
        kind = "int8"
    elif form.target != "any":
        kind = cast(Form, form.target)
    graph = build(
        *(checkpoint.config, checkpoint.tensors(), checkpoint.merge_plan, interface),
        *(checkpoint.metadata, notes),
        form=kind,
    )
    model: ov.Model | None = None
    if images is not None:
        from segformerpp.runtimes import int8

        most = _pair(size.most) if size.most else None
        inputs = int8.Inputs(images, _pair(size.least), most, batch.least[0], form.pixels)
        if is_onnx:
            graph = int8.quantise(graph, inputs, len(images))
            helper.set_model_props(graph, notes)
        else:
            model = int8.quantise_openvino(graph, inputs, len(images))
    if is_onnx:
        if form.precision == "f16":
            _store_halves(graph)
        _write_onnx(graph, path)
    else:
        model = model or core().read_model(graph.SerializeToString())
        _write_openvino(model, path, form, notes)
    return notes


def _check(checkpoint: Checkpoint, is_onnx: bool, form: FileForm, images: Images | None) -> None:
    """Refuse what does not go together."""
    if form.target != "any" and (not is_onnx or form.precision == "int8"):
        raise UsageError(f"target: {form.target} is for ONNX in f32 or f16")
    if form.precision == "int8":
        if images is None:
            raise UsageError("precision: int8 needs images to be quantised on: --calibrate FOLDER")
        if is_onnx and not find_spec("onnxruntime"):
            raise UsageError(
                "precision: int8 in ONNX needs onnxruntime, which is not installed: "
                "pip install 'segformerpp[onnx]'"
            )
    if form.target != "tensorrt":
        return
    most = form.size.most
    if most is None:
        raise UsageError("size: TensorRT needs a largest size, such as 512x512..1024x2048")
    for found in matchings(checkpoint.config, checkpoint.merge_plan, _pair(most)):
        if found.alone > TENSORRT_TOPK:
            raise UsageError(
                f"size: at {'x'.join(map(str, most))} stage {found.stage} of this plan keeps "
                f"{found.alone} tokens, and TensorRT selects at most {TENSORRT_TOPK}: choose a "
                f"smaller size, a larger r, or a plan of neighbours such as 2x2"
            )


def _notes(checkpoint: Checkpoint, form: FileForm) -> dict[str, str]:
    meaning, plan = checkpoint.metadata, checkpoint.merge_plan
    return {
        "model": checkpoint.name,
        "task": meaning.task,
        "merge": plan.name,
        "merge_plan": json.dumps(plan.to_dict()),
        "size": str(form.size),
        "batch": str(form.batch),
        "precision": form.precision,
        "target": form.target,
        "opset": str(OPSET),
        "labels": json.dumps(meaning.labels),
        "palette": json.dumps(meaning.palette),
        "mean": json.dumps(meaning.mean),
        "std": json.dumps(meaning.std),
        "license": meaning.license,
        "segformerpp": __version__,
    }


def _pair(size: tuple[int, ...]) -> Size:
    return size[0], size[1]


def _store_halves(model: onnx.ModelProto) -> None:
    """Store large constants in 16 bits; a cast to float32 stands behind each."""
    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or math.prod(tensor.dims) <= _FEW:
            continue
        array = numpy_helper.to_array(tensor)
        if np.abs(array).max() > _LARGEST_HALF:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], name, to=TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)


def _write_onnx(model: onnx.ModelProto, path: Path) -> None:
    onnx.checker.check_model(model, full_check=True)
    with _beside(path) as folder:
        onnx.save(model, folder / path.name)
        (folder / path.name).replace(path)


def _write_openvino(model: ov.Model, path: Path, form: FileForm, notes: Mapping[str, str]) -> None:
    sides, channels = form.size.dims(), model.input(IMAGES).partial_shape[3 if form.pixels else 1]
    shape = [*sides, channels] if form.pixels else [channels, *sides]
    model.reshape({IMAGES: ov.PartialShape([*form.batch.dims(), *shape])})
    for key, value in notes.items():
        model.set_rt_info(value, ["segformerpp", key])
    weights = path.with_suffix(".bin")
    with _beside(path) as folder:
        ov.save_model(model, folder / path.name, compress_to_fp16=form.precision == "f16")
        core().read_model(folder / path.name)  # raises where it is not valid
        (folder / weights.name).replace(weights)
        (folder / path.name).replace(path)


@contextmanager
def _beside(path: Path) -> Iterator[Path]:
    """A hidden folder on the same disk, which is gone afterwards."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".", suffix=".tmp", dir=path.parent) as folder:
        yield Path(folder)
