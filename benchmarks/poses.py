"""What each preset costs in accuracy on Leeds Sports Poses' test images: PCK, agreement, speed.

    python benchmarks/poses.py --root ../shared/data/lsp
    python benchmarks/poses.py --root ../shared/data/lsp --trained hq=hq/best fast=fast/best

`lsp-b0` with the people's own boxes, without the flip test, f32 in OpenVINO, without retraining;
and models that were trained with a plan, each with that plan.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import segformerpp as sfpp
from segformerpp import cli

RESULTS = Path(__file__).parent / "results" / "poses.json"


def main() -> None:
    """Run `segformerpp eval` for the bundled model, and for each that was trained with a plan."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", required=True, help="folder with LSP in COCO's layout")
    parser.add_argument("--model", default="lsp-b0", help="trained without merging")
    parser.add_argument("--trained", nargs="*", default=[], metavar="PLAN=MODEL")
    parser.add_argument("--images", type=int, help="only the first so many")
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args()
    # A plan that shrinks the image would shrink the person: that is what --size is for.
    plans = [name for name, plan in sfpp.PRESETS.items() if plan.input_scale == 1]
    rows = [
        {**row, "trained_with": "none"}
        for row in _evaluated(args.root, args.model, plans, args.images)
    ]
    for pair in args.trained:
        plan, _, model = pair.partition("=")
        [row] = _evaluated(args.root, model, [plan], args.images)
        rows.append({**row, "model": args.model, "trained_with": plan})
    args.json.write_text(json.dumps(rows, indent=1) + "\n")


def _evaluated(root: str, model: str, plans: list[str], images: int | None) -> list[dict[str, Any]]:
    """What `segformerpp eval` says of a model with each plan."""
    with TemporaryDirectory() as folder:
        part = Path(folder, "rows.json")
        words = ["eval", "--data", "coco", "--root", root, "--split", "test", "--model", model]
        words += ["--merge", ",".join(plans), "--runtime", "openvino", "--precision", "f32"]
        words += ["--json", str(part), *(["--images", str(images)] if images else [])]
        if cli.main(words) != 0:
            raise SystemExit(1)
        return json.loads(part.read_text())


if __name__ == "__main__":
    main()
