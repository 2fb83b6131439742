"""What merging through the Mix-FFN would cost in accuracy: trials, which no plan offers.

    python benchmarks/mix_ffn.py --root ../shared/data/camvid
    python benchmarks/mix_ffn.py --root ../shared/data/camvid --only grid

`camvid-b0` in PyTorch, untrained for it, on every sixteenth test image of CamVid at its own size,
nothing else merged. Ways, in the Mix-FFNs of one stage, or of its last block:

    fc1      the first linear layer works on merged tokens, unmerged before the convolution
    fc2      the second one on what is merged behind it
    queries  as fc1, with the groups that the block's attention merged its queries by
    grid     all of it on a coarser grid, given back by bilinear interpolation; the depthwise
             convolution gets the weights that amount to the same where cells are of one value
    none     left out for tokens in groups, which keep what they had
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import segformerpp as sfpp
from segformerpp.benchmark.run import machine
from segformerpp.data.datasets import open_dataset
from segformerpp.merging.match import Grid, Match, match
from segformerpp.models.attention import MixFFN, to_image, to_tokens
from segformerpp.plans import BipartiteMatching, Merge, MergePlan, Neighbour2d, StageMerge
from segformerpp.tasks.segmentation import normalise

RESULTS = Path(__file__).parent / "results" / "mix_ffn.json"
WAYS = ("fc1", "fc2", "queries", "grid", "none")


def _bsm(r: float) -> BipartiteMatching:
    return BipartiteMatching(r, 2, 2)


class Trial(NamedTuple):
    """A way, in all blocks of a stage or in the last one."""

    way: str
    stage: int
    blocks: str
    merge: Merge


_MERGES: tuple[Merge, ...] = (_bsm(0.25), _bsm(0.5), Neighbour2d(2, 1), Neighbour2d(2, 2))
TRIALS = [
    *(Trial("grid", stage, "last", Neighbour2d(2, 2)) for stage in (3, 2, 1, 4)),
    Trial("queries", 4, "all", _bsm(0.75)),
    Trial("queries", 3, "all", _bsm(0.25)),
    *(Trial("none", stage, "all", _bsm(0.1)) for stage in (3, 4)),
    *(
        Trial(way, stage, "all", merge)
        for stage, way in product((3, 4), ("fc1", "fc2"))
        for merge in _MERGES
    ),
]


class MergedMixFFN(nn.Module):
    """A Mix-FFN of which part works on merged tokens.

    Attributes:
        found: what the attention before merged its queries by.
    """

    def __init__(self, ffn: MixFFN, way: str, merge: Merge) -> None:
        super().__init__()
        self.ffn, self.way, self.merge = ffn, way, merge
        self.found: Match | None = None

    def forward(self, x: Tensor, grid: Grid) -> Tensor:
        """Mix: (B, N, C) -> (B, N, C)."""
        if self.way == "grid":
            return self._on_a_coarser_grid(x, grid)
        found = self.found if self.way == "queries" else match(self.merge, x, grid)
        assert found is not None
        if self.way == "none":
            sizes = found.log_sizes(x)
            assert sizes is not None
            return self.ffn(x, grid) * (found.unmerge(sizes[:, :, None]) == 0)
        first = self.way != "fc2"
        y = found.unmerge(self.ffn.fc1(found.merge(x))) if first else self.ffn.fc1(x)
        y = F.gelu(to_tokens(self.ffn.dwconv(to_image(y, grid))))
        return self.ffn.fc2(y) if first else found.unmerge(self.ffn.fc2(found.merge(y)))

    def _on_a_coarser_grid(self, x: Tensor, grid: Grid) -> Tensor:
        cells = F.avg_pool2d(to_image(x, grid), 2, ceil_mode=True)
        coarse = (cells.shape[2], cells.shape[3])
        y = to_image(self.ffn.fc1(to_tokens(cells)), coarse)
        conv = self.ffn.dwconv
        # Along one side, the mean over two neighbours of a kernel (a, b, c) on values that come in
        # twos: a / 2 of the cell before, c / 2 of the next one, and the rest of the own.
        side = torch.tensor([[0.5, 0, 0], [0.5, 1, 0.5], [0, 0, 0.5]])
        weight = torch.einsum("ij,hcjk,lk->hcil", side, conv.weight, side)
        y = F.gelu(F.conv2d(y, weight, conv.bias, padding=1, groups=y.shape[1]))
        y = to_image(self.ffn.fc2(to_tokens(y)), coarse)
        whole = F.interpolate(y, scale_factor=2, mode="bilinear")
        return to_tokens(whole[:, :, : grid[0], : grid[1]])


@contextmanager
def tried(model: sfpp.Segformer, trial: Trial) -> Iterator[None]:
    """The model with the trial's Mix-FFNs."""
    blocks: Any = model.encoder.stages[trial.stage - 1].blocks
    blocks = blocks[-1:] if trial.blocks == "last" else blocks
    originals, hooks = [block.ffn for block in blocks], []
    for block in blocks:
        block.ffn = ffn = MergedMixFFN(block.ffn, trial.way, trial.merge)

        def remember(_: nn.Module, __: Any, out: Any, ffn: MergedMixFFN = ffn) -> None:
            ffn.found = out[1].q

        hooks.append(block.attention.register_forward_hook(remember))
    if trial.way == "queries":
        stages = [StageMerge()] * 4
        stages[trial.stage - 1] = StageMerge(q=trial.merge)
        model.merge_plan = MergePlan(tuple(stages))
    yield
    model.merge_plan = MergePlan()
    for block, original, hook in zip(blocks, originals, hooks, strict=True):
        block.ffn = original
        hook.remove()


@torch.inference_mode()
def main() -> None:
    """Try, and write the rows after every trial."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--root", required=True, help="folder with CamVid's splits")
    parser.add_argument("--every", type=int, default=16, help="take one image of so many")
    parser.add_argument("--threads", type=int, help="of PyTorch")
    parser.add_argument("--only", choices=WAYS, nargs="+", default=WAYS)
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
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
    for trial in TRIALS:
        if trial.way not in args.only:
            continue
        with tried(model, trial):
            pairs = zip(labels(), reference, strict=True)
            agreement = 100 * float(np.mean([(a == b).float().mean() for a, b in pairs]))
        merge = str(MergePlan((StageMerge(q=trial.merge), *[StageMerge()] * 3)))
        row = {**trial._asdict(), "merge": merge.partition(":")[2]}
        rows.append(row | {"agreement": round(agreement, 2), "images": len(inputs), **machine()})
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
