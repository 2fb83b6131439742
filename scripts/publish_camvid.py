"""Turn a training run into the bundled `camvid-b0`: float16 weights, and a card with their figures.

    segformerpp train --config configs/camvid-b0.yaml --root camvid --out run
    python scripts/publish_camvid.py --run run --root camvid --out src/segformerpp/weights/camvid-b0

The weights are the best on val; of several runs (`--run a b`), whose best are of one origin, their
mean (Wortsman et al., *Model soups*, 2022). Nothing is chosen on test.
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

CARD = r"""
## How it was made

From scratch, without pretrained weights, on the 367 training images of CamVid (360x480, the 11
classes and the split of SegNet), in runs of which each went on from the weights of the one before.
The first two were of 60 epochs with weighted classes and of 16 without (commits a85e925 and
5d16fe1 have their recipes); the mean of both, which is bundled in commit 5d16fe1 and called
`before` here, had 59.2 mIoU on `val` and 50.2 on `test`. The last was of 14000 steps (305 epochs of
crops) in two hours on two cores, with the Lovasz-Softmax loss beside the
cross-entropy:

    OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 -m segformerpp train \
      --config configs/camvid-b0.yaml --model before --batch 4 --root camvid --out run
    python scripts/publish_camvid.py --run run --root camvid --out src/segformerpp/weights/camvid-b0

Its best weights on `val` are here. Single scale, whole image, from the float16 weights that are
here, in OpenVINO f32: {val:.1f} mIoU on `val`, {test:.1f} on `test`
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
    parser.add_argument("--run", nargs="+", required=True, help="models, or folders of runs")
    parser.add_argument("--root", required=True, help="folder with CamVid's splits")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint")
    args = parser.parse_args()
    models = [load(Path(run, "best") if Path(run, "best").is_dir() else run) for run in args.run]
    model = models[0]
    states = [one.state_dict() for one in models]
    model.load_state_dict({key: sum(s[key] for s in states) / len(states) for key in states[0]})
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
