"""`segformerpp tune`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segformerpp.arguments import parse_size, whole_number
from segformerpp.cli.options import INTERRUPTED, SOME_FAILED, SUCCESS, say
from segformerpp.errors import ImageError, UsageError
from segformerpp.terminal import Progress, complain

if TYPE_CHECKING:
    from segformerpp.data.labels import LabelSet
    from segformerpp.tuning.assess import Judged
    from segformerpp.tuning.images import Images
    from segformerpp.tuning.quality import Budget

_DEFAULT_DROP, _DEFAULT_AGREEMENT = 0.3, 98.0


def tune(
    data: str = "folder",
    root: str = "",
    split: str = "val",
    classes: str | None = None,
    check_split: str | None = None,
    max_drop: float | None = None,
    min_agreement: float | None = None,
    model: str = "camvid-b0",
    runtime: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    size: str | None = None,
    images: int = 40,
    minutes: float = 12.0,
    trials: int | None = None,
    out: str = "plan.yaml",
    study: str | None = None,
    report: str | None = None,
    json: str | None = None,
    offline: bool = False,
    revision: str | None = None,
    quiet: bool = False,
) -> int:
    """Search for the fastest merge plan for your model, images and machine, within a budget.

    The budget is what a plan may cost: points of mIoU, where there are masks, or labels that
    change, which needs none. All presets are tried first, then plans that an optimiser (optuna)
    proposes; each is timed in turns with none, and given up as soon as it is clear that it is out.
    Every third image is kept for checking the result; the others are searched with, with a margin
    of one standard error.

    Written are the plan, which --merge takes everywhere, and beside it a report (.md), a picture
    (.png, with matplotlib) and the study (.study), with which the same command goes on after it was
    interrupted, or for longer. Ctrl-C gives the best plan so far.

    Examples:
      segformerpp tune --data camvid --root camvid --max-drop 0.3
      segformerpp tune --data images --root photos/ --min-agreement 98.5 --minutes 5
      segformerpp tune --root my-images --model mine/best --size 512x1024 --out mine.yaml
      segformerpp predict photos/ --merge plan.yaml

    Exit code:
      0 if there is a plan, 1 if some images failed or the plan is over the budget on held-out
      images, 2 if the command makes no sense, 130 if it was interrupted

    Args:
        data: camvid, cityscapes, ade20k, or folder for images and masks of your own; or images, for
            images without masks
        root: the folder with the dataset, or with the images
        split: which part of a dataset to search with
        classes: YAML file with the classes of a folder (default: classes.yaml in the root)
        check_split: another part, to check with (default: every third image of --split)
        max_drop: points of mIoU that a plan may lose (default: 0.3, unless there is
            --min-agreement)
        min_agreement: percent of the labels that must stay as they are without merging (default
            without masks: 98)
        model: name, file, folder or hub id
        runtime: what the plan is to run in: auto, torch, torch-compiled, openvino, onnxruntime
        precision: auto, f32, bf16, f16
        device: auto, cpu, cuda, mps, xpu, gpu (OpenVINO's)
        threads: processor threads (default: one for each core)
        size: height x width that images are resized to for the network (default: their own)
        images: with how many to search at most, and to check
        minutes: for all of it, about; the presets are tried in any case
        trials: how many plans to try at most (default: as many as there is time for)
        out: file for the plan, ending in .yaml
        study: file for what was tried (default: as --out, ending in .study)
        report: file for the report (default: as --out, ending in .md)
        json: file for the figures
        offline: never look on the hub; take models from the local cache only
        revision: branch, tag or commit of a model on the hub
        quiet: say nothing but what went wrong
    """
    from segformerpp import runtimes
    from segformerpp.data.files import expand_user, write_whole
    from segformerpp.data.outputs import check_writable_file, write_rows
    from segformerpp.tuning.report import default_picture, markdown, plan_file, plot, rows
    from segformerpp.tuning.run import Limits
    from segformerpp.tuning.run import tune as run
    from segformerpp.tuning.search import check_installed, open_study

    check_installed()
    if not root:
        raise UsageError("root: the folder with the images is needed")
    if Path(out).suffix not in (".yaml", ".yml"):
        raise UsageError(f"out: a file ending in .yaml, not {out!r}")
    where = {
        "out": expand_user(out),
        "study": expand_user(study or Path(out).with_suffix(".study")),
        "report": expand_user(report or Path(out).with_suffix(".md")),
        "json": expand_user(json) if json else None,
    }
    for key, file in where.items():
        if file:
            check_writable_file(key, file)
    runtimes.check(runtime, precision, device, threads)
    whole_number("images", images, 1)
    if trials is not None:
        whole_number("trials", trials, 1)
    if not minutes > 0:
        raise UsageError(f"minutes: more than 0, not {minutes}")
    budget = _budget(data, max_drop, min_agreement)
    options: dict[str, Any] = {
        **{"runtime": runtime, "precision": precision, "device": device, "threads": threads},
        "size": None if size is None else parse_size("size", size),
    }
    failed: list[ImageError] = []

    def fail(error: ImageError) -> None:
        failed.append(error)
        complain(f"failed: {error}")

    parts, known = _parts(data, root, split, classes, check_split)
    searched, checked = _divide(parts, images, fail)
    from segformerpp.checkpoints import load, open_checkpoint
    from segformerpp.data.labels import describe
    from segformerpp.evaluation.names import check_names

    digest = open_checkpoint(model, offline=offline, revision=revision).digest
    network = load(model, offline=offline, revision=revision)
    if known:
        own = describe(network.metadata, network.config.num_outputs).labels
        check_names(network.metadata, own, known.labels, "segmentation", "classes", "masks")
    name = Path(root).name if data == "images" else f"{data} {split}".strip()
    what = {"model": model, "data": name, "size": size or "own", "budget": str(budget)}

    with Progress(trials, "plans", shown=not quiet) as progress:
        leader: list[Judged] = []

        def note(judged: Judged, best: Judged | None) -> None:
            if best and best.gain:
                progress.advance(f"best so far: {best.plan.name[:60]}, {best.gain.value:.2f} x")
                if not leader or leader[0].plan != best.plan:
                    leader[:] = [best]
                    gain = f"{best.gain.value:.2f} times as fast"
                    say(f"best so far: {gain}: {best.plan.name}", quiet)
            else:
                progress.advance("none within the budget so far")

        def begin(facts: dict[str, Any]) -> Any:
            used = {key: facts[key] for key in ("runtime", "precision", "device", "threads")}
            what.update(used)
            names = [path.name for path in searched.paths]
            settings = {**what, "weights": digest, "images": names}
            return open_study(where["study"] or Path(), settings)

        outcome, interrupted = run(
            *(network, (searched, checked), options, budget, Limits(minutes, trials)),
            *(lambda evaluator: begin(evaluator.facts), what, note),
        )
    picture = default_picture(where["report"] or Path())
    if picture:
        with write_whole(picture) as drawing:
            plot(outcome, drawing, "png")
    for path, text in (
        (where["out"], plan_file(outcome)),
        (where["report"], markdown(outcome, picture.name if picture else None)),
    ):
        with write_whole(path or Path()) as written:
            written.write(text.encode())
    if where["json"]:
        write_rows(where["json"], rows(outcome))
    say(f"{outcome.chosen.name}: {outcome.verdict()}", quiet)
    say(f"plan in {where['out']}, report in {where['report']}", quiet)
    if interrupted:
        complain("interrupted: this is the best so far; the same command goes on from there")
        return INTERRUPTED
    if not outcome.keeps_budget:
        complain(
            "failed: on held-out images the plan is over the budget; search with more --images, or "
            "a smaller budget"
        )
    return SOME_FAILED if failed or not outcome.keeps_budget else SUCCESS


def _budget(data: str, max_drop: float | None, min_agreement: float | None) -> Budget:
    from segformerpp.tuning.quality import Budget

    if data == "images" and max_drop is not None:
        raise UsageError("max_drop: needs masks; for --data images there is --min-agreement")
    if max_drop is not None and not 0 <= max_drop <= 100:
        raise UsageError(f"max_drop: points of mIoU, from 0 to 100, not {max_drop}")
    if min_agreement is not None and not 0 <= min_agreement <= 100:
        raise UsageError(f"min_agreement: percent, from 0 to 100, not {min_agreement}")
    if max_drop is None and min_agreement is None:
        if data == "images":
            return Budget(min_agreement=_DEFAULT_AGREEMENT)
        return Budget(max_drop=_DEFAULT_DROP)
    return Budget(max_drop, min_agreement)


def _parts(
    data: str, root: str, split: str, classes: str | None, check_split: str | None
) -> tuple[list[Images], LabelSet | None]:
    """All images, or those to search with and those to check with; and the classes of the masks."""
    from segformerpp.data.datasets import open_dataset
    from segformerpp.tuning.images import of_dataset, of_folder

    if data == "images":
        if classes or check_split:
            raise UsageError("classes, check_split: only for datasets with masks")
        return [of_folder(root)], None
    names = [split, check_split] if check_split else [split]
    datasets = [open_dataset(data, root, name, classes) for name in names]
    return [of_dataset(dataset) for dataset in datasets], datasets[0].classes


def _divide(
    parts: list[Images], most: int, on_error: Callable[[ImageError], None]
) -> tuple[Images, Images]:
    from segformerpp.tuning.images import divide, spread

    if len(parts) == 1:
        searched, checked = divide(parts[0], most)
    else:
        searched, checked = (part.some(spread(range(len(part)), most)) for part in parts)
    found = searched.usable(on_error), checked.usable(on_error)
    if not all(map(len, found)):
        raise UsageError("root: no image can be read of those to search or to check with")
    return found
