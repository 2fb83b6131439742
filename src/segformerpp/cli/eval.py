"""`segformerpp eval`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segformerpp.arguments import parse_size, whole_number
from segformerpp.cli.options import (
    INTERRUPTED,
    SOME_FAILED,
    SUCCESS,
    parse_items,
    parse_overlap,
    parse_plans,
    parse_tile,
    say,
)
from segformerpp.errors import UsageError
from segformerpp.terminal import Progress, complain, print_table

if TYPE_CHECKING:
    from segformerpp.data.datasets import SegmentationDataset
    from segformerpp.evaluation.views import Views

#: What tells the rows apart.
_FORM = ("merge", "runtime", "precision")


def eval(
    data: str = "folder",
    root: str = "",
    split: str = "val",
    classes: str | None = None,
    model: str = "camvid-b0",
    merge: str | None = None,
    runtime: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    size: str | None = None,
    tile: str = "auto",
    overlap: str | None = None,
    scales: str = "1",
    flip: bool = False,
    images: int | None = None,
    calibrate: str | None = None,
    json: str | None = None,
    worst: str | None = None,
    worst_count: int = 8,
    confusion: str | None = None,
    offline: bool = False,
    revision: str | None = None,
    quiet: bool = False,
) -> int:
    """Evaluate a model on images with masks: how good, and how fast, with one plan or several.

    Every image is predicted as `predict` does it, by each combination of plan, runtime and
    precision in turn, and compared with its mask at the mask's size. Agreement is the share of
    pixels that get the same label as from the first combination. Milliseconds are medians of the
    network alone, without the first image of each size; they and the speed-up are withheld where
    the images are so few, or differ so much, that the median may be off by more than 5 %. All
    combinations share this process; `bench`, where each has its own, measures more carefully.

    Examples:
      segformerpp eval --data camvid --root camvid --split test
      segformerpp eval --root my-images --model mine/best --merge none,hq,fast --json scores.json
      segformerpp eval --data cityscapes --root cityscapes --model b2.pth --tile 1024x1024
      segformerpp eval --data ade20k --root ade20k --model x.pth --scales 0.5,1,1.5 --flip
      segformerpp eval --root my-images --model mine/best --worst worst/ --confusion classes.png

    Exit code:
      0 if all went well, 1 if some images failed, 2 if the command makes no sense, 130 if it
      was interrupted

    Args:
        data: camvid, cityscapes, ade20k, or folder for images and masks of your own
        root: the folder with the dataset
        split: which part of it
        classes: YAML file with the classes of a folder (default: classes.yaml in the root)
        model: name, file, folder or hub id
        merge: merge plans, with commas between: presets, files, auto (the fastest preset here
            that keeps the labels); keyword strings with ; between (default: the model's own)
        runtime: runtimes, with commas between: auto, torch, torch-compiled, openvino, onnxruntime
        precision: precisions, with commas between: auto, f32, bf16, f16, int8
        device: auto, cpu, cuda, mps, xpu, gpu (OpenVINO's)
        threads: processor threads (default: one for each core)
        size: height x width that images are resized to for the network (default: their own); what
            comes out is compared at the image's own size in any case
        tile: height x width of sliding windows; auto for windows where an image would take more
            than about 4 GiB; none to never use any
        overlap: pixels that windows share (default: a quarter)
        scales: factors of the size for the network, with commas between; the class probabilities
            are averaged
        flip: look at each image in the mirror too, and average
        images: only the first so many
        calibrate: folder with some of your images, for the precision int8
        json: file for the figures
        worst: folder for pictures of the images that came out worst with the first combination
        worst_count: how many
        confusion: file for a plot of the confusion matrices, ending in .png, .svg or .pdf
        offline: never look on the hub; take models from the local cache only
        revision: branch, tag or commit of a model on the hub
        quiet: say nothing but what went wrong
    """
    from segformerpp import runtimes
    from segformerpp.benchmark import plot
    from segformerpp.benchmark.run import machine
    from segformerpp.data.datasets import Problem, open_dataset
    from segformerpp.data.files import check_writable
    from segformerpp.data.outputs import check_writable_file, write_rows
    from segformerpp.evaluation.pictures import plot_confusion, save_worst
    from segformerpp.evaluation.segmentation import Score, check_classes, evaluate
    from segformerpp.predictor import Predictor

    if not root:
        raise UsageError("root: the folder with the dataset is needed")
    views = _views(scales, flip, None if size is None else parse_size("size", size))
    names, precisions = parse_items("runtime", runtime), parse_items("precision", precision)
    plans = parse_plans(merge) if merge else [None]
    kinds = dict.fromkeys(product(plans, names, precisions))  # each once
    for _, name, kind in kinds:
        runtimes.check(name, kind, device, threads)
    if calibrate and "int8" not in precisions:
        raise UsageError("calibrate: only for the precision int8")
    whole_number("worst_count", worst_count, 1)
    for key, wanted in (("json", json), ("confusion", confusion)):
        if wanted:
            check_writable_file(key, wanted)
    if worst:
        check_writable("worst", Path(worst))
    if confusion:
        plot.check(Path(confusion), "confusion")
    dataset = _first(open_dataset(data, root, split, classes), images)
    predictors = [
        Predictor(
            model,
            merge=plan,
            runtime=name,
            precision=kind,
            device=device,
            threads=threads,
            size=views.size,
            tile=parse_tile(tile),
            overlap=None if overlap is None else parse_overlap(overlap),
            calibrate=calibrate if kind == "int8" else None,
            offline=offline,
            revision=revision,
        )
        for plan, name, kind in kinds
    ]
    check_classes(predictors[0], dataset.classes)
    table = [Score(len(dataset.classes.labels)) for _ in predictors]
    failed: list[Problem] = []

    def fail(problem: Problem) -> None:
        failed.append(problem)
        complain(f"failed: {problem}")

    interrupted = False
    with Progress(len(dataset), "evaluating", shown=not quiet) as progress:
        try:
            evaluate(predictors, dataset, table, views, fail, progress.advance)
        except KeyboardInterrupt:
            interrupted = True
    rows = [
        {
            **predictor.facts,
            "data": data,
            "split": split,
            "size": size or "own",
            "scales": list(views.scales),
            "flip": flip,
            **score.row(dataset.classes.labels, table[0]),
            **machine(),
        }
        for predictor, score in zip(predictors, table, strict=True)
    ]
    if table[0].ious:
        if not quiet:
            _show(rows)
        if json:
            write_rows(json, rows)
        if confusion:
            titles = [_title(row) for row in rows]
            counts = [score.counts for score in table]
            plot_confusion(counts, titles, dataset.classes.labels, Path(confusion))
            say(f"confusion matrices in {confusion}", quiet)
        if worst and not interrupted:
            where = Path(worst)
            files = save_worst(predictors[0], dataset, table[0], views, where, worst_count)
            say(f"{len(files)} pictures of the worst images in {worst}", quiet)
    if interrupted:
        complain(f"interrupted: figures are of the first {len(table[0].ious)} images")
        return INTERRUPTED
    return SOME_FAILED if failed else SUCCESS


def _views(scales: str, flip: bool, size: tuple[int, int] | None) -> Views:
    from segformerpp.evaluation.views import Views

    try:
        factors = tuple(map(float, parse_items("scales", scales)))
    except ValueError:
        raise UsageError(f"scales: numbers with commas between, not {scales!r}") from None
    return Views(factors, flip, size)


def _first(dataset: SegmentationDataset, images: int | None) -> SegmentationDataset:
    if images is None:
        return dataset
    return replace(dataset, pairs=dataset.pairs[: whole_number("images", images, 1)])


def _show(rows: list[dict[str, Any]]) -> None:
    percents = ["miou", "fwiou", "pixel_accuracy", "agreement"]
    header = [*_FORM, "mIoU", "fwIoU", "accuracy", "agreement"]
    lines = []
    for row in rows:
        line = [*(row[key] for key in _FORM), *(_text(row[key]) for key in percents)]
        line += [_text(row[key], "withheld") for key in ("median_ms", "speed_up")]
        lines.append(line)
    print_table([*header, "ms", "speed-up"], lines)
    print()
    names = list(rows[0]["per_class_iou"])
    print_table(
        ["IoU in %", *headings(rows)],
        [[name, *(_text(row["per_class_iou"][name]) for row in rows)] for name in names],
    )
    first = rows[0]
    what = f"{first['model']} on {first['images']} images of {first['data']} {first['split']}"
    print(f"\n{what}, {first['processor']}, {first['threads']} threads, {first['date']}")


def headings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each row: its plan, and runtime and precision where there are several."""
    plan, *others = _FORM
    keys = [plan, *(key for key in others if len({row[key] for row in rows}) > 1)]
    return [" ".join(row[key] for key in keys) for row in rows]


def _title(row: Mapping[str, Any]) -> str:
    return f"{row['merge']} ({row['runtime']} {row['precision']}): mIoU {_text(row['miou'])} %"


def _text(value: float | None, instead: str = "") -> str:
    return instead if value is None else f"{value:.2f}"
