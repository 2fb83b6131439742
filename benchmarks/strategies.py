"""The laboratory of merge plans: accuracy, arithmetic and time of each, beside the presets.

    python benchmarks/strategies.py --root ../shared/data/camvid --poses ../shared/data/lsp
    python benchmarks/strategies.py --root ../shared/data/camvid --only accuracy --every 4
    python benchmarks/strategies.py --only latency --precision bf16
    python benchmarks/tables.py                                               # docs/strategies.md

Accuracy: `camvid-b0` on CamVid's test images at their own size, and `lsp-b0` on the people of LSP's
validation split, f32 in OpenVINO, without retraining. Arithmetic and time: B0 and B5 at 1024x1024
in OpenVINO; plans take turns with `fast`, whose share of time is what counts. Figures that are
there already stay until they are measured anew.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from segformerpp import cli
from segformerpp.benchmark.cost import cost
from segformerpp.benchmark.run import machine
from segformerpp.data.datasets import open_dataset
from segformerpp.data.outputs import write_rows
from segformerpp.data.poses import open_poses
from segformerpp.errors import ImageError
from segformerpp.evaluation.pose import PoseEvaluation
from segformerpp.evaluation.segmentation import SegmentationEvaluation
from segformerpp.evaluation.side_by_side import evaluate
from segformerpp.evaluation.views import Views
from segformerpp.models.config import SegformerConfig
from segformerpp.plans import PRESETS, MergePlan
from segformerpp.predictor import Predictor
from segformerpp.terminal import Progress

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "strategies.json"
PICTURE = HERE.parent / "docs" / "images" / "strategies.png"
SIZE = (1024, 1024)
MODELS = ("b0", "b5")
#: Predictors side by side: each is a compiled network in memory.
TOGETHER = 5
Row = dict[str, Any]

_P = ",proportional=true"
_N2D, _N42, _N4 = (f"mode=n2d,sx={sx},sy={sy}" for sx, sy in ((2, 2), (4, 2), (4, 4)))
_FAST_KV, _FAST_Q = f"kv12:mode=bsm,r=0.9,sx=4,sy=4{_P}", "q34:mode=bsm,r=0.9,sx=4,sy=4"
_KV3 = f"kv3:mode=bsm,r=0.75,sx=2,sy=2{_P}"
_Q4 = "q4:mode=bsm,r=0.75,sx=2,sy=2"
#: What was tried beside the presets, by a name for the table.
PLANS: dict[str, str] = {
    "turbo, 4x4 in 1": f"q1:{_N4} q234:{_N2D} {_FAST_KV} {_KV3} reuse3=4",
    "turbo, 4x2 in 1": f"q1:{_N42} q234:{_N2D} {_FAST_KV} {_KV3} reuse3=4",
    "turbo, 4x4 in 1, none in 2": f"q1:{_N4} q34:{_N2D} {_FAST_KV} {_KV3} reuse3=4",
    "fast, proportional": f"{_FAST_KV} {_FAST_Q}",
    "balanced, matched every 4 blocks in 3": (
        f"q13:{_N2D} {_FAST_KV} {_Q4} {_KV3.replace('0.75', '0.5')} reuse3=4"
    ),
    "turbo, matched once in 1 and 2": f"q1234:{_N2D} {_FAST_KV} {_KV3} reuse3=4 reuse12=6",
    "balanced, fewer keys in 3": f"q13:{_N2D} {_FAST_KV} {_Q4} {_KV3}",
    "hq, proportional": f"kv12:mode=bsm,r=0.6,sx=2,sy=2{_P} q34:mode=bsm,r=0.8,sx=4,sy=4",
    "fast, proportional, matched once": f"{_FAST_KV} {_FAST_Q} reuse1234=40",
}


def fail(problem: ImageError) -> None:
    """End where an image cannot be read."""
    raise SystemExit(str(problem))


def accuracy(
    root: str, every: int, threads: int | None, plans: Sequence[str]
) -> Iterator[tuple[str, Row]]:
    """MIoU and agreement with `none` of each plan, on one test image of so many."""
    whole = open_dataset("camvid", root, "test")
    data = replace(whole, pairs=whole.pairs[::every])
    evaluation = SegmentationEvaluation(data, Views())
    for few in _groups(plans, "none", TOGETHER):
        predictors = [_predictor("camvid-b0", plan, threads) for plan in ("none", *few)]
        scores = [evaluation.score() for _ in predictors]
        with Progress(len(data), ", ".join(few)) as progress:
            evaluate(predictors, evaluation, scores, fail, progress.advance)
        found = [score.row(scores[0]) for score in scores]
        for plan, row in zip(("none", *few), found, strict=True):
            values = {key: row[key] for key in ("agreement", "miou", "images")}
            yield plan, {**values, "lost": round(found[0]["miou"] - row["miou"], 2)}


def poses(
    root: str, every: int, threads: int | None, plans: Sequence[str]
) -> Iterator[tuple[str, Row]]:
    """PCK@0.1 of each plan, on one person of so many of the validation split."""
    data = open_poses(root, "val")
    evaluation = PoseEvaluation(replace(data, people=data.people[::every]))
    whole: float | None = None
    for few in _groups(plans, "none", TOGETHER):
        # Poses are not for plans that shrink the image.
        kept = [p for p in ("none", *few) if MergePlan.parse(p).input_scale == 1]
        predictors = [_predictor("lsp-b0", plan, threads) for plan in kept]
        scores = [evaluation.score() for _ in kept]
        with Progress(len(evaluation), ", ".join(kept)) as progress:
            evaluate(predictors, evaluation, scores, fail, progress.advance)
        shares = [score.row(scores[0])["pck_0.1"] for score in scores]
        whole = shares[0] if whole is None else whole
        for plan, share in zip(kept, shares, strict=True):
            values = {"pck_0.1": share, "pck_lost": round(whole - share, 2)}
            yield plan, {**values, "people": len(evaluation)}


def _predictor(model: str, plan: str, threads: int | None) -> Predictor:
    return Predictor(model, merge=plan, runtime="openvino", precision="f32", threads=threads)


def latency(rounds: int, precision: str, plans: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Milliseconds of each plan, and its share of the time of `fast`; None where withheld."""
    for model in MODELS:
        # Those that are compared stay in memory, 3 GB each for B5.
        for others in _groups(plans, "fast", 2):
            few = ["fast", *others]
            words = ["bench", "--model", model, "--size", "x".join(map(str, SIZE)), "--quiet"]
            words += ["--runtime", "openvino", "--precision", precision, "--rounds", str(rounds)]
            rows = _run([*words, "--merge", ";".join(few)])
            for plan, row in zip(few, rows, strict=True):
                share = row["speed_up"] and round(1 / row["speed_up"], 3)
                key = f"{model}_{precision}"
                yield plan, {f"median_ms_{key}": row["median_ms"], f"of_fast_{key}": share}


def arithmetic(plan: str) -> Row:
    """What one image takes, in 1e9 multiply-accumulates."""
    configs = {model: SegformerConfig.of_size(model, num_outputs=19) for model in MODELS}
    return {
        f"gmacs_{model}": round(cost(config, MergePlan.parse(plan), SIZE).macs / 1e9, 2)
        for model, config in configs.items()
    }


def _groups(plans: Sequence[str], reference: str, size: int) -> Iterator[list[str]]:
    """The plans but the reference, in groups of so many."""
    others = [plan for plan in plans if plan != reference]
    for first in range(0, len(others), size):
        yield others[first : first + size]


def _run(words: list[str]) -> list[Row]:
    with TemporaryDirectory() as folder:
        part = Path(folder, "rows.json")
        if cli.main([*words, "--json", str(part)]) != 0:
            raise SystemExit(1)
        rows: list[Row] = json.loads(part.read_text())
        return rows


def draw(rows: Sequence[Row], path: Path) -> None:
    """Agreement over arithmetic, one picture for each model; a line along the front."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    known = [row for row in rows if row.get("agreement", 0) > 94]
    for axes, model in zip(figure.subplots(1, 2), MODELS, strict=True):
        key, best, front = f"gmacs_{model}", 0.0, []
        for row in sorted(known, key=lambda r: (r[key], -r["agreement"])):
            if row["agreement"] > best:
                best = row["agreement"]
                front.append(row)
        axes.plot([r[key] for r in front], [r["agreement"] for r in front], "-", color="0.7")
        for row in known:
            preset = row["name"] in PRESETS
            axes.plot(row[key], row["agreement"], "o", color="tab:red" if preset else "tab:blue")
            if preset or row in front:
                axes.annotate(
                    row["name"], (row[key], row["agreement"]), fontsize=7, rotation=15,
                    xytext=(3, 3), textcoords="offset points",
                )  # fmt: skip
        axes.set_xlabel(f"GMACs, {model.upper()} at 1024x1024")
        axes.set_ylabel("labels as under none, %")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Measure, write the rows after every few plans, draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", help="folder with CamVid's splits, for the accuracy")
    parser.add_argument("--poses", help="folder with LSP in COCO's layout, for that of poses")
    parser.add_argument("--every", type=int, default=1, help="take one image of so many")
    parser.add_argument("--threads", type=int, help="of the accuracy")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each plan")
    parser.add_argument("--precision", default="f32", help="of the times: f32 or bf16")
    parser.add_argument("--only", choices=("accuracy", "latency"))
    parser.add_argument("--plans", help="names of some of the plans, with semicolons between")
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, default=PICTURE)
    args = parser.parse_args()
    named = {MergePlan.parse(text).name: name for name, text in PLANS.items()}
    # A plan that became a preset has the preset's name.
    plans = {name: name for name in PRESETS} | {k: v for k, v in named.items() if k not in PRESETS}
    before = json.loads(args.json.read_text()) if args.json.exists() else []
    rows: dict[str, Row] = {plan: {"name": plans[plan], "merge": plan} for plan in plans}
    for row in before:
        if row["merge"] in rows:
            rows[row["merge"]] = row | rows[row["merge"]]

    def keep(found: Iterator[tuple[str, Row]]) -> None:
        for plan, values in found:
            rows[plan] |= values
            write_rows(args.json, list(rows.values()))

    wanted = args.plans.split(";") if args.plans else list(plans.values())
    if unknown := set(wanted) - set(plans.values()):
        parser.error(f"--plans: {unknown.pop()!r} is none of {'; '.join(plans.values())}")
    some = [plan for plan, name in plans.items() if name in wanted]
    keep((plan, arithmetic(plan)) for plan in plans)
    if args.only != "latency":
        if args.root:
            keep(accuracy(args.root, args.every, args.threads, some))
        if args.poses:
            keep(poses(args.poses, args.every, args.threads, some))
    if args.only != "accuracy":
        keep(
            (plan, values | machine())
            for plan, values in latency(args.rounds, args.precision, some)
        )
    if any("agreement" in row for row in rows.values()):
        draw(list(rows.values()), args.plot)


if __name__ == "__main__":
    main()
