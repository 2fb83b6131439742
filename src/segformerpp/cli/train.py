"""`segformerpp train`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from segformerpp.cli.options import INTERRUPTED, SOME_FAILED, SUCCESS, say
from segformerpp.errors import UsageError
from segformerpp.terminal import Progress, complain, print_table
from segformerpp.training.settings import TrainSettings

if TYPE_CHECKING:
    from segformerpp.data.datasets import SegmentationDataset
    from segformerpp.data.poses import PoseDataset

    AnyDataset = SegmentationDataset | PoseDataset

_MEASURED_ROUNDS = 5


def train(
    settings: TrainSettings,
    resume: bool = False,
    check_data: bool = False,
    measure: bool = False,
    json: str | None = None,
    quiet: bool = False,
) -> int:
    """Train a SegFormer on a dataset, or fine-tune one: for segmentation, or for human poses.

    Settings may stand in a YAML file given by --config, and be changed on the command line. Into
    the folder given by --out go best/ and last/, which --model takes everywhere, logs for
    TensorBoard and as CSV, and what --resume goes on from.

    Examples:
      segformerpp train --config configs/camvid-b0.yaml --root camvid --out camvid-b0
      segformerpp train --root my-images --model camvid-b0 --steps 2000 --out mine
      segformerpp train --config configs/cityscapes-b2.yaml --root cityscapes --merge hq
      segformerpp train --config configs/camvid-b0.yaml --root camvid --out camvid-b0 --resume
      segformerpp train --config configs/coco-b0.yaml --root coco --out poses
      segformerpp train --root my-images --check-data
      torchrun --nproc-per-node 4 -m segformerpp train --config configs/cityscapes-b5.yaml ...

    Exit code:
      0 if all went well, 1 if images cannot be used, 2 if the command makes no sense, 130 if it
      was interrupted

    Args:
        settings: of the run
        resume: go on with an earlier run in the same folder, to the weights of an unbroken one
        check_data: only read all images and masks, and name those that cannot be used
        measure: only measure step time and peak memory, with the merge plan and without
        json: file for what came out
        quiet: say nothing but what went wrong
    """
    from segformerpp.data.files import expand_user
    from segformerpp.data.outputs import check_writable_file, write_rows

    # Of the processes that torchrun, or Lightning for --devices, starts.
    first = int(os.environ.get("RANK", os.environ.get("LOCAL_RANK", 0))) == 0
    quiet = quiet or not first
    settings = replace(settings, out=str(expand_user(settings.out)))
    if json:
        check_writable_file("json", json)
    splits = [settings.split, settings.val_split] if settings.val_split else [settings.split]
    sets = [_opened(settings, split) for split in splits]
    if measure:
        rows = _measure(settings, sets[0], quiet)
    else:
        if not check_data:
            _check_start(settings, resume)
        if settings.bad_images != "unchecked" or check_data:
            skip = settings.bad_images == "skip"
            checked = [_checked(dataset, skip, quiet) for dataset in sets]
            sets = [dataset for dataset in checked if dataset is not None]
            if len(sets) < len(checked):
                other = "" if skip else ", or leave it out with --bad-images skip"
                complain(f"error: mend what is named above{other}")
                return SOME_FAILED
        if check_data:
            return SUCCESS
        try:
            rows = [_train(settings, sets, resume, quiet)]
        except KeyboardInterrupt:
            complain("interrupted: the same command with --resume goes on")
            return INTERRUPTED
    if json and first:
        write_rows(json, rows)
    return SUCCESS


def _opened(settings: TrainSettings, split: str) -> AnyDataset:
    from segformerpp.data.datasets import open_dataset
    from segformerpp.data.poses import open_poses

    if settings.task == "pose":
        return open_poses(settings.root, split, keypoints=settings.keypoints or None)
    return open_dataset(settings.data, settings.root, split, settings.classes or None)


def _check_start(settings: TrainSettings, resume: bool) -> None:
    """Refuse what could not start or be kept, before all images are read."""
    from segformerpp.data.files import check_writable

    try:
        from segformerpp.training.run import refuse_taken
    except ModuleNotFoundError as error:
        raise UsageError(f"train: needs {error.name}; pip install 'segformerpp[train]'") from None
    check_writable("out", Path(settings.out))
    refuse_taken(settings, resume)


def _train(
    settings: TrainSettings, sets: list[AnyDataset], resume: bool, quiet: bool
) -> dict[str, object]:
    from segformerpp.training.run import train as run
    from segformerpp.training.run import with_steps

    settings = with_steps(settings, len(sets[0]))
    with Progress(settings.steps, "training", shown=not quiet) as progress:
        row = run(
            settings,
            sets[0],
            sets[1] if len(sets) > 1 else None,
            resume=resume,
            report=lambda text: say(text, quiet),
            advance=progress.advance,
        )
    say(f"weights in {row['model']}", quiet)
    return row


def _measure(settings: TrainSettings, dataset: AnyDataset, quiet: bool) -> list[dict[str, object]]:
    """Print and return what a step costs without merging and with the plan."""
    from segformerpp.training.measure import measure

    if settings.merge in ("", "none"):
        raise UsageError("measure: compares a merge plan with none; name one with --merge")
    if settings.task == "pose":
        raise UsageError("measure: for segmentation; the network of poses is the same")
    classes = len(dataset.classes.labels)  # type: ignore[union-attr]
    both = [replace(settings, merge=plan) for plan in ("none", settings.merge)]
    with Progress(len(both) * _MEASURED_ROUNDS, "measuring", shown=not quiet) as progress:
        rows = measure(both, classes, _MEASURED_ROUNDS, progress.advance)
    if not quiet:
        lines = []
        for row in rows:
            time = f"withheld: ± {row['uncertainty']:.0%}"
            if not row["withheld"]:
                time = f"{row['median_ms']:.0f}"
            ratios = [row["time_ratio"], row["memory_ratio"]]
            shares = ["" if ratio is None else f"{ratio:.2f}" for ratio in ratios]
            lines.append([row["merge"], time, shares[0], f"{row['peak_memory_mb']:.0f}", shares[1]])
        print_table(["merge", "ms for a step", "of none", "peak MB", "of none"], lines)
    return rows


def _checked(dataset: AnyDataset, skip: bool, quiet: bool) -> AnyDataset | None:
    """The dataset, without what cannot be used if that is to be skipped.

    None if it is not, or if nothing is left.
    """
    from segformerpp.data.datasets import Problem, check
    from segformerpp.data.poses import ImageProblem, PoseDataset, check_poses

    images = len(dataset.images if isinstance(dataset, PoseDataset) else dataset)
    problems: Sequence[Problem | ImageProblem]
    with Progress(images, f"checking {dataset.name}", shown=not quiet) as progress:
        if isinstance(dataset, PoseDataset):
            problems = found = check_poses(dataset, progress.advance)
            rest: AnyDataset = dataset.without(found)
        else:
            problems = wrong = check(dataset, progress.advance)
            rest = dataset.without(wrong)
    for problem in problems:
        complain(str(problem))
    if not problems:
        say(f"{dataset.name}: all {images} images can be used", quiet)
        return dataset
    if not skip or not len(rest):
        return None
    say(f"{dataset.name}: {len(problems)} of {images} images left out", quiet)
    return rest
