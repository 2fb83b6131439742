"""Turn a training run into the bundled `camvid-b0`: float16 weights, and a card with their figures.

    segformerpp train --config configs/camvid-b0.yaml --root camvid --out run
    python scripts/publish_camvid.py --run run --root camvid --out src/segformerpp/weights/camvid-b0

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

From scratch, without pretrained weights, on the 367 training images of CamVid (360x480, the 11
classes and the split of SegNet), with

    segformerpp train --config configs/camvid-b0.yaml --root camvid --out camvid-b0

The weights are those that were best on `val`. Single scale, whole image, from the float16
weights that are here, in OpenVINO f32: {val:.1f} mIoU on `val`, {test:.1f} on `test`
(`segformerpp eval --data camvid --root camvid --split test`). Nothing was chosen on `test`. IoU
there in percent:

| {names} |
|{rule}
| {values} |

Small and made for trying things out: it has seen one city, from one car, in daylight.
"""


def main() -> None:
    """Save, evaluate, write the card."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--run", type=Path, required=True, help="folder of the training run")
    parser.add_argument("--root", required=True, help="folder with CamVid's splits")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    args = parser.parse_args()
    model = load(args.run / "best")
    model.metadata = replace(
        model.metadata,
        source="trained from scratch on CamVid with configs/camvid-b0.yaml",
        license="research use, as the CamVid images that it was trained on",
        image_size=None,
    )
    save_pretrained(model, args.out, dtype=torch.float16)
    val, test = (_evaluate(args.out, args.root, split) for split in ("val", "test"))
    each = test["per_class_iou"]
    card = CARD.format(
        val=val["miou"],
        test=test["miou"],
        names=" | ".join(each),
        rule="---|" * len(each),
        values=" | ".join(f"{value:.1f}" for value in each.values()),
    )
    with (args.out / "README.md").open("a") as file:
        file.write(card)
    print(card)


def _evaluate(model: Path, root: str, split: str) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        file = Path(folder, "row.json")
        words = ["eval", "--data", "camvid", "--root", root, "--split", split, "--quiet"]
        words += ["--model", str(model), "--runtime", "openvino", "--precision", "f32"]
        if cli.main([*words, "--json", str(file)]) != 0:
            raise SystemExit(1)
        row: dict[str, Any] = json.loads(file.read_text())[0]
        return row


if __name__ == "__main__":
    main()
