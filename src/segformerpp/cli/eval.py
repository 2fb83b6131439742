"""`segformerpp eval`."""

from __future__ import annotations

from itertools import product
from typing import Any

from segformerpp.arguments import parse_size, whole_number
from segformerpp.cli.eval_data import open_evaluation
from segformerpp.cli.eval_tables import show, title
from segformerpp.cli.options import (
    DEFAULT_MODELS,
    INTERRUPTED,
    SOME_FAILED,
    SUCCESS,
    parse_items,
    parse_numbers,
    parse_overlap,
    parse_plans,
    parse_tile,
    say,
)
from segformerpp.errors import UsageError
from segformerpp.terminal import Progress, complain


def eval(
    data: str = "folder",
    root: str = "",
    split: str = "val",
    classes: str | None = None,
    keypoints: str | None = None,
    model: str | None = None,
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
    results: str | None = None,
    offline: bool = False,
    revision: str | None = None,
    quiet: bool = False,
) -> int:
    """Evaluate a model on a dataset: how good, and how fast, with one merge plan or several.

    Every image is predicted as `predict` does it, by each combination of plan, runtime and
    precision in turn, and compared with its mask at the mask's size, or with the keypoints of the
    people in it. Agreement is with the first combination: the share of pixels that get the same
    label, or of keypoints that move by no more than 0.05 of the box. Milliseconds are medians of
    the network alone, for an image or a person, without those that it was compiled for; they and
    the speed-up are withheld where the images are so few, or differ so much, that the median may
    be off by more than 5 %. All combinations share this process; `bench`, where each has its own,
    measures more carefully.

    For poses (--data coco, for any keypoints in COCO's JSON) people are cut out by their own boxes.
    PCK@0.1 is the share of labelled keypoints that are found within 0.1 of the larger side of the
    box. AP and AR are COCO's, where its sigmas are known: for its own 17 keypoints, or from the
    file given by --keypoints.

    Examples:
      segformerpp eval --data camvid --root camvid --split test
      segformerpp eval --root my-images --model mine/best --merge none,hq,fast --json scores.json
      segformerpp eval --data cityscapes --root cityscapes --model b2.pth --tile 1024x1024
      segformerpp eval --data ade20k --root ade20k --model x.pth --scales 0.5,1,1.5 --flip
      segformerpp eval --root my-images --model mine/best --worst worst/ --confusion classes.png
      segformerpp eval --data coco --root lsp --split test --merge none,hq,fast --flip
      segformerpp eval --data coco --root coco --model poses/best --results keypoints.json

    Exit code:
      0 if all went well, 1 if some images failed, 2 if the command makes no sense, 130 if it
      was interrupted

    Args:
        data: camvid, cityscapes, ade20k, folder for images and masks of your own, or coco for
            keypoints of people
        root: the folder with the dataset
        split: which part of it
        classes: YAML file with the classes of a folder (default: classes.yaml in the root)
        keypoints: for poses: YAML file with names, skeleton and sigmas (default: those in the JSON)
        model: name, file, folder or hub id (default: camvid-b0, for poses lsp-b0)
        merge: merge plans, with commas between: presets, files, auto (the fastest preset here
            that keeps the labels); keyword strings with ; between (default: the model's own)
        runtime: runtimes, with commas between: auto, torch, torch-compiled, openvino, onnxruntime
        precision: precisions, with commas between: auto, f32, bf16, f16, int8
        device: auto, cpu, cuda, mps, xpu, gpu (OpenVINO's)
        threads: processor threads (default: one for each core)
        size: height x width that images are resized to for the network (default: their own; for
            poses what the model was trained with); what comes out is compared at the image's own
            size in any case
        tile: height x width of sliding windows; auto for windows where an image would take more
            than about 4 GiB; none to never use any
        overlap: pixels that windows share (default: a quarter)
        scales: factors of the size for the network, with commas between; the class probabilities
            are averaged
        flip: look at each image, or person, in the mirror too, and average
        images: only the first so many
        calibrate: folder with some of your images, for the precision int8
        json: file for the figures
        worst: folder for pictures of the images that came out worst with the first combination
        worst_count: how many
        confusion: file for a plot of the confusion matrices, ending in .png, .svg or .pdf
        results: for poses: file for the keypoints found with the first combination, as COCO's
            results in JSON
        offline: never look on the hub; take models from the local cache only
        revision: branch, tag or commit of a model on the hub
        quiet: say nothing but what went wrong
    """
    from segformerpp import runtimes
    from segformerpp.benchmark import plot
    from segformerpp.benchmark.run import machine
    from segformerpp.data.files import check_writable, expand_user
    from segformerpp.data.outputs import check_writable_file, write_rows
    from segformerpp.errors import ImageError
    from segformerpp.evaluation.pictures import plot_confusion
    from segformerpp.evaluation.pose import PoseScore
    from segformerpp.evaluation.segmentation import SegmentationScore
    from segformerpp.evaluation.side_by_side import evaluate, save_worst
    from segformerpp.evaluation.views import Views
    from segformerpp.predictor import Predictor

    if not root:
        raise UsageError("root: the folder with the dataset is needed")
    poses = data == "coco"
    factors = parse_numbers("scales", scales)
    views = Views(factors, flip, None if size is None else parse_size("size", size))
    names, precisions = parse_items("runtime", runtime), parse_items("precision", precision)
    plans = parse_plans(merge) if merge else [None]
    kinds = dict.fromkeys(product(plans, names, precisions))  # each once
    for _, name, kind in kinds:
        runtimes.check(name, kind, device, threads)
    if calibrate and "int8" not in precisions:
        raise UsageError("calibrate: only for the precision int8")
    whole_number("worst_count", worst_count, 1)
    if poses and (overlap or confusion):
        raise UsageError(f"{'overlap' if overlap else 'confusion'}: for models that segment")
    if results and not poses:
        raise UsageError("results: keypoints of people, which are in --data coco")
    for key, wanted in (("json", json), ("confusion", confusion), ("results", results)):
        if wanted:
            check_writable_file(key, wanted)
    if worst:
        check_writable("worst", expand_user(worst))
    if confusion:
        plot.check(expand_user(confusion), "confusion")
    evaluation, remark = open_evaluation(data, root, split, classes, keypoints, views, images)
    say(remark, quiet or not remark)
    predictors = [
        Predictor(
            model or DEFAULT_MODELS["pose" if poses else "segmentation"],
            merge=plan,
            runtime=name,
            precision=kind,
            device=device,
            threads=threads,
            size=views.size,
            tile=parse_tile(tile),
            overlap=None if overlap is None else parse_overlap(overlap),
            flip=flip and poses,
            calibrate=calibrate if kind == "int8" else None,
            offline=offline,
            revision=revision,
        )
        for plan, name, kind in kinds
    ]
    evaluation.check(predictors[0])
    table = [evaluation.score() for _ in predictors]
    failures = 0

    def fail(error: ImageError) -> None:
        nonlocal failures
        failures += 1
        complain(f"failed: {error}")

    interrupted = False
    with Progress(len(evaluation), "evaluating", shown=not quiet) as progress:
        try:
            evaluate(predictors, evaluation, table, fail, progress.advance)
        except KeyboardInterrupt:
            interrupted = True
    trained = predictors[0].metadata.image_size if predictors[0].metadata.task == "pose" else None
    own = f"{trained[0]}x{trained[1]}" if trained else "own"
    about: dict[str, Any] = {"data": data, "split": split, "size": size or own}
    about |= {"scales": list(views.scales), "flip": flip}
    rows = [
        {**predictor.facts, **about, **score.row(table[0]), **machine()}
        for predictor, score in zip(predictors, table, strict=True)
    ]
    if table[0].quality:
        if not quiet:
            show(rows, evaluation)
        if json:
            write_rows(json, rows)
        if confusion:
            counts = [score.counts for score in table if isinstance(score, SegmentationScore)]
            labels = list(rows[0]["per_class_iou"])
            plot_confusion(counts, [title(row) for row in rows], labels, expand_user(confusion))
            say(f"confusion matrices in {confusion}", quiet)
        if results and isinstance(table[0], PoseScore):
            write_rows(results, table[0].results)
            say(f"keypoints of {len(table[0].results)} people in {results}", quiet)
        if worst and not interrupted:
            files = save_worst(predictors[0], evaluation, table[0], expand_user(worst), worst_count)
            say(f"{len(files)} pictures of the worst images in {worst}", quiet)
    if interrupted:
        complain(f"interrupted: figures are of the first {len(table[0].quality)} images")
        return INTERRUPTED
    return SOME_FAILED if failures else SUCCESS
