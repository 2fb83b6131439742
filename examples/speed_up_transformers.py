"""Make a SegFormer of transformers faster where it is, and see how much and at what price.

python examples/speed_up_transformers.py nvidia/segformer-b0-finetuned-ade-512-512 photo.jpg

The model is the name of one on the hub, or a folder that `save_pretrained` wrote.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from transformers import SegformerForSemanticSegmentation

import segformerpp as sfpp

ROUNDS = 5
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@torch.inference_mode()
def main() -> None:
    """Load, run with and without merging in turns, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("image", type=Path)
    parser.add_argument("--merge", nargs="+", default=["none", "hq", "fast"], help="plans")
    parser.add_argument("--side", type=int, default=1024, help="of the square it is resized to")
    args = parser.parse_args()

    image = Image.open(args.image).convert("RGB").resize((args.side, args.side))
    pixels = (np.asarray(image) / 255 - MEAN) / STD
    x = torch.from_numpy(pixels).permute(2, 0, 1)[None].float()
    model = SegformerForSemanticSegmentation.from_pretrained(args.model).eval()

    plain = model(x).logits.argmax(1)
    times: dict[str, list[float]] = {"as it was": [], **{plan: [] for plan in args.merge}}
    equal = {}
    for _ in range(ROUNDS + 1):  # in turns, so that a busy moment hits all; the first warms up
        for name, seconds in times.items():
            # All that it takes. `restore` takes it away again.
            sfpp.restore(model) if name == "as it was" else sfpp.accelerate(model, name)
            start = time.perf_counter()
            labels = model(x).logits.argmax(1)
            seconds.append(time.perf_counter() - start)
            if labels.shape == plain.shape:  # plans that shrink the image give fewer
                equal[name] = f"{(labels == plain).float().mean():.2%} of the labels as before"
    for name, (_, *seconds) in times.items():
        print(f"{name}: {1000 * statistics.median(seconds):.0f} ms, {equal.get(name, '')}")


if __name__ == "__main__":
    main()
