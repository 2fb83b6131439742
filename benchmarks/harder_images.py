"""How many labels plans change on harder images: CamVid's val as it is and altered, and its test.

    python benchmarks/harder_images.py camvid --plans "hq;2x2;turbo;fast;plan.yaml"

Val shows the drive that train shows, test shows others. Percent of the labels that differ from
those under `none`, `camvid-b0` in f32 in OpenVINO.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.progress import track

from segformerpp import Predictor
from segformerpp.benchmark.run import machine
from segformerpp.data.images import read_image
from segformerpp.data.outputs import write_rows
from segformerpp.plans import MergePlan
from segformerpp.terminal import print_table
from segformerpp.tuning.images import noisy

RESULTS = Path(__file__).parent / "results" / "harder_images.json"
#: Every so many-th image.
VAL, TEST = 2, 4


def gamma(power: float) -> Callable[[np.ndarray], np.ndarray]:
    """Darker above 1, lighter below."""
    table = (255 * (np.arange(256) / 255) ** power).round().astype(np.uint8)
    return lambda image: cv2.LUT(image, table)


def enlarged(image: np.ndarray) -> np.ndarray:
    """The middle, at twice its size."""
    height, width = image.shape[:2]
    middle = image[height // 4 : -(height // 4), width // 4 : -(width // 4)]
    return cv2.resize(middle, (width, height))


CHANGES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "val": lambda image: image,
    "noise": lambda image: noisy(image, 10, seed=0),
    "blur": lambda image: cv2.GaussianBlur(image, (0, 0), 1.5),
    "darker": gamma(2),
    "lighter": gamma(0.5),
    "less contrast": lambda image: image // 2 + 64,
    "mirrored": lambda image: np.ascontiguousarray(image[:, ::-1]),
    "twice enlarged": enlarged,
}


def main() -> None:
    """Predict, write the rows, show them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("root", type=Path, help="CamVid")
    parser.add_argument("--plans", default="hq;2x2;turbo;balanced;fast", help="; between")
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args()
    plans = {name: MergePlan.parse(name) for name in args.plans.split(";")}
    none, *predictors = (
        Predictor("camvid-b0", merge=plan, runtime="openvino", precision="f32")
        for plan in (MergePlan(), *plans.values())
    )
    val, test = (sorted(args.root.joinpath(split).iterdir()) for split in ("val", "test"))
    rows: list[dict[str, Any]] = []
    for name, change in [*CHANGES.items(), ("test", CHANGES["val"])]:
        lost = []
        for path in track(test[::TEST] if name == "test" else val[::VAL], name):
            image = change(read_image(path))
            labels = none(image).label_map
            lost.append([(p(image).label_map != labels).mean() for p in predictors])
        percent = 100 * np.mean(lost, axis=0)
        for plan, value in zip(plans.values(), percent, strict=True):
            row = {"image": name, "images": len(lost), "merge": plan.name}
            rows.append(row | {"labels_changed": round(float(value), 2), **machine()})
        write_rows(args.json, rows)
    shown = [
        [name, *(f"{r['labels_changed']:.2f}" for r in rows if r["image"] == name)]
        for name in dict.fromkeys(row["image"] for row in rows)
    ]
    print_table(["images", *plans], shown)


if __name__ == "__main__":
    main()
