"""`segformerpp export`."""

from __future__ import annotations

import re
from typing import Any

from segformerpp.arguments import Size, parse_size
from segformerpp.cli.options import SOME_FAILED, SUCCESS, say
from segformerpp.errors import ImageError, UsageError
from segformerpp.terminal import Progress, complain


def export(
    model: str = "camvid-b0",
    merge: str | None = None,
    format: str | None = None,
    size: str = "any",
    batch: str = "1",
    precision: str = "f32",
    pixels: bool = False,
    labels: bool = False,
    target: str = "any",
    out: str | None = None,
    calibrate: str | None = None,
    test: str | None = None,
    masks: str | None = None,
    json: str | None = None,
    offline: bool = False,
    revision: str | None = None,
    quiet: bool = False,
) -> int:
    """Write a network as a file that runs without this package and without PyTorch.

    Token merging is inside. The file says in its metadata what the network is: classes, colours,
    normalisation, plan. docs/export.md shows how to run it, in ten lines.

    Examples:
      segformerpp export --merge hq --size 1024x2048
      segformerpp export --format onnx --size 512x512..1024x2048 --batch 1..8
      segformerpp export --merge hq --format onnx --size 512x1024 --pixels --labels
      segformerpp export --precision int8 --calibrate photos/ --test test/ --masks testannot/

    Exit code:
      0 if it was written, 1 if the disk refuses or images for --test cannot be used, 2 if the
      command makes no sense

    Args:
        model: a model as `segformerpp predict` takes it
        merge: what tokens to merge: a preset (see `segformerpp plans`), a YAML file, or a keyword
            string (default: as saved with the model, else none)
        format: openvino (two files, .xml and .bin) or onnx (default: as --out ends, else openvino,
            or onnx for a --target)
        size: of the images: height x width, the fastest; from one to another, such as
            512x512..1024x2048; or any
        batch: images that go in together: a number, from one to another, such as 1..8; or any
        precision: f32; f16, files half as large; or int8, see --calibrate
        pixels: take images (B, H, W, 3) of bytes, RGB, instead of normalised ones (B, 3, H, W)
        labels: give out label maps (B, H, W), instead of logits (B, K, h, w) at a quarter of the
            size
        target: any; or, for ONNX, onnxruntime: what it alone reads, and computes in less memory on
            a processor; or tensorrt: a form that TensorRT's parser takes
        out: file to write, ending in .xml or .onnx (default: named after model, plan, size, and
            where they are not the usual ones precision and target)
        calibrate: folder with some of your images, for int8
        test: folder with other images, on which to compare the labels of int8 with those of f32
        masks: folder with their masks of class ids, of the same names, to compare mIoU
        json: file for what was written and compared
        offline: never look on the hub; take models from the local cache only
        revision: branch, tag or commit of a model on the hub
        quiet: say nothing but what went wrong
    """
    from segformerpp import exporting
    from segformerpp.benchmark.run import machine
    from segformerpp.data.outputs import check_writable_file, write_rows
    from segformerpp.evaluation.agreement import find_pairs

    if precision != "int8" and (calibrate or test):
        raise UsageError("calibrate, test: only for the precision int8")
    if masks and not test:
        raise UsageError("masks: of the images of --test, which is missing")
    if json:
        check_writable_file("json", json)
    pairs = find_pairs(test, masks) if test else []
    if calibrate:
        say("quantising: half a second for each image and megapixel (B0; others longer)", quiet)
    written = exporting.export(
        model,
        out,
        merge=merge,
        format=format,
        size=_sizes(size),
        batch=_batches(batch),
        precision=precision,
        pixels=pixels,
        labels=labels,
        target=target,
        calibrate=calibrate,
        offline=offline,
        revision=revision,
    )
    failed: list[ImageError] = []

    def fail(error: ImageError) -> None:
        failed.append(error)
        complain(f"failed: {error}")

    megabytes = sum(file.stat().st_size for file in written.files) / 1e6
    say(f"{' and '.join(map(str, written.files))}, {megabytes:.1f} MB", quiet)
    row: dict[str, Any] = {**written.notes, **machine()}
    row["files"] = [str(file) for file in written.files]
    if pairs:
        with Progress(len(pairs), "comparing", shown=not quiet) as progress:
            row |= exporting.compare(written, pairs, progress.advance, fail)
    if row.get("images"):
        text = f"on {row['images']} images {row['agreement']:.2f} % of the labels are those of f32"
        if "miou" in row:
            text += f"; mIoU {row['miou']:.2f} %, of f32 {row['miou_before']:.2f} %"
        say(text, quiet)
    if json:
        write_rows(json, [row])
    return SOME_FAILED if failed else SUCCESS


def _sizes(text: str) -> tuple[Size, Size] | None:
    """Read ``512x1024``, ``512x512..1024x2048`` or ``any``."""
    if text == "any":
        return None
    least, dots, most = text.partition("..")
    first = parse_size("size", least)
    return first, parse_size("size", most) if dots else first


def _batches(text: str) -> tuple[int, int] | None:
    """Read ``4``, ``1..8`` or ``any``."""
    if text == "any":
        return None
    found = re.fullmatch(r"([1-9]\d*)(?:\.\.([1-9]\d*))?", text.strip())
    if not found:
        raise UsageError(f"batch: a number from 1 up, from one to another, or any, not {text!r}")
    return int(found[1]), int(found[2] or found[1])
