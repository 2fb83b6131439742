"""What `segformerpp bench` times, prepared in a process of its own (see `worker`)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np


def network(
    model: str,
    merge: str | None,
    size: tuple[int, int],
    batch: int,
    runtime: str,
    precision: str,
    device: str,
    threads: int | None,
    offline: bool,
    revision: str | None,
    calibrate: str | None = None,
) -> tuple[Callable[[], object], dict[str, Any]]:
    """Prepare a network alone, without reading images or writing results, on random pixels.

    Args:
        model: what `segformerpp.load` takes.
        merge: a merge plan in any notation; None for the model's; ``auto`` for the one that
            `auto_plan` chooses.
        size: (H, W) of the images.
        batch: how many go in together.
        runtime: see `runtimes.create`, also for the next three.
        precision: of the arithmetic.
        device: where to run.
        threads: of the processor.
        offline: see `segformerpp.load`, also for the next.
        revision: of a model on the hub.
        calibrate: folder with images for int8.

    Returns:
        What runs the network once, and what it is.

    Raises:
        UsageError: if a model of other than RGB images is to be quantised; see also
            `runtimes.create`.
    """
    from segformerpp import checkpoints, runtimes
    from segformerpp.benchmark.cost import cost
    from segformerpp.calibration import Calibration, check_rgb
    from segformerpp.plans import PRESETS
    from segformerpp.plans.plan import is_auto

    plan = None if is_auto(merge) else merge
    source = checkpoints.open_checkpoint(model, plan, offline=offline, revision=revision)
    calibrates = calibrate and precision == "int8"
    if calibrates:
        check_rgb(source.config.in_channels)
    if is_auto(merge):
        from segformerpp.auto_plan import AutoRuntime

        automatic = AutoRuntime(source, runtime, precision, device, threads)
        source = source.with_plan(PRESETS[automatic.choose(size)])
    images = None
    if calibrate and calibrates:
        images = Calibration(calibrate, source.metadata)
    ready = runtimes.create(source, runtime, precision, device, threads, images)
    shape = (batch, source.config.in_channels, *size)
    x = np.random.default_rng(0).standard_normal(shape, dtype=np.float32)
    spent = cost(source.config, source.merge_plan, size)
    facts = {
        "task": source.metadata.task,
        "merge": ("auto: " if is_auto(merge) else "") + source.merge_plan.name,
        "runtime": ready.name,
        "precision": ready.precision,
        "device": ready.device,
        "threads": ready.threads,
        "gmacs": round(spent.macs / 1e9, 3),
        "tokens": spent.tokens,
    }
    if ready.device.startswith("cuda"):
        import torch

        facts["processor"] = torch.cuda.get_device_name()
    return lambda: ready(x), facts


def save_random(size: str, folder: Path) -> Path:
    """Write a network with random weights, which is as fast as a trained one.

    Args:
        size: ``b0`` to ``b5``.
        folder: where to.

    Returns:
        The file.
    """
    import torch

    from segformerpp.checkpoints import save
    from segformerpp.models import Segformer, SegformerConfig

    torch.manual_seed(0)
    path = folder / f"{size}.safetensors"
    save(Segformer(SegformerConfig.of_size(size)), path)
    return path
