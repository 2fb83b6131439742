"""Time training steps beside transformers' SegFormer, with and without merging.

    python benchmarks/training.py --json benchmarks/results/training.json

Each step is forward, cross-entropy at the images' resolution, backward and AdamW, on the same
random batch shape; every candidate in a fresh process of its own, in turns. The peer is
`SegformerForSemanticSegmentation` with fused attention, given labels. Memory is the peak of each
process.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.progress import Progress

from segformerpp.terminal import print_table
from segformerpp.training.measure import measure, random_batch
from segformerpp.training.settings import TrainSettings

CLASSES = 19
PEER = "transformers"


def peer(settings: dict[str, Any], classes: int) -> tuple[Callable[[], object], dict[str, Any]]:
    """A training step of transformers' SegFormer of the same size, for a `Worker`."""
    import torch
    import transformers

    from segformerpp.models import SIZES

    run = TrainSettings(**settings)
    size = SIZES[run.model]
    config = transformers.SegformerConfig(
        depths=list(size["depths"]),
        hidden_sizes=list(size["dims"]),
        decoder_hidden_size=size["head_dim"],
    )
    config.num_labels = classes
    torch.manual_seed(run.seed)
    network = transformers.SegformerForSemanticSegmentation
    model = network._from_config(config, attn_implementation="sdpa").train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=run.lr, weight_decay=run.weight_decay)
    images, masks = random_batch(run, classes)
    labels = masks.long()

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=run.precision == "bf16"):
            loss = model(images, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step, {"merge": PEER, "device": "cpu"}


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", nargs="+", default=["b0", "b2"])
    parser.add_argument("--merge", nargs="+", default=["none", "hq", "fast"])
    parser.add_argument("--crop", default="512x1024")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--precision", default="f32")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    for model in args.model:
        settings = [
            TrainSettings(
                root="random",
                model=model,
                merge=merge,
                crop=args.crop,
                batch=args.batch,
                precision=args.precision,
                device="cpu",
            )
            for merge in args.merge
        ]
        with Progress(transient=True) as progress:
            task = progress.add_task(model, total=args.rounds * (1 + len(settings)))
            rows += measure(
                settings,
                CLASSES,
                args.rounds,
                lambda task=task: progress.advance(task),  # type: ignore[misc]
                peer=("training:peer", [str(Path(__file__).parent)]),
            )
    lines = [
        [
            row["model"],
            row["merge"],
            "withheld" if row["withheld"] else f"{row['median_ms']:.0f}",
            "" if row["time_ratio"] is None else f"{row['time_ratio']:.2f}",
            f"{row['peak_memory_mb']:.0f}",
            f"{row['memory_ratio']:.2f}",
        ]
        for row in rows
    ]
    print_table(["model", "merge", "ms for a step", "share", "peak MB", "share"], lines)
    if args.json:
        args.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
