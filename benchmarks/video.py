"""What everything around the network costs for a video, beside the network alone.

    python benchmarks/video.py highway.mp4 --json benchmarks/results/video.json
    python benchmarks/video.py highway.mp4 --minutes 10

In turns: the network alone, on one frame in memory, frame by frame and with several at the same
time (the faster counts); and what `segformerpp predict highway.mp4` does: decode, pre-process,
resize, argmax, overlay, encode, copy the sound, overlapping the network.
With --minutes, the video is looped as one long one instead, and the memory of the process watched.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from threading import Event
from typing import Any

import bare_network
from rich.console import Console
from rich.table import Table

import segformerpp as sfpp
from segformerpp.arguments import parse_size
from segformerpp.benchmark.run import machine
from segformerpp.benchmark.timing import interleave
from segformerpp.data.video import Frame, VideoReader
from segformerpp.tasks.segmentation import fit, normalise
from segformerpp.video import process_video
from segformerpp.videos_folder import VIDEO_OUTPUTS

#: From then on memory is to stay level: the encoder alone holds dozens of frames, which takes a
#: while to fill on a machine that has other things to do.
_SETTLED_SECONDS, _SETTLED_FRAMES = 120.0, 300
_SAMPLE_SECONDS = 1.0


class Looped(VideoReader):
    """A video that begins again whenever it ends."""

    def __init__(self, source: Path) -> None:
        super().__init__(source)
        self.audio = None  # it would end before the video does

    def __iter__(self) -> Iterator[Frame]:
        """All frames, again and again, with times that go on."""
        begin = Fraction(0)
        while True:
            frame: Frame | None = None
            for frame in super().__iter__():
                yield replace(frame, time=begin + frame.time)
            assert frame is not None
            begin += frame.time + frame.duration


def whole_video(
    predictor: sfpp.Predictor, video: Path, count: int, rows: bool, out: Path
) -> list[float]:
    """Seconds from file to file, for each of the first frames."""
    end = count / VideoReader(video).rate
    start = time.perf_counter()
    reader = VideoReader(video, end=Fraction(end))
    steps = list(process_video(predictor, reader, {out: VIDEO_OUTPUTS["overlay"]}, rows=rows))
    return [(time.perf_counter() - start) / len(steps)]


def resident_mb() -> float:
    """How much memory this process has at present (Linux)."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


def watch_memory(predictor: sfpp.Predictor, video: Path, minutes: float) -> dict[str, Any]:
    """Peak memory of a looped video until it has settled, and after."""
    stop = Event()
    start = time.monotonic()
    frames = 0
    samples: list[tuple[float, int, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        outputs = {Path(folder, "loop.mp4"): VIDEO_OUTPUTS["overlay"]}
        for _ in process_video(predictor, Looped(video), outputs, stop, rows=True):
            frames += 1
            passed = time.monotonic() - start
            if not samples or passed - samples[-1][0] >= _SAMPLE_SECONDS:
                samples.append((round(passed, 1), frames, round(resident_mb(), 1)))
            if passed >= 60 * minutes:
                stop.set()
    early = [seconds < _SETTLED_SECONDS or count < _SETTLED_FRAMES for seconds, count, _ in samples]
    before = max(mb for (*_, mb), is_early in zip(samples, early, strict=True) if is_early)
    after = [mb for (*_, mb), is_early in zip(samples, early, strict=True) if not is_early]
    return {
        "minutes": minutes,
        "frames": frames,
        "peak_memory_mb": before,
        "peak_memory_settled_mb": max(after, default=None),
        "growth": round(max(after) / before - 1, 4) if after else None,
        "samples": samples[:: max(len(samples) // 60, 1)],
    }


def main() -> None:
    """Read the arguments, measure, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("video", type=Path)
    parser.add_argument("--model", default="camvid-b0")
    parser.add_argument("--merge", nargs="+", default=["none", "hq"])
    parser.add_argument("--runtime", default="auto")
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--size", help="HxW that frames are resized to for the network")
    parser.add_argument("--frames", type=int, default=50, help="of the video, in each round")
    parser.add_argument("--rows", action="store_true", help="work out what --json writes, too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--minutes", type=float, help="watch the memory for so long instead")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    if args.minutes is not None and args.minutes <= _SETTLED_SECONDS / 60:
        parser.error(f"--minutes: more than {_SETTLED_SECONDS / 60:g}")

    network_size = parse_size("size", args.size) if args.size else None
    rows: list[dict[str, Any]] = []
    table = Table("plan", "network fps", "video fps", "share of the network's")
    frame = next(iter(VideoReader(args.video))).image
    size = f"{frame.shape[0]}x{frame.shape[1]}"
    with tempfile.TemporaryDirectory() as folder:
        for plan in args.merge:
            predictor = sfpp.Predictor(
                args.model,
                merge=plan,
                runtime=args.runtime,
                precision=args.precision,
                size=network_size,
            )
            seen = args.size or size
            facts = {**predictor.facts, "size": seen, "video_size": size, **machine()}
            if args.minutes is not None:
                rows.append(facts | watch_memory(predictor, args.video, args.minutes))
                continue
            x = normalise(fit(frame, network_size), predictor.metadata)[None]
            out = Path(folder, "out.mp4")
            candidates: dict[str, Callable[[], list[float]]] = {
                **bare_network.candidates(predictor, x, args.frames),
                "video": partial(whole_video, predictor, args.video, args.frames, args.rows, out),
            }
            interleave(candidates, 1)  # to warm up
            timings = interleave(candidates, args.rounds)
            compared, alone = bare_network.fastest(timings)
            whole = timings["video"]
            meaningless = alone.meaningless or whole.meaningless
            share = None if meaningless else round(alone.median / whole.median, 3)
            rows.append(
                {
                    **facts,
                    "images": args.frames,
                    "compared_with": compared,
                    "network_fps": round(1 / alone.median, 2),
                    "video_fps": round(1 / whole.median, 2),
                    "share": share,
                    "withheld": meaningless,
                    "uncertainty": [round(alone.uncertainty, 3), round(whole.uncertainty, 3)],
                    "rounds": [
                        [round(1e3 * seconds[0], 1) for seconds in timing.rounds]
                        for timing in (alone, whole)
                    ],
                }
            )
            rates = (f"{1 / alone.median:.2f}", f"{1 / whole.median:.2f}")
            table.add_row(plan, *rates, "withheld" if share is None else f"{share:.2f}")
    if args.minutes is None:
        Console().print(table)
    else:
        for row in rows:
            keys = ("minutes", "frames", "peak_memory_mb", "peak_memory_settled_mb")
            Console().print({key: row[key] for key in ("merge", *keys, "growth")})
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
