"""What merging through the Mix-FFN would cost in accuracy: a trial, which no plan offers.

    python benchmarks/mix_ffn.py --root ../shared/data/camvid

`camvid-b0` in PyTorch, untrained for it, on every sixteenth test image of CamVid at its own size;
one layer of one stage's Mix-FFNs works on merged tokens, nothing else is merged: `fc1` is unmerged
before the depthwise convolution, `fc2` merges what comes after it.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import segformerpp as sfpp
from segformerpp.benchmark.run import machine
from segformerpp.data.datasets import open_dataset
from segformerpp.merging import BipartiteMatching, Merge, Neighbour2d
from segformerpp.merging.match import Grid, match
from segformerpp.models.attention import MixFFN, to_image, to_tokens
from segformerpp.tasks.segmentation import normalise

RESULTS = Path(__file__).parent / "results" / "mix_ffn.json"
MERGES: dict[str, Merge] = {
    "bsm r=0.25 2x2": BipartiteMatching(0.25, 2, 2),
    "bsm r=0.5 2x2": BipartiteMatching(0.5, 2, 2),
    "n2d 2x1": Neighbour2d(2, 1),
    "n2d 2x2": Neighbour2d(2, 2),
}


class MergedMixFFN(nn.Module):
    """A Mix-FFN of which one layer works on merged tokens."""

    def __init__(self, ffn: MixFFN, layer: str, merge: Merge) -> None:
        super().__init__()
        self.ffn, self.layer, self.merge = ffn, layer, merge

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Mix: (B, N, C) -> (B, N, C)."""
        found = match(self.merge, x, grid)
        assert found is not None
        first = self.layer == "fc1"
        y = found.unmerge(self.ffn.fc1(found.merge(x))) if first else self.ffn.fc1(x)
        y = F.gelu(to_tokens(self.ffn.dwconv(to_image(y, grid))))
        return self.ffn.fc2(y) if first else found.unmerge(self.ffn.fc2(found.merge(y)))


@torch.inference_mode()
def main() -> None:
    """Try every combination of stage, layer and strategy."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", required=True, help="folder with CamVid's splits")
    parser.add_argument("--every", type=int, default=16, help="take one image of so many")
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args()
    model = sfpp.load("camvid-b0").eval()
    data = open_dataset("camvid", args.root, "test")
    inputs = [
        torch.from_numpy(normalise(data.read(i)[0], model.metadata))[None]
        for i in range(0, len(data), args.every)
    ]

    def labels() -> list[Tensor]:
        size = inputs[0].shape[2:]
        return [F.interpolate(model(x), size, mode="bilinear").argmax(1) for x in inputs]

    reference, rows = labels(), []
    for stage, layer, (name, merge) in product((3, 4), ("fc1", "fc2"), MERGES.items()):
        blocks: Any = model.encoder.stages[stage - 1].blocks
        originals = [block.ffn for block in blocks]
        for block in blocks:
            block.ffn = MergedMixFFN(block.ffn, layer, merge)
        pairs = zip(labels(), reference, strict=True)
        agreement = 100 * float(np.mean([(a == b).float().mean() for a, b in pairs]))
        for block, original in zip(blocks, originals, strict=True):
            block.ffn = original
        row = {"stage": stage, "layer": layer, "merge": name, "agreement": round(agreement, 2)}
        rows.append({**row, "images": len(inputs), **machine()})
    args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
