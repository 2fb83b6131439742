"""What each preset costs in accuracy on CamVid's test images: mIoU, agreement with `none`, speed.

    python benchmarks/accuracy.py --root ../shared/data/camvid

Whole images, single scale, f32 in OpenVINO, without retraining: at their own size (360x480), and
upsampled by two for the network.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import segformerpp as sfpp
from segformerpp import cli

RESULTS = Path(__file__).parent / "results" / "accuracy.json"


def main() -> None:
    """Run `segformerpp eval` for both sizes."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", required=True, help="folder with CamVid's splits")
    parser.add_argument("--images", type=int, help="only the first so many")
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args()
    rows = []
    with TemporaryDirectory() as folder:
        part = Path(folder, "rows.json")
        for size in ([], ["--size", "720x960"]):
            words = ["eval", "--data", "camvid", "--root", args.root, "--split", "test", *size]
            words += ["--merge", ",".join(sfpp.PRESETS), "--runtime", "openvino"]
            words += ["--precision", "f32", "--json", str(part)]
            words += ["--images", str(args.images)] if args.images else []
            if cli.main(words) != 0:
                raise SystemExit(1)
            rows += json.loads(part.read_text())
    args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
