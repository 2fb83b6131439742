"""What each preset costs in accuracy on CamVid: mIoU, and label agreement with `none`.

    python benchmarks/agreement.py --data ../shared/data/camvid

Whole images at their own size (360x480), single scale, f32, without retraining.
"""

from __future__ import annotations

import argparse
import datetime
import json
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import track
from rich.table import Table

import segformerpp as sfpp


def main() -> None:
    """Read the arguments, predict, report."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with CamVid's splits")
    parser.add_argument("--split", default="test")
    parser.add_argument("--model", default="camvid-b0")
    parser.add_argument("--runtime", default="openvino")
    parser.add_argument("--json", type=Path, help="file for the figures")
    args = parser.parse_args()
    paths = sorted((args.data / args.split).iterdir())
    truths = [
        np.asarray(Image.open(args.data / f"{args.split}annot" / f"{p.stem}.png")) for p in paths
    ]

    rows = []
    reference: list[np.ndarray] = []
    table = Table("plan", "mIoU %", "agreement with none %", title=f"CamVid {args.split}")
    for plan in sfpp.PRESETS:
        predict = sfpp.Predictor(args.model, merge=plan, runtime=args.runtime, precision="f32")
        results = track(predict.stream(paths), plan, total=len(paths), transient=True)
        maps = [result.label_map for result in results]
        reference = reference or maps
        k = len(predict.labels)
        confusion = np.zeros((k, k), np.int64)
        for truth, found in zip(truths, maps, strict=True):
            valid = truth < k
            index = truth[valid].astype(np.int64) * k + found[valid]
            confusion += np.bincount(index, minlength=k * k).reshape(k, k)
        true = np.diag(confusion)
        iou = 100 * true / np.maximum(confusion.sum(0) + confusion.sum(1) - true, 1)
        pairs = zip(maps, reference, strict=True)
        agreement = 100 * float(np.mean([(a == b).mean() for a, b in pairs]))
        table.add_row(plan, f"{iou.mean():.2f}", f"{agreement:.2f}")
        rows.append(
            {
                **predict.facts,
                "data": f"camvid {args.split}",
                "images": len(paths),
                "miou": round(float(iou.mean()), 2),
                "per_class_iou": {
                    label: round(float(v), 2) for label, v in zip(predict.labels, iou, strict=True)
                },
                "agreement": round(agreement, 2),
                "date": datetime.date.today().isoformat(),
            }
        )
    Console().print(table)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
