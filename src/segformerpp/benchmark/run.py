"""Timing a network in every combination of plan, size, runtime, precision and batch."""

from __future__ import annotations

import datetime
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby, product
from pathlib import Path
from typing import Any

from segformerpp.benchmark.timing import Timing, interleave
from segformerpp.benchmark.worker import Worker
from segformerpp.errors import UsageError

_PACKAGES = ("segformerpp", "torch", "openvino", "onnxruntime")


@dataclass(frozen=True, slots=True)
class Combination:
    """One thing to time; see `candidates.network`."""

    size: tuple[int, int]
    batch: int
    runtime: str
    precision: str
    merge: str | None

    def __str__(self) -> str:
        height, width = self.size
        plan = self.merge or "the model's plan"
        return f"{plan}, {height}x{width}, batch {self.batch}, {self.runtime} {self.precision}"


@dataclass(frozen=True, slots=True)
class Setting:
    """What all combinations of a run share; see `candidates.network`."""

    model: str
    device: str = "auto"
    threads: int | None = None
    offline: bool = False
    revision: str | None = None
    calibrate: str | None = None


def combinations(
    sizes: Sequence[tuple[int, int]],
    batches: Sequence[int],
    runtimes: Sequence[str],
    precisions: Sequence[str],
    plans: Sequence[str | None],
) -> list[Combination]:
    """Every combination, those of one size and batch beside each other."""
    every = product(sizes, batches, runtimes, precisions, plans)
    return list(dict.fromkeys(Combination(*values) for values in every))


def measure(
    setting: Setting,
    wanted: Sequence[Combination],
    rounds: int,
    advance: Callable[[], None],
    refuse: Callable[[str], None],
) -> Iterator[dict[str, Any]]:
    """Time combinations; those of one size and batch are interleaved.

    Each runs in a fresh process, and all of one size and batch are in memory at the same time.

    Args:
        setting: what they share.
        wanted: what to time; see `combinations`.
        rounds: how often to run each.
        advance: called after each step: one for preparing each combination, one for each run.
        refuse: called with one line about each combination that cannot run here.

    Yields:
        A row for each combination that ran, with the keys of all our JSON files. Where the rounds
        differ too much to mean anything, `withheld` is true and the times are None. `speed_up` is
        over the first plan of the same size, batch, runtime and precision.
    """
    for _, group in groupby(wanted, key=lambda c: (c.size, c.batch)):
        with ExitStack() as stack:
            workers: dict[Combination, Worker] = {}
            for combination in group:
                arguments = {**asdict(setting), **asdict(combination)}
                try:
                    worker = Worker("segformerpp.benchmark.candidates:network", arguments)
                    workers[combination] = stack.enter_context(worker)
                except UsageError as error:
                    refuse(f"{combination}: {error}")
                    for _ in range(rounds):
                        advance()
                advance()
            timings = interleave(workers, rounds, advance)
            first: dict[tuple[str, str], Timing] = {}
            for combination, timing in timings.items():
                reference = first.setdefault((combination.runtime, combination.precision), timing)
                yield _row(setting, combination, timing, reference, workers[combination].facts)


def _row(
    setting: Setting,
    combination: Combination,
    timing: Timing,
    reference: Timing,
    facts: dict[str, Any],
) -> dict[str, Any]:
    height, width = combination.size
    shown = None if timing.meaningless else timing
    compared = None if reference.meaningless else shown
    return {
        "model": setting.model,
        "task": facts["task"],
        "size": f"{height}x{width}",
        "batch": combination.batch,
        **{k: facts[k] for k in ("merge", "runtime", "precision", "device", "threads")},
        "median_ms": shown and round(1e3 * shown.median, 2),
        "p95_ms": shown and round(1e3 * shown.p95, 2),
        "images_per_s": shown and round(combination.batch / shown.median, 3),
        "speed_up": compared and round(reference.median / compared.median, 3),
        "uncertainty": round(timing.uncertainty, 3),
        "rounds": len(timing.rounds),
        "withheld": timing.meaningless,
        "peak_memory_mb": facts["peak_memory_mb"],
        "gmacs": facts["gmacs"],
        "tokens": facts["tokens"],
        **machine(),
    }


def machine() -> dict[str, Any]:
    """What figures depend on besides what was asked for: processor, versions, date."""
    return {
        "processor": processor(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "date": datetime.date.today().isoformat(),
    }


def processor() -> str:
    """What the machine computes with, as it calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
