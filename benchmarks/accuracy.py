"""What each preset costs in accuracy on CamVid's test images: mIoU, agreement with `none`, speed.

    python benchmarks/accuracy.py --root ../shared/data/camvid
    python benchmarks/accuracy.py --root ../shared/data/camvid --trained none=none/last hq=hq/last

Whole images, single scale, f32 in OpenVINO, without retraining: at their own size (360x480), and
upsampled by two for the network. Or models that were trained with a plan, each with that plan, at
the images' own size.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import segformerpp as sfpp
from segformerpp import cli

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    """Run `segformerpp eval` for both sizes, or for each model that was trained with a plan."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", required=True, help="folder with CamVid's splits")
    parser.add_argument("--images", type=int, help="only the first so many")
    parser.add_argument("--trained", nargs="+", default=[], metavar="PLAN=MODEL")
    parser.add_argument("--json", type=Path, help="default: accuracy.json or trained.json there")
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    if args.trained:
        for pair in args.trained:
            plan, equals, model = pair.partition("=")
            if not equals:
                parser.error(f"--trained: PLAN=MODEL, not {pair}")
            [row] = _evaluated(args, ["--merge", plan, "--model", model])
            rows.append({**row, "model": "camvid-b0", "trained_with": plan})
    else:
        for size in ([], ["--size", "720x960"]):
            rows += _evaluated(args, ["--merge", ",".join(sfpp.PRESETS), *size])
    file = args.json or RESULTS / ("trained.json" if args.trained else "accuracy.json")
    file.write_text(json.dumps(rows, indent=1) + "\n")


def _evaluated(args: argparse.Namespace, more: list[str]) -> list[dict[str, Any]]:
    """What `segformerpp eval` says."""
    with TemporaryDirectory() as folder:
        part = Path(folder, "rows.json")
        words = ["eval", "--data", "camvid", "--root", args.root, "--split", "test", *more]
        words += ["--runtime", "openvino", "--precision", "f32", "--json", str(part)]
        words += ["--images", str(args.images)] if args.images else []
        if cli.main(words) != 0:
            raise SystemExit(1)
        return json.loads(part.read_text())


if __name__ == "__main__":
    main()
