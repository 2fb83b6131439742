"""Time our network beside transformers' SegFormer, with the same weights, in one interleaved run.

    python benchmarks/peers.py --size 1024x1024 --json benchmarks/results/peers.json

The peer runs in PyTorch (eager, scaled_dot_product_attention) and converted to OpenVINO at the
same precision; ours in the same runtimes. Weights are random. Every round runs every candidate
once, in another order; the figures are medians over the rounds. Where a candidate's middle half of
rounds spreads by more than a tenth of its median, its figure is withheld: the machine was busy.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import platform
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from segformerpp import checkpoints, runtimes
from segformerpp.models import Segformer, SegformerConfig

MAX_SPREAD = 0.1
PEER = "transformers"
Run = Callable[[np.ndarray], object]


def candidates(
    size: str, plans: list[str], names: list[str], shape: tuple[int, ...], precision: str
) -> dict[tuple[str, str], Run]:
    """What is timed, by runtime and plan; the plan of the peer is called ``transformers``."""
    import transformers

    model = Segformer(SegformerConfig.of_size(size)).eval()
    with tempfile.TemporaryDirectory() as folder:
        checkpoints.save_pretrained(model, folder, layout="huggingface")
        peer = transformers.SegformerForSemanticSegmentation.from_pretrained(
            folder, attn_implementation="sdpa"
        ).eval()
    made: dict[tuple[str, str], Run] = {}
    for name in names:
        make = {"torch": _peer_in_torch, "openvino": _peer_in_openvino}[name]
        made[name, PEER] = make(peer, shape, precision)
        for plan in plans:
            ours = copy.deepcopy(model)
            ours.merge_plan = plan
            made[name, plan] = runtimes.create(ours, name, precision, "cpu")
    return made


def _peer_in_torch(peer: torch.nn.Module, shape: tuple[int, ...], precision: str) -> Run:
    @torch.inference_mode()
    def run(x: np.ndarray) -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return peer(torch.from_numpy(x)).logits

    return run


def _peer_in_openvino(peer: torch.nn.Module, shape: tuple[int, ...], precision: str) -> Run:
    import openvino as ov

    with torch.no_grad():
        converted = ov.convert_model(peer, example_input=torch.zeros(shape), input=list(shape))
    hint = {"f32": ov.Type.f32, "bf16": ov.Type.bf16}[precision]
    options = {"INFERENCE_PRECISION_HINT": hint, "PERFORMANCE_HINT": "LATENCY"}
    return ov.Core().compile_model(converted, "CPU", options)


def processor() -> str:
    """What the machine computes with."""
    info = Path("/proc/cpuinfo")
    names = info.read_text().split("\n") if info.exists() else []
    return next((n.partition(":")[2].strip() for n in names if "model name" in n), "") or (
        platform.processor()
    )


def spread(times: list[float]) -> float:
    """Width of the middle half over the median."""
    lower, middle, upper = statistics.quantiles(times, n=4)
    return (upper - lower) / middle


def main() -> None:
    """Read the arguments, measure, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="b0", help="b0 to b5")
    parser.add_argument("--size", default="1024x1024", help="height x width")
    parser.add_argument("--merge", nargs="+", default=["none", "hq", "fast", "2x2"])
    parser.add_argument("--runtime", nargs="+", default=["torch", "openvino"])
    parser.add_argument("--precision", default="f32", help="f32 or bf16")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="file for the figures; rows are added to it")
    args = parser.parse_args()
    height, width = (int(side) for side in args.size.split("x"))
    x = np.random.default_rng(0).standard_normal((1, 3, height, width), dtype=np.float32)
    timed = candidates(args.model, args.merge, args.runtime, x.shape, args.precision)

    times: dict[tuple[str, str], list[float]] = {key: [] for key in timed}
    order = list(timed)
    for turn in range(-2, args.rounds):  # two rounds to warm up
        random.shuffle(order)
        for key in order:
            start = time.perf_counter()
            timed[key](x)
            if turn >= 0:
                times[key].append(time.perf_counter() - start)

    rows: list[dict[str, Any]] = []
    title = f"{args.model} {args.size} {args.precision}, {torch.get_num_threads()} threads, "
    table = Table("runtime", "plan", "median ms", "p95 ms", "of peer", title=title + processor())
    for (runtime, plan), values in times.items():
        median, p95 = statistics.median(values), float(np.percentile(values, 95))
        peer = times[runtime, PEER]
        ratio = median / statistics.median(peer) if spread(peer) <= MAX_SPREAD else None
        if spread(values) > MAX_SPREAD:
            table.add_row(runtime, plan, "withheld", f"spread {spread(values):.0%}", "")
            continue
        of_peer = "withheld" if ratio is None else f"{ratio:.2f}"
        table.add_row(runtime, plan, f"{1e3 * median:.0f}", f"{1e3 * p95:.0f}", of_peer)
        rows.append(
            {
                "model": args.model,
                "size": args.size,
                "batch": 1,
                "merge": plan,
                "runtime": runtime,
                "precision": args.precision,
                "device": "cpu",
                "threads": torch.get_num_threads(),
                "median_ms": round(1e3 * median, 1),
                "p95_ms": round(1e3 * p95, 1),
                "images_per_s": round(1 / median, 3),
                "ratio_to_peer": None if ratio is None else round(ratio, 3),
                "processor": processor(),
                "torch": torch.__version__,
                "date": datetime.date.today().isoformat(),
            }
        )
    Console().print(table)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        before = json.loads(args.json.read_text()) if args.json.exists() else []
        args.json.write_text(json.dumps(before + rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
