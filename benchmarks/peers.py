"""Time our network beside transformers' SegFormer, with the same weights, in one interleaved run.

    python benchmarks/peers.py --size 1024x1024 --json benchmarks/results/peers.json

Weights are random: they cost the same time. Every round runs every candidate once, in another
order; the figures are medians over the rounds. Where a candidate's middle half of rounds spreads
by more than a tenth of its median, its figure is withheld: the machine was busy.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from segformerpp import runtimes
from segformerpp.models import Segformer, SegformerConfig

MAX_SPREAD = 0.1


def transformers_eager(config: SegformerConfig) -> Callable[[np.ndarray], object]:
    """The SegFormer of transformers: PyTorch, eager, scaled_dot_product_attention."""
    import transformers

    options: dict[str, Any] = {
        "depths": list(config.depths),
        "hidden_sizes": list(config.dims),
        "decoder_hidden_size": config.head_dim,
        "num_labels": config.num_outputs,
        "attn_implementation": "sdpa",
    }
    peer = transformers.SegformerForSemanticSegmentation(transformers.SegformerConfig(**options))
    peer.eval()

    @torch.inference_mode()
    def run(x: np.ndarray) -> object:
        return peer(torch.from_numpy(x)).logits

    return run


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
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    height, width = (int(side) for side in args.size.split("x"))
    torch.set_num_threads(args.threads)

    config = SegformerConfig.of_size(args.model)
    candidates: dict[str, Callable[[np.ndarray], object]] = {}
    candidates["transformers eager"] = transformers_eager(config)
    for plan in args.merge:
        model = Segformer(config, merge=plan).eval()
        candidates[plan] = runtimes.create(model, "torch", "f32", "cpu", args.threads)
    x = np.random.default_rng(0).standard_normal((1, 3, height, width), dtype=np.float32)

    times: dict[str, list[float]] = {name: [] for name in candidates}
    order = list(candidates)
    for turn in range(-2, args.rounds):  # two rounds to warm up
        random.shuffle(order)
        for name in order:
            start = time.perf_counter()
            candidates[name](x)
            if turn >= 0:
                times[name].append(time.perf_counter() - start)

    base = statistics.median(times["transformers eager"])
    base_steady = spread(times["transformers eager"]) <= MAX_SPREAD
    rows: list[dict[str, Any]] = []
    title = f"{args.model} {args.size} f32, {args.threads} threads, {processor()}, torch eager"
    table = Table("network", "median ms", "p95 ms", "of transformers", title=title)
    for name, values in times.items():
        median = statistics.median(values)
        p95 = float(np.percentile(values, 95))
        steady = spread(values) <= MAX_SPREAD
        cells = (f"{1e3 * median:.0f}", f"{1e3 * p95:.0f}", f"{median / base:.2f}")
        table.add_row(
            name, *(cells if steady else ("withheld", f"spread {spread(values):.0%}", ""))
        )
        if steady:
            rows.append(
                {
                    "model": args.model,
                    "size": args.size,
                    "batch": 1,
                    "merge": "none" if name not in args.merge else name,
                    "runtime": name if name not in args.merge else "torch",
                    "precision": "f32",
                    "device": processor(),
                    "threads": args.threads,
                    "median_ms": round(1e3 * median, 1),
                    "p95_ms": round(1e3 * p95, 1),
                    "images_per_s": round(1 / median, 3),
                    "ratio_to_peer": round(median / base, 3) if base_steady else None,
                    "torch": torch.__version__,
                    "date": datetime.date.today().isoformat(),
                }
            )
    Console().print(table)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
