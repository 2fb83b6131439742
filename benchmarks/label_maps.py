"""From logits to a label map at the image's size: ours beside the usual way.

    python benchmarks/label_maps.py --json benchmarks/results/label_maps.json

The usual way is that of transformers' `post_process_semantic_segmentation`: PyTorch resizes all
logits to the image's size, and takes the highest. The logits are those of `camvid-b0` for
samples/highway.png (540x960) at its own size and enlarged; enlarged, there is less between its
parts than in a real image of that size. `agreement` is the percentage of the pixels with the same
label.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.table import Table

import segformerpp as sfpp
from segformerpp.arguments import Size, parse_size
from segformerpp.benchmark.run import machine
from segformerpp.benchmark.timing import interleave
from segformerpp.tasks.label_maps import from_logits

SAMPLE = Path(__file__).parents[1] / "samples" / "highway.png"


def usual(logits: np.ndarray, size: Size) -> np.ndarray:
    """Resize all logits (K, h, w), then take the highest: (H, W)."""
    x = torch.from_numpy(logits)[None]
    resized = F.interpolate(x, size=size, mode="bilinear", align_corners=False)
    return resized[0].argmax(dim=0).numpy()


def seconds(
    make: Callable[[np.ndarray, Size], np.ndarray], logits: np.ndarray, size: Size
) -> list[float]:
    """How long three runs take."""
    found = []
    for _ in range(3):
        start = time.perf_counter()
        make(logits, size)
        found.append(time.perf_counter() - start)
    return found


def main() -> None:
    """Measure, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", nargs="+", default=["540x960", "1024x1024", "1080x1920"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    torch.set_grad_enabled(False)
    predict, street = sfpp.Predictor(precision="f32"), Image.open(SAMPLE).convert("RGB")
    rows = []
    table = Table("size", "usual ms", "ours ms", "times as fast", "same %")
    for text in args.size:
        size = parse_size("size", text)
        logits, _ = predict.logits(street.resize(size[::-1], Image.Resampling.BICUBIC))
        ways = {"usual": usual, "ours": from_logits}
        candidates = {name: partial(seconds, way, logits, size) for name, way in ways.items()}
        interleave(candidates, 1)  # to warm up
        timings = interleave(candidates, args.rounds)
        same = (usual(logits, size) == from_logits(logits, size)).mean()
        usual_ms, ours_ms = (round(1e3 * timings[name].median, 2) for name in ways)
        withheld = any(timing.meaningless for timing in timings.values())
        row = {
            "model": "camvid-b0",
            "size": text,
            "usual_ms": None if withheld else usual_ms,
            "ours_ms": None if withheld else ours_ms,
            "speed_up": None if withheld else round(usual_ms / ours_ms, 1),
            "agreement": round(100 * float(same), 4),
            "withheld": withheld,
            "rounds": args.rounds,
            "threads": torch.get_num_threads(),  # of the usual way; ours takes one
            **machine(),
        }
        rows.append(row)
        figures = [str(row[key]) for key in ("usual_ms", "ours_ms", "speed_up")]
        table.add_row(
            text, *(["withheld"] * 3 if row["withheld"] else figures), f"{row['agreement']}"
        )
    Console().print(table)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
