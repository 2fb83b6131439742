r"""Turn a run on Leeds Sports Poses into the bundled `lsp-b0`: float16 weights, and a card.

    segformerpp train --config configs/lsp-b0.yaml --root lsp --model OLD --precision bf16 --out run
    python scripts/publish_lsp.py --run run --root lsp --out src/segformerpp/weights/lsp-b0 \
        --steps 15000  # that the run took

The weights are the best on val. Nothing is chosen on test.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from segformerpp import cli
from segformerpp.checkpoints import load, save_pretrained

CARD = """
## How it was made

From the weights of `camvid-b0`, so without any pretrained on other images, on the 3600 training
images of a part of Leeds Sports Poses Extended (14 joints, one person each). First in 2550 steps of
32 people, most of them at 128x128, to the `lsp-b0` of before (48.7 % PCK@0.1 on `test`; commit
efb81fc has it); from there at 192x192 for {steps} steps of 16 people with

    segformerpp train --config configs/lsp-b0.yaml --root lsp --model OLD --steps 19000 \\
      --precision bf16

shortened twice on the way (`--resume --steps`), so that the learning rate fell faster; best on val
after 14000. Boxes are given; one scale, from the float16 weights that are here, in OpenVINO
f32, PCK@0.1 of the box's larger side: {val:.1f} % on `val`, {test:.1f} % on `test`, there with the
flip test {flipped:.1f} %; PCK@0.05 without it {fine:.1f} %. Nothing was chosen on `test`;
`segformerpp eval --data coco --root lsp --split test --model lsp-b0` says the same, with `--flip`
for the flip test. PCK@0.1 of each joint there, without it, in percent:

| {names} |
|{rule}
| {values} |

Small, and trained for about three hours on two cores. Athletes in unusual poses; labels by crowd
workers, some of them wrong.
"""


def main() -> None:
    """Save, evaluate, write the card."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of the training run")
    parser.add_argument("--root", required=True, help="folder with LSP in COCO's layout")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    parser.add_argument("--steps", type=int, required=True, help="that the run took")
    args = parser.parse_args()
    model = load(args.run / "best")
    model.metadata = replace(
        model.metadata,
        source="trained on Leeds Sports Poses Extended with configs/lsp-b0.yaml",
        license="research use, as the images that it was trained on (Johnson and Everingham, 2011)",
    )
    save_pretrained(model, args.out, dtype=torch.float16)
    val, test = (_figures(args.root, split, args.out) for split in ("val", "test"))
    flipped = _figures(args.root, "test", args.out, "--flip")
    joints = test["per_keypoint_pck_0.1"]
    card = CARD.format(
        val=val["pck_0.1"],
        test=test["pck_0.1"],
        fine=test["pck_0.05"],
        flipped=flipped["pck_0.1"],
        steps=args.steps,
        names=" | ".join(joints),
        rule="---|" * len(joints),
        values=" | ".join(f"{value:.1f}" for value in joints.values()),
    )
    with (args.out / "README.md").open("a") as file:
        file.write(card)
    print(card)


def _figures(root: str, split: str, model: Path, *more: str) -> dict[str, Any]:
    """What `segformerpp eval` says of the weights."""
    with TemporaryDirectory() as folder:
        rows = Path(folder, "rows.json")
        words = ["eval", "--data", "coco", "--root", root, "--split", split, "--model", str(model)]
        words += [
            "--runtime",
            "openvino",
            "--precision",
            "f32",
            "--quiet",
            "--json",
            str(rows),
            *more,
        ]
        if cli.main(words) != 0:
            raise SystemExit(1)
        [row] = json.loads(rows.read_text())
    return row


if __name__ == "__main__":
    main()
