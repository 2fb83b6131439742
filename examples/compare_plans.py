"""Segment one image under several merge plans and set the results side by side.

python examples/compare_plans.py samples/highway.png --merge none hq --out demo
"""

from __future__ import annotations

import argparse
import re
import statistics
import time
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import segformerpp as sfpp
from segformerpp.data.images import write_image

ROUNDS = 5
BAR = 40  # height of the title bar, in pixels


def titled(picture: Image.Image, title: str) -> Image.Image:
    """The picture with a line of text above it."""
    out = Image.new("RGB", (picture.width, picture.height + BAR), "white")
    out.paste(picture, (0, BAR))
    ImageDraw.Draw(out).text((10, 8), title, "black", ImageFont.load_default(22))
    return out


def main() -> None:
    """Read the arguments, segment, write, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("image", type=Path)
    parser.add_argument("--model", default="camvid-b0", help="bundled name, file, folder or hub id")
    parser.add_argument("--merge", nargs="+", default=["none", "hq"], help="plans to compare")
    parser.add_argument("--out", type=Path, default=Path("demo"), help="folder for the pictures")
    args = parser.parse_args()

    predictors = {plan: sfpp.Predictor(args.model, merge=plan) for plan in args.merge}
    results = {plan: predict(args.image) for plan, predict in predictors.items()}
    times: dict[str, list[float]] = {plan: [] for plan in args.merge}
    for _ in range(ROUNDS):  # in turns, so that a busy moment hits every plan
        for plan, predict in predictors.items():
            start = time.perf_counter()
            predict(args.image)
            times[plan].append(time.perf_counter() - start)

    first = results[args.merge[0]].label_map
    pictures = []
    for plan, result in results.items():
        name = re.sub(r"[^\w=,.+-]+", "-", plan)  # a plan may be a path or a keyword string
        written = result.save(args.out, f"{args.image.stem}_{name}", ("overlay", "labels"))
        ms = 1000 * statistics.median(times[plan])
        agreement = 100 * (result.label_map == first).mean()
        line = f"{plan}: {ms:.0f} ms"
        if plan != args.merge[0]:
            line += f", {agreement:.1f} % of the pixels labelled as with {args.merge[0]}"
        print(line, *(f"  {path}" for path in written), sep="\n")
        pictures.append(titled(result.plot(legend=False), line))

    side_by_side = Image.new("RGB", (sum(p.width for p in pictures), pictures[0].height))
    left = 0
    for picture in pictures:
        side_by_side.paste(picture, (left, 0))
        left += picture.width
    path = args.out / f"{args.image.stem}_side_by_side.png"
    write_image(path, side_by_side)
    print("side by side", f"  {path}", sep="\n")
    print(f"(median of {ROUNDS} rounds, from file to label map, after one to warm up)")


if __name__ == "__main__":
    main()
