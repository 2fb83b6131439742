"""Time transformers' SegFormer as it is, accelerated in place, and ours in PyTorch: same weights.

    python benchmarks/accelerated.py --size 1024x1024 --json benchmarks/results/accelerated.json

All three run eagerly in PyTorch on the processor (transformers' with
scaled_dot_product_attention), each in a fresh process of its own, in turns whose order changes from
round to round; weights are random. The bar: accelerated takes at most 10 % more than our own
runtime, under every plan. Not called after what it times, `accelerate`: transformers would take a
file of that name for the package.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import peers
from rich.progress import Progress

import segformerpp as sfpp
from segformerpp.arguments import parse_size
from segformerpp.benchmark.run import machine
from segformerpp.benchmark.timing import Timing, interleave
from segformerpp.benchmark.worker import Worker
from segformerpp.terminal import print_table

AS_IT_IS, ACCELERATED, OURS = "transformers", "accelerated", "torch"
#: How much more than our own runtime the accelerated model may take, over what that takes.
BAR = 1.1
Key = tuple[str, str]  # what runs, and its plan


def in_place(
    folder: str, size: tuple[int, int], precision: str, threads: int, merge: str
) -> peers.Prepared:
    """The peer in PyTorch, accelerated."""
    import torch

    torch.set_num_threads(threads)
    model = sfpp.accelerate(peers.load(folder), merge)
    x = torch.from_numpy(peers.images(size))

    @torch.inference_mode()
    def run() -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return model(x).logits

    return run, {}


def start(args: argparse.Namespace, folder: Path, stack: ExitStack) -> dict[Key, Worker]:
    """A process for each candidate."""
    size, here = parse_size("size", args.size), [Path(__file__).parent]
    common = {"size": size, "precision": args.precision, "threads": args.threads}
    theirs = {"folder": str(folder / "theirs"), **common}
    ours = {"model": str(folder / "ours"), "batch": 1, "runtime": "torch", "device": "cpu"}
    ours |= {"offline": True, "revision": None, **common}
    as_it_is = Worker("peers:in_torch", {**theirs, "converted": ""}, here)
    workers = {(AS_IT_IS, "none"): stack.enter_context(as_it_is)}
    for plan in args.merge:
        accelerated = Worker("accelerated:in_place", {**theirs, "merge": plan}, here)
        workers[ACCELERATED, plan] = stack.enter_context(accelerated)
        network = Worker("segformerpp.benchmark.candidates:network", {**ours, "merge": plan})
        workers[OURS, plan] = stack.enter_context(network)
    return workers


def rows(
    args: argparse.Namespace, timings: dict[Key, Timing], memory: dict[Key, float | None]
) -> list[dict[str, Any]]:
    """A row for each candidate, with its time over that of transformers' and of our own."""

    def ratio(timing: Timing, to: Timing) -> float | None:
        uncertain = timing.meaningless or to.meaningless
        return None if uncertain else round(timing.median / to.median, 3)

    found = []
    for (runtime, plan), timing in timings.items():
        sure = not timing.meaningless
        row = {
            "model": args.model,
            "size": args.size,
            "batch": 1,
            "merge": plan,
            "runtime": runtime,
            "precision": args.precision,
            "device": "cpu",
            "threads": args.threads,
            "median_ms": round(1e3 * timing.median, 1) if sure else None,
            "p95_ms": round(1e3 * timing.p95, 1) if sure else None,
            "images_per_s": round(1 / timing.median, 3) if sure else None,
            "ratio_to_peer": ratio(timing, timings[AS_IT_IS, "none"]),
            "ratio_to_ours": None,
            "uncertainty": round(timing.uncertainty, 3),
            "withheld": timing.meaningless,
            "peak_memory_mb": memory[runtime, plan],
            **machine(),
        }
        if runtime == ACCELERATED:
            row["ratio_to_ours"] = ratio(timing, timings[OURS, plan])
        found.append(row)
    return found


def main() -> None:
    """Read the arguments, measure, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="b0", help="b0 to b5")
    parser.add_argument("--size", default="1024x1024", help="height x width")
    parser.add_argument("--merge", nargs="+", default=["none", "hq", "fast", "2x2"])
    parser.add_argument("--precision", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="file for the figures; rows are added to it")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        os.environ["SEGFORMERPP_CACHE"] = str(Path(name) / "cache")
        peers.save_weights(args.model, Path(name))
        workers = start(args, Path(name), stack)
        with Progress(transient=True) as progress:
            task = progress.add_task("measuring", total=len(workers) * args.rounds)
            timings = interleave(workers, args.rounds, lambda: progress.advance(task))
        found = rows(args, timings, {k: w.facts["peak_memory_mb"] for k, w in workers.items()})

    def cell(value: float | None) -> str:
        return "" if value is None else f"{value:g}"

    columns = ("runtime", "merge", "median_ms", "ratio_to_peer", "ratio_to_ours", "peak_memory_mb")
    lines = [[str(r[c]) for c in columns[:2]] + [cell(r[c]) for c in columns[2:]] for r in found]
    print_table(["", "plan", "median ms", "of transformers", "of ours", "peak MB"], lines)
    for row in found:
        if row["ratio_to_ours"] and row["ratio_to_ours"] > BAR:
            print(f"{row['merge']}: takes {row['ratio_to_ours']:g} times what our runtime does")
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        before = json.loads(args.json.read_text()) if args.json.exists() else []
        now = {(row["model"], row["size"], row["precision"]) for row in found}
        kept = [r for r in before if (r["model"], r["size"], r["precision"]) not in now]
        args.json.write_text(json.dumps(kept + found, indent=1) + "\n")


if __name__ == "__main__":
    main()
