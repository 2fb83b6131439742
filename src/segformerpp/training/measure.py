"""What a training step costs with a merge plan, beside what it costs without."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from segformerpp.arguments import parse_size
from segformerpp.benchmark.run import machine
from segformerpp.benchmark.timing import interleave
from segformerpp.benchmark.worker import Worker
from segformerpp.data.labels import generated_palette
from segformerpp.training.settings import TrainSettings

if TYPE_CHECKING:
    from torch import Tensor


def measure(
    settings: Sequence[TrainSettings],
    classes: int,
    rounds: int = 5,
    advance: Callable[[], None] = lambda: None,
    peer: tuple[str, Sequence[str]] | None = None,
) -> list[dict[str, Any]]:
    """Measure training steps on random images, each kind in a fresh process, in turns.

    Args:
        settings: of the runs to compare; ratios are to the first.
        classes: K.
        rounds: turns of each.
        advance: called after each turn.
        peer: ``module:function`` like `prepare`, and folders to find it in, for what comes before
            the first.

    Returns:
        Rows with ``model, merge, size, batch, precision, median_ms, withheld, peak_memory_mb,
        time_ratio, memory_ratio`` and the machine; ratios are None where a time is withheld.

    Raises:
        UsageError: if a run cannot be prepared.
    """
    target = f"{__name__}:prepare"
    jobs: list[tuple[str, tuple[str, ...], TrainSettings]] = [(target, (), one) for one in settings]
    if peer:
        jobs.insert(0, (peer[0], tuple(peer[1]), settings[0]))
    with ExitStack() as stack:
        workers = [
            stack.enter_context(
                Worker(name, {"settings": asdict(one), "classes": classes}, path=paths)
            )
            for name, paths, one in jobs
        ]
        timings = interleave(dict(enumerate(workers)), rounds, advance)
        facts = [worker.facts for worker in workers]
    rows = []
    for i, (_, _, one) in enumerate(jobs):
        timing, first = timings[i], timings[0]
        memory, first_memory = (facts[k]["peak_memory_mb"] for k in (i, 0))
        certain = not (timing.meaningless or first.meaningless)
        rows.append(
            {
                "model": one.model,
                "merge": facts[i]["merge"],
                "size": one.crop,
                "batch": one.batch,
                "precision": one.precision,
                "device": facts[i]["device"],
                "median_ms": None if timing.meaningless else round(1000 * timing.median, 1),
                "uncertainty": round(timing.uncertainty, 3),
                "withheld": timing.meaningless,
                "peak_memory_mb": memory,
                "time_ratio": round(timing.median / first.median, 3) if certain else None,
                "memory_ratio": round(memory / first_memory, 3) if memory else None,
                **machine(),
            }
        )
    return rows


def random_batch(settings: TrainSettings, classes: int) -> tuple[Tensor, Tensor]:
    """Images (B, 3, H, W) and masks (B, H, W) uint8 of noise."""
    import torch

    size = (settings.batch, *parse_size("crop", settings.crop))
    images = torch.randn(size[0], 3, *size[1:]).contiguous(memory_format=torch.channels_last)
    return images, torch.randint(classes, size, dtype=torch.uint8)


def prepare(settings: dict[str, Any], classes: int) -> tuple[Callable[[], object], dict[str, Any]]:
    """A training step on random images, for a `Worker`."""
    import torch

    from segformerpp.models import Metadata
    from segformerpp.runtimes.pytorch import accelerators
    from segformerpp.training.losses import segmentation_loss
    from segformerpp.training.network import adamw, build

    run = TrainSettings(**settings)
    names = tuple(f"class {i}" for i in range(classes))
    model = build(run, Metadata(labels=names, palette=generated_palette(classes)))
    present = [*accelerators(), "cpu"]
    device = torch.device(present[0] if run.device == "auto" else run.device)
    dtype = {"bf16": torch.bfloat16, "f16": torch.float16}.get(run.precision)
    model = model.train().to(device)
    optimizer = adamw(model, run)
    images, masks = (part.to(device) for part in random_batch(run, classes))

    def step() -> None:
        with torch.autocast(device.type, dtype, enabled=dtype is not None):
            logits = model(images)
        loss = segmentation_loss(logits, masks, None, run.ohem, run.lovasz)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()

    return step, {"merge": model.merge_plan.name, "device": device.type}
