"""What everything around the network costs for a folder of PNG images, beside the network alone.

    python benchmarks/folder.py --json benchmarks/results/folder.json

In turns: the network alone, on inputs in memory, one by one and several at the same time (the
faster counts); and what `segformerpp predict FOLDER --save labels` does: decode, pre-process,
resize, argmax, write label maps as PNG, overlapping the network. The images are crops of
samples/highway.png, enlarged, with a little noise as cameras have it (noise makes PNG files large
and slow), unless --images names a folder of your own.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import bare_network
import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import segformerpp as sfpp
from segformerpp.benchmark.run import machine
from segformerpp.benchmark.timing import interleave
from segformerpp.data.files import ImageFile, find_images
from segformerpp.data.images import read_image
from segformerpp.errors import ImageError
from segformerpp.results_folder import ResultsFolder, segment_files
from segformerpp.tasks.segmentation import normalise

SAMPLE = Path(__file__).parents[1] / "samples" / "highway.png"
_NOISE = 2.0  # standard deviation, of 255


def make_images(folder: Path, count: int, size: tuple[int, int]) -> None:
    """Write images that look like a camera's."""
    height, width = size
    rng = np.random.default_rng(0)
    street = Image.open(SAMPLE).convert("RGB")
    for i in range(count):
        left, top = int(rng.integers(street.width // 4)), int(rng.integers(street.height // 4))
        box = (left, top, left + 3 * street.width // 4, top + 3 * street.height // 4)
        pixels = np.asarray(street.resize((width, height), Image.Resampling.BICUBIC, box))
        noisy = pixels + rng.normal(0, _NOISE, pixels.shape)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{i:03}.png")


def refuse(error: ImageError) -> None:
    """No image may fail."""
    raise error


def main() -> None:
    """Read the arguments, measure, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="camvid-b0")
    parser.add_argument("--merge", nargs="+", default=["none", "hq"])
    parser.add_argument("--size", default="1024x2048", help="height x width of the images")
    parser.add_argument("--count", type=int, default=8, help="of images")
    parser.add_argument("--images", type=Path, help="folder to use instead")
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    height, width = (int(side) for side in args.size.split("x"))

    rows: list[dict[str, Any]] = []
    table = Table("plan", "network ms", "folder ms", "on top", "MB of each PNG")
    with tempfile.TemporaryDirectory() as name, Progress(transient=True) as progress:
        source = args.images or Path(name, "images")
        if not args.images:
            source.mkdir()
            make_images(source, args.count, (height, width))
        files = find_images([source])
        megabytes = statistics.mean(file.path.stat().st_size for file in files) / 1e6
        for plan in args.merge:
            predictor = sfpp.Predictor(
                args.model, merge=plan, runtime=args.runtime, precision=args.precision
            )
            x = normalise(read_image(files[0].path), predictor.metadata)[None]
            candidates: dict[str, Callable[[], list[float]]] = {
                **bare_network.candidates(predictor, x, len(files)),
                "folder": partial(whole_folder, predictor, files, Path(name, plan)),
            }
            task = progress.add_task(plan, total=len(candidates) * args.rounds)
            interleave(candidates, 1)  # to warm up
            timings = interleave(candidates, args.rounds, partial(progress.advance, task))
            compared, alone = bare_network.fastest(timings)
            whole = timings["folder"]
            meaningless = alone.meaningless or whole.meaningless
            on_top = None if meaningless else round(whole.median / alone.median - 1, 3)
            rows.append(
                {
                    **predictor.facts,
                    "size": f"{x.shape[2]}x{x.shape[3]}",
                    "images": len(files),
                    "compared_with": compared,
                    "network_ms": round(1e3 * alone.median, 1),
                    "folder_ms": round(1e3 * whole.median, 1),
                    "on_top": on_top,
                    "withheld": meaningless,
                    "uncertainty": [round(alone.uncertainty, 3), round(whole.uncertainty, 3)],
                    **machine(),
                }
            )
            share = "withheld" if on_top is None else f"{on_top:.1%}"
            times = (f"{1e3 * alone.median:.0f}", f"{1e3 * whole.median:.0f}")
            table.add_row(plan, *times, share, f"{megabytes:.1f}")
    Console().print(table)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


def whole_folder(predictor: sfpp.Predictor, files: list[ImageFile], out: Path) -> list[float]:
    """Seconds from file to file, for each image."""
    results = ResultsFolder(str(out), ["labels"], None, False)
    start = time.perf_counter()
    done = list(segment_files(predictor, files, results, refuse))
    assert len(done) == len(files)
    return [(time.perf_counter() - start) / len(files)]


if __name__ == "__main__":
    main()
