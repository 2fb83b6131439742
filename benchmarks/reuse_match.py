"""What `--reuse-match` costs: how many labels stay what they are where every frame is matched.

    python benchmarks/reuse_match.py highway.mp4 --json benchmarks/results/reuse_match.json

The first frames of a video, all of them, at a reduced size, under each plan: once with every frame
matched anew, then with the matches of every N-th frame used for those behind it, too.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

import segformerpp as sfpp
from segformerpp.arguments import parse_size
from segformerpp.benchmark.run import machine
from segformerpp.data.video import VideoReader
from segformerpp.tasks.segmentation import fit


def label_maps(predictor: sfpp.Predictor, frames: list[np.ndarray]) -> Iterator[np.ndarray]:
    """What each frame shows."""
    return (result.label_map for result in predictor.stream(frames))


def main() -> None:
    """Read the arguments, compare, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("--model", default="camvid-b0")
    parser.add_argument("--merge", nargs="+", default=["hq", "fast"])
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--size", default="270x480", help="height and width of the frames")
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--reuse-match", type=int, nargs="+", default=[1, 2, 4, 8, 16])
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()

    size = parse_size("size", args.size)
    read = islice(VideoReader(args.video), args.frames)
    frames = [fit(frame.image, size) for frame in read]
    rows: list[dict[str, Any]] = []
    table = Table("plan", "frames that share a match", "labels that stay")
    for plan in args.merge:
        options = {"merge": plan, "runtime": args.runtime, "precision": "f32"}
        exact = list(label_maps(sfpp.Predictor(args.model, **options), frames))
        for shared in args.reuse_match:
            predictor = sfpp.Predictor(args.model, **options, reuse_match=shared)
            same = [
                np.mean(ours == theirs)
                for ours, theirs in zip(label_maps(predictor, frames), exact, strict=True)
            ]
            agreement = round(100 * float(np.mean(same)), 2)
            rows.append(
                {
                    **predictor.facts,
                    "size": args.size,
                    "video": args.video.name,
                    "frames": len(frames),
                    "reuse_match": shared,
                    "agreement": agreement,
                    "least_agreement": round(100 * float(min(same)), 2),
                    **machine(),
                }
            )
            table.add_row(plan, str(shared), f"{agreement:.2f} %")
    Console().print(table)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
