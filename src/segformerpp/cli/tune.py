"""`segformerpp tune`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segformerpp.arguments import parse_size, whole_number
from segformerpp.cli.options import INTERRUPTED, SOME_FAILED, SUCCESS, parse_items, say
from segformerpp.errors import ImageError, UsageError
from segformerpp.terminal import Progress, complain

if TYPE_CHECKING:
    from segformerpp.models import Segformer
    from segformerpp.tuning.assess import Judged
    from segformerpp.tuning.images import Images
    from segformerpp.tuning.quality import Budget

_SPLIT = "val"
_DEFAULT_DROP, _DEFAULT_AGREEMENT = 0.3, 98.0
#: Percent of the labels that may change for each point of mIoU, and in any case: a plan may change
#: many on the images of the search, by chance for good and bad alike, and cost more on others. On
#: CamVid's val, what costs 0.7 points and more on test keeps 98.0 to 98.1 %, what costs less 98.9.
_CHANGED_PER_POINT, _LEAST_CHANGED = 5.0, 1.0
#: Where there are no masks, of 255.
_DEFAULT_NOISE = 10.0


def tune(
    data: str = "folder",
    root: str = "",
    split: str | None = None,
    classes: str | None = None,
    keypoints: str | None = None,
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
    noise: float | None = None,
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

    The budget is what a plan may cost: points of mIoU or PCK@0.1, where there are masks or people,
    or labels that change, which needs none. All presets are tried first, then plans that an
    optimiser (optuna) proposes; each is timed in turns with none, and given up as soon as it is
    clear that it is out.
    Every third image is kept for checking the result; the others are searched with, with a margin
    of one standard error.

    Written are the plan, which --merge takes everywhere, and beside it a report (.md), a picture
    (.png, with matplotlib) and the study (.study), with which the same command goes on after it was
    interrupted, or for longer. Ctrl-C gives the best plan so far.

    Examples:
      segformerpp tune --data camvid --root camvid --max-drop 0.3
      segformerpp tune --data images --root photos/ --min-agreement 98.5 --minutes 5
      segformerpp tune --root my-images --model mine/best --size 512x1024 --out mine.yaml
      segformerpp tune --data coco --root lsp --model lsp-b0 --max-drop 0.5 --precision auto,int8
      segformerpp predict photos/ --merge plan.yaml

    Exit code:
      0 if there is a plan, 1 if some images failed or the plan is over the budget on held-out
      images, 2 if the command makes no sense, 130 if it was interrupted

    Args:
        data: camvid, cityscapes, ade20k, or folder for images and masks of your own; coco for
            people with keypoints; or images, for images without masks
        root: the folder with the dataset, or with the images
        split: which part of a dataset to search with (default: val)
        classes: YAML file with the classes of a folder (default: classes.yaml in the root)
        keypoints: YAML file with the skeleton of people (default: that in their JSON)
        check_split: another part, to check with (default: every third image of --split)
        max_drop: points of mIoU, of people PCK@0.1, that a plan may lose (default: 0.3, unless
            there is a --min-agreement above 0)
        min_agreement: percent of the labels that must stay as they are without merging, of people
            the keypoints (default: with masks all but 5 for each point of --max-drop, or but 1 if
            that is more; for images 98; for people any)
        model: name, file, folder or hub id
        runtime: what the plan is to run in: auto, torch, torch-compiled, openvino, onnxruntime
        precision: auto, f32, bf16, f16; with commas between, the plan is searched in the first, and
            tried in the others, which may be int8, when it has been found
        device: auto, cpu, cuda, mps, xpu, gpu (OpenVINO's)
        threads: processor threads (default: one for each core)
        size: height x width that images are resized to for the network (default: their own), or
            that people are looked at (default: what the model was trained with)
        images: with how many to search at most, and to check
        noise: spread of the noise on the images of the search, of 255, so that the plan holds on
            harder images too (default: 10 for images without masks, else 0)
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
    from segformerpp.plans import MergePlan
    from segformerpp.tuning.images import with_noise
    from segformerpp.tuning.report import default_picture, markdown, plan_file, plot, rows
    from segformerpp.tuning.run import Limits, Listener
    from segformerpp.tuning.run import tune as run
    from segformerpp.tuning.search import check_installed, open_study

    check_installed()
    if not root:
        raise UsageError("root: the folder with the images is needed")
    if Path(out).suffix not in (".yaml", ".yml"):
        raise UsageError(f"out: a file ending in .yaml, not {out!r}")
    plan_path = expand_user(out)
    study_path = expand_user(study or plan_path.with_suffix(".study"))
    report_path = expand_user(report or plan_path.with_suffix(".md"))
    picture = default_picture(report_path)
    for key, file in (
        *(("out", plan_path), ("study", study_path), ("report", report_path), ("json", json)),
        ("report", picture),
    ):
        if file:
            check_writable_file(key, file)
    first, *others = parse_items("precision", precision)
    if first == "int8":
        raise UsageError("precision: int8 is tried when a plan has been found: auto,int8")
    for kind in (first, *others):
        runtimes.check(runtime, kind, device, threads)
    if "int8" in others and runtime not in ("auto", "openvino"):
        raise UsageError(f"precision: int8 is for the runtime openvino, not for {runtime}")
    whole_number("images", images, 1)
    if trials is not None:
        whole_number("trials", trials, 1)
    if noise is None:
        noise = _DEFAULT_NOISE if data == "images" else 0.0
    if not 0 <= noise <= 255:
        raise UsageError(f"noise: from 0 to 255, not {noise}")
    if not minutes > 0:
        raise UsageError(f"minutes: more than 0, not {minutes}")
    budget = _budget(data, max_drop, min_agreement)
    options: dict[str, Any] = {
        **{"runtime": runtime, "precision": first, "device": device, "threads": threads},
        "size": None if size is None else parse_size("size", size),
    }
    failed: list[ImageError] = []

    def fail(error: ImageError) -> None:
        failed.append(error)
        complain(f"failed: {error}")

    parts, check = _parts(data, root, split, classes, keypoints, check_split)
    searched, checked = _divide(parts, images)
    searched = with_noise(searched, noise)
    from segformerpp.checkpoints import load, open_checkpoint

    digest = open_checkpoint(model, offline=offline, revision=revision).digest
    network = load(model, offline=offline, revision=revision)
    check(network)
    name = Path(root).resolve().name if data == "images" else f"{data} {split or _SPLIT}"
    what = {
        **{"model": model, "task": network.metadata.task, "data": name, "batch": 1},
        **{"size": size or "own", "budget": str(budget), "noise": noise},
    }

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
            where = [str(Path(path).resolve()) for path in (root, classes, keypoints) if path]
            names = [f"{path.name} {path.stat().st_size}" for path in searched.paths]
            settings = {**what, "weights": digest, "root": where, "images": names}
            return open_study(study_path, settings)

        findings, interrupted = run(
            *(network, (searched, checked), options, others, budget, Limits(minutes, trials)),
            *(lambda evaluator: begin(evaluator.facts), what),
            Listener(note, progress.note, fail),
        )
    for path, text in (
        (plan_path, plan_file(findings)),
        (report_path, markdown(findings, picture.name if picture else None)),
    ):
        with write_whole(path) as written:
            written.write(text.encode())
    if json:
        write_rows(json, rows(findings))
    if picture:
        with write_whole(picture) as drawing:
            plot(findings, drawing, "png")
    say(f"{findings.chosen.name}: {findings.verdict()}", quiet)
    if findings.winner and others:
        say(f"best in precision {findings.precision}", quiet)
    if noise and not interrupted and findings.chosen == MergePlan():
        say("no faster plan is within the budget with noise; --noise 0 asks for less", quiet)
    say(f"plan in {plan_path}, report in {report_path}", quiet)
    if interrupted:
        complain("interrupted: this is the best so far; the same command goes on from there")
        return INTERRUPTED
    if not findings.winner:
        complain(f"failed: {findings.unchecked}")
    elif not findings.keeps_budget:
        complain(
            "failed: on held-out images the plan is over the budget; search with more --images, or "
            "a smaller budget"
        )
    good = findings.winner and findings.keeps_budget
    return SUCCESS if good and not failed else SOME_FAILED


def _budget(data: str, max_drop: float | None, min_agreement: float | None) -> Budget:
    from segformerpp.tuning.quality import KEYPOINTS, LABELS, Budget

    words = KEYPOINTS if data == "coco" else LABELS
    if data == "images" and max_drop is not None:
        raise UsageError("max_drop: needs masks; for --data images there is --min-agreement")
    if max_drop is not None and not 0 <= max_drop <= 100:
        raise UsageError(f"max_drop: points of {words.score}, from 0 to 100, not {max_drop}")
    if min_agreement is not None and not 0 <= min_agreement <= 100:
        raise UsageError(f"min_agreement: percent, from 0 to 100, not {min_agreement}")
    if data == "images":
        return Budget(min_agreement=_DEFAULT_AGREEMENT if min_agreement is None else min_agreement)
    if max_drop is None and not min_agreement:
        max_drop = _DEFAULT_DROP
    if data != "coco" and min_agreement is None and max_drop is not None:
        changed = max(_CHANGED_PER_POINT * max_drop, _LEAST_CHANGED)
        min_agreement = 100 - changed if changed < 100 else None
    return Budget(max_drop, min_agreement, words)


def _parts(
    data: str,
    root: str,
    split: str | None,
    classes: str | None,
    keypoints: str | None,
    check_split: str | None,
) -> tuple[list[Images], Callable[[Segformer], None]]:
    """All images, or those to search with and those to check with; and what refuses a model."""
    from segformerpp.data.datasets import DATASETS, open_dataset
    from segformerpp.data.labels import describe
    from segformerpp.data.poses import open_poses
    from segformerpp.data.skeletons import describe_poses
    from segformerpp.evaluation.names import check_names
    from segformerpp.tuning.images import of_dataset, of_folder, of_people

    if data not in (*DATASETS, "coco", "images"):
        raise UsageError(f"data: one of {', '.join(DATASETS)}, coco, images, not {data!r}")
    if keypoints and data != "coco":
        raise UsageError("keypoints: of people, which are in --data coco")
    if classes and data in ("coco", "images"):
        raise UsageError("classes: of images with masks")
    names = [split or _SPLIT, check_split] if check_split else [split or _SPLIT]
    if data == "images":
        if split or check_split:
            raise UsageError("split, check_split: of datasets; --data images takes all of a folder")

        def segments(network: Segformer) -> None:
            if network.metadata.task != "segmentation":
                raise UsageError(f"model: one for {network.metadata.task} needs --data coco")

        return [of_folder(root)], segments
    if data == "coco":
        people = [open_poses(root, name, keypoints=keypoints) for name in names]

        def finds_them(network: Segformer) -> None:
            outputs = network.config.num_outputs
            known = describe_poses(network.metadata, outputs)
            own, wanted = describe(known, outputs).labels, people[0].skeleton.names
            check_names(known, own, wanted, "pose", "keypoints", "keypoints of people")

        return [of_people(dataset) for dataset in people], finds_them
    datasets = [open_dataset(data, root, name, classes) for name in names]

    def tells_apart(network: Segformer) -> None:
        own, wanted = network.metadata, datasets[0].classes.labels
        labels = describe(own, network.config.num_outputs).labels
        check_names(own, labels, wanted, "segmentation", "classes", "masks")

    return [of_dataset(dataset) for dataset in datasets], tells_apart


def _divide(parts: list[Images], most: int) -> tuple[Images, Images]:
    from segformerpp.tuning.images import divide, sample

    if len(parts) == 1:
        return divide(parts[0], most)
    searched, checked = (sample(part, most) for part in parts)
    return searched, checked
