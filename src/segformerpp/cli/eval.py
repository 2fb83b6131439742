"""`segformerpp eval`."""

from __future__ import annotations

import math
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
    from segformerpp.evaluation.segmentation import Score, Views
    from segformerpp.predictor import Predictor

#: Larger factors make images that nobody means.
_LARGEST_SCALE = 8


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
    network alone, without the first image of each size; `bench` measures more carefully.

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
        merge: merge plans, with commas between: presets, files; keyword strings with ; between
            (default: the model's own)
        runtime: runtimes, with commas between: auto, torch, torch-compiled, openvino, onnxruntime
        precision: precisions, with commas between: auto, f32, bf16, f16, int8
        device: auto, cpu, cuda, mps, xpu, gpu (OpenVINO's)
        threads: processor threads (default: one for each core)
        size: height x width that images are resized to for the network (default: their own)
        tile: height x width of sliding windows; auto for windows where an image would take more
            than about 4 GiB; none to never use any
        overlap: pixels that windows share (default: a quarter)
        scales: factors by which each image is resized for the network, with commas between; the
            class probabilities are averaged
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
    import json as json_format

    from segformerpp.benchmark import plot
    from segformerpp.benchmark.run import machine
    from segformerpp.data.datasets import Problem, open_dataset
    from segformerpp.data.files import check_writable, write_whole
    from segformerpp.evaluation.pictures import plot_confusion
    from segformerpp.evaluation.segmentation import Score, check_classes, evaluate
    from segformerpp.predictor import Predictor

    if not root:
        raise UsageError("root: the folder with the dataset is needed")
    views = _views(scales, flip)
    for key, wanted in (("json", json), ("confusion", confusion)):
        if wanted:
            check_writable(key, Path(wanted).parent)
    if confusion:
        plot.check(Path(confusion), "confusion")
    dataset = _first(open_dataset(data, root, split, classes), images)
    kinds = product(
        parse_plans(merge) if merge else [None],
        parse_items("runtime", runtime),
        parse_items("precision", precision),
    )
    predictors = [
        Predictor(
            model,
            merge=plan,
            runtime=name,
            precision=kind,
            device=device,
            threads=threads,
            size=None if size is None else parse_size("size", size),
            tile=parse_tile(tile),
            overlap=None if overlap is None else parse_overlap(overlap),
            probabilities=not views.single,
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
    if table[0].mious:
        if not quiet:
            _show(rows)
        if json:
            with write_whole(Path(json)) as file:
                file.write(json_format.dumps(rows, indent=1).encode() + b"\n")
        if confusion:
            titles = [_title(row) for row in rows]
            counts = [score.counts for score in table]
            plot_confusion(counts, titles, dataset.classes.labels, Path(confusion))
            say(f"confusion matrices in {confusion}", quiet)
        if worst and not interrupted:
            _draw_worst(predictors[0], dataset, table[0], views, Path(worst), worst_count)
            say(f"the worst images in {worst}", quiet)
    if interrupted:
        complain(f"interrupted: figures are of the first {len(table[0].mious)} images")
        return INTERRUPTED
    return SOME_FAILED if failed else SUCCESS


def _views(scales: str, flip: bool) -> Views:
    from segformerpp.evaluation.segmentation import Views

    factors = []
    for text in parse_items("scales", scales):
        try:
            factors.append(float(text))
        except ValueError:
            factors.append(0.0)
        if not 0 < factors[-1] <= _LARGEST_SCALE:
            raise UsageError(f"scales: factors from above 0 to {_LARGEST_SCALE}, not {text!r}")
    return Views(tuple(factors), flip)


def _first(dataset: SegmentationDataset, images: int | None) -> SegmentationDataset:
    if images is None:
        return dataset
    return replace(dataset, pairs=dataset.pairs[: whole_number("images", images, 1)])


def _title(row: dict[str, Any]) -> str:
    return f"{row['merge']} ({row['runtime']} {row['precision']}): mIoU {row['miou']} %"


def _show(rows: list[dict[str, Any]]) -> None:
    percents = ["miou", "fwiou", "pixel_accuracy", "agreement"]
    header = ["merge", "runtime", "precision", "mIoU", "fwIoU", "accuracy", "agreement"]
    lines = []
    for row in rows:
        line = [row["merge"], row["runtime"], row["precision"], *(_text(row[k]) for k in percents)]
        line += [_text(row["median_ms"]), _text(row["speed_up"])]
        lines.append(line)
    print_table([*header, "ms", "speed-up"], lines)
    print()
    names = list(rows[0]["per_class_iou"])
    print_table(
        ["IoU in %", *(f"{row['merge']}" for row in rows)],
        [[name, *(_text(row["per_class_iou"][name]) for row in rows)] for name in names],
    )
    first = rows[0]
    what = f"{first['model']} on {first['images']} images of {first['data']} {first['split']}"
    print(f"\n{what}, {first['processor']}, {first['threads']} threads, {first['date']}")


def _text(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _draw_worst(
    predictor: Predictor,
    dataset: SegmentationDataset,
    score: Score,
    views: Views,
    folder: Path,
    count: int,
) -> None:
    from segformerpp.data.images import write_image
    from segformerpp.evaluation.pictures import worst_case
    from segformerpp.evaluation.segmentation import segment

    known = {index: miou for index, miou in score.mious.items() if not math.isnan(miou)}
    for place, index in enumerate(sorted(known, key=lambda i: known[i])[:count], 1):
        image, mask = dataset.read(index)
        name, plan = dataset.pairs[index].image.stem, predictor.merge_plan.name
        title = f"{name}: mIoU {known[index]:.1f} %, merge {plan}"
        label_map = segment(predictor, image, views)[0]
        picture = worst_case(image, mask, label_map, dataset.classes, title)
        write_image(folder / f"{place:02}_{name}.png", picture)
