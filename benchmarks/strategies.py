"""The laboratory of merge plans: accuracy, arithmetic and time of each, beside the presets.

    python benchmarks/strategies.py --root ../shared/data/camvid              # all of it
    python benchmarks/strategies.py --root ../shared/data/camvid --only latency
    python benchmarks/tables.py                                               # docs/strategies.md

Accuracy: `camvid-b0` on CamVid's test images at their own size, f32 in OpenVINO, without
retraining. Arithmetic and time: B0 and B5 at 1024x1024, f32 in OpenVINO; plans take turns with
`fast`, whose share of time is what counts. Figures that are there already stay until they are
measured anew.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from segformerpp import cli
from segformerpp.benchmark.cost import cost
from segformerpp.benchmark.run import machine
from segformerpp.merging import PRESETS, MergePlan
from segformerpp.models.config import SegformerConfig

HERE = Path(__file__).parent
RESULTS = HERE / "results" / "strategies.json"
PICTURE = HERE.parent / "docs" / "images" / "strategies.png"
SIZE = (1024, 1024)
MODELS = ("b0", "b5")
Row = dict[str, Any]

_P = ",proportional=true"
_N2D = "mode=n2d,sx=2,sy=2"
_FAST_KV, _FAST_Q = f"kv12:mode=bsm,r=0.9,sx=4,sy=4{_P}", "q34:mode=bsm,r=0.9,sx=4,sy=4"
_KV3 = f"kv3:mode=bsm,r=0.75,sx=2,sy=2{_P}"
_Q4 = "q4:mode=bsm,r=0.75,sx=2,sy=2"
#: What was tried beside the presets, by a name for the table.
PLANS: dict[str, str] = {
    "fast, proportional": f"{_FAST_KV} {_FAST_Q}",
    "hq, proportional": f"kv12:mode=bsm,r=0.6,sx=2,sy=2{_P} q34:mode=bsm,r=0.8,sx=4,sy=4",
    "fast, proportional, matched once": f"{_FAST_KV} {_FAST_Q} reuse1234=40",
    "fast, proportional, keys of 3 and 4": f"{_FAST_KV} {_FAST_Q} {_KV3.replace('kv3', 'kv34')}",
    "balanced without cells in 1": f"q3:{_N2D} {_FAST_KV} {_Q4} {_KV3.replace('0.75', '0.5')}",
    "balanced, fewer keys in 3": f"q13:{_N2D} {_FAST_KV} {_Q4} {_KV3}",
    "turbo, 2x2 in all stages": f"q1234:{_N2D} {_FAST_KV} {_KV3} reuse3=4",
    "turbo, 2x2 in 2": f"q1:mode=n2d,sx=4,sy=4 q234:{_N2D} {_FAST_KV} {_KV3} reuse3=4",
    "turbo, 4x2 in 1": f"q1:mode=n2d,sx=4,sy=2 q34:{_N2D} {_FAST_KV} {_KV3} reuse3=4",
    "image at 0.9": "input_scale=0.9",
}


def accuracy(root: str, images: int | None, plans: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """MIoU and agreement with `none` of each plan."""
    # Few at a time: each is a compiled network in memory.
    for few in _groups(plans, "none", 5):
        words = ["eval", "--data", "camvid", "--root", root, "--split", "test", "--quiet"]
        words += [
            "--runtime",
            "openvino",
            "--precision",
            "f32",
            "--merge",
            ";".join(("none", *few)),
        ]
        words += ["--images", str(images)] if images else []
        rows = _run(words)
        for plan, row in zip(few, rows, strict=True):
            found = {key: row[key] for key in ("agreement", "miou", "images")}
            found["lost"] = round(rows[0]["miou"] - row["miou"], 2)
            yield plan, found


def latency(rounds: int, plans: Sequence[str]) -> Iterator[tuple[str, Row]]:
    """Milliseconds of each plan, and its share of the time of `fast`; None where withheld."""
    for model in MODELS:
        # Those that are compared stay in memory, 3 GB each for B5.
        for few in _groups(plans, "fast", 3):
            words = ["bench", "--model", model, "--size", "x".join(map(str, SIZE)), "--quiet"]
            words += ["--runtime", "openvino", "--precision", "f32", "--rounds", str(rounds)]
            rows = _run([*words, "--merge", ";".join(few)])
            for plan, row in zip(few, rows, strict=True):
                share = row["speed_up"] and round(1 / row["speed_up"], 3)
                yield plan, {f"median_ms_{model}": row["median_ms"], f"of_fast_{model}": share}


def arithmetic(plan: str) -> Row:
    """What one image takes, in 1e9 multiply-accumulates."""
    configs = {model: SegformerConfig.of_size(model, num_outputs=19) for model in MODELS}
    return {
        f"gmacs_{model}": round(cost(config, MergePlan.parse(plan), SIZE).macs / 1e9, 2)
        for model, config in configs.items()
    }


def _groups(plans: Sequence[str], reference: str, size: int) -> Iterator[list[str]]:
    """The plans in groups of so many, the reference before each."""
    others = [plan for plan in plans if plan != reference]
    for first in range(0, len(others), size):
        yield [reference, *others[first : first + size]]


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
    parser.add_argument("--root", required=True, help="folder with CamVid's splits")
    parser.add_argument("--images", type=int, help="only the first so many")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each plan")
    parser.add_argument("--only", choices=("accuracy", "latency"))
    parser.add_argument("--json", type=Path, default=RESULTS)
    parser.add_argument("--plot", type=Path, default=PICTURE)
    args = parser.parse_args()
    # A plan that became a preset has the preset's name.
    named = {MergePlan.parse(text).name: name for name, text in PLANS.items()}
    plans = {**named, **{name: name for name in PRESETS}}
    before = json.loads(args.json.read_text()) if args.json.exists() else []
    rows = {plan: {"name": name, "merge": plan} for plan, name in plans.items()}
    for row in before:
        if row["merge"] in rows:
            rows[row["merge"]] = row | rows[row["merge"]]

    def keep(found: Iterator[tuple[str, Row]]) -> None:
        for plan, values in found:
            rows[plan] |= values | machine()
            args.json.write_text(json.dumps(list(rows.values()), indent=1) + "\n")

    keep((plan, arithmetic(plan)) for plan in plans)
    if args.only != "latency":
        keep(accuracy(args.root, args.images, list(plans)))
    if args.only != "accuracy":
        keep(latency(args.rounds, list(plans)))
    draw(list(rows.values()), args.plot)


if __name__ == "__main__":
    main()
