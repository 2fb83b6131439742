"""Timing a network in every combination of plan, size, runtime, precision and batch."""

from __future__ import annotations

import datetime
import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from itertools import groupby, product
from pathlib import Path
from typing import Any

from segformerpp.benchmark.timing import Interrupted, Timing, interleave
from segformerpp.benchmark.worker import Worker
from segformerpp.errors import UsageError
from segformerpp.plans.plan import is_auto

_PACKAGES = ("segformerpp", "torch", "openvino", "onnxruntime", "nncf", "transformers")


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
    What is compiled before it runs was compiled by another process, so that its memory is that of
    a second start.

    Args:
        setting: what they share.
        wanted: what to time; see `combinations`.
        rounds: how often to run each.
        advance: called after each step: one for preparing each combination, one for each run.
        refuse: called with one line about each combination that cannot run here, or not any more.

    Yields:
        A row for each combination that ran, with the keys of all our JSON files. Where the rounds
        differ too much to mean anything, `withheld` is true and the times are None. `speed_up` is
        over the first plan of the same size, batch, runtime and precision; None where that did
        not run.

    Raises:
        KeyboardInterrupt: after the rows of the rounds that were whole, if the user interrupts.
    """
    first = wanted[0].merge if wanted else None
    for _, group in groupby(wanted, key=lambda c: (c.size, c.batch)):
        with ExitStack() as stack:
            workers: dict[Combination, Worker] = {}
            for combination in group:
                try:
                    workers[combination] = stack.enter_context(_worker(setting, combination))
                except UsageError as error:
                    refuse(f"{combination}: {error}")
                    for _ in range(rounds):
                        advance()
                advance()
            ended: dict[Combination, UsageError] = {}
            turns = {c: partial(_turn, worker, c, ended) for c, worker in workers.items()}
            interrupted: Interrupted | None = None
            timings: Mapping[Combination, Timing]
            try:
                timings = interleave(turns, rounds, advance)
            except Interrupted as interrupt:
                interrupted, timings = interrupt, interrupt.timings
            for combination, reason in ended.items():
                refuse(f"{combination}: {reason}")
            timings = {c: timing for c, timing in timings.items() if c not in ended}
            for combination, timing in timings.items():
                reference = timings.get(replace(combination, merge=first))
                yield _row(setting, combination, timing, reference, workers[combination].facts)
            if interrupted:
                raise interrupted


def _worker(setting: Setting, combination: Combination) -> Worker:
    target = "segformerpp.benchmark.candidates:network"
    arguments = {**asdict(setting), **asdict(combination)}
    if not combination.runtime.startswith("torch") or is_auto(combination.merge):
        Worker(target, arguments, warm_up=1).close()  # fills the cache
    return Worker(target, arguments)


def _turn(
    worker: Worker, combination: Combination, ended: dict[Combination, UsageError]
) -> list[float]:
    if combination not in ended:
        try:
            return worker()
        except UsageError as error:  # such as for want of memory
            ended[combination] = error
    return [math.inf]


def _row(
    setting: Setting,
    combination: Combination,
    timing: Timing,
    reference: Timing | None,
    facts: dict[str, Any],
) -> dict[str, Any]:
    height, width = combination.size
    shown = None if timing.meaningless else timing
    compared = None if reference is None or reference.meaningless else shown
    return {
        "model": setting.model,
        "task": facts["task"],
        "size": f"{height}x{width}",
        "batch": combination.batch,
        **{k: facts[k] for k in ("merge", "runtime", "precision", "device", "threads")},
        "median_ms": shown and round(1e3 * shown.median, 2),
        "p95_ms": shown and round(1e3 * shown.p95, 2),
        "images_per_s": shown and round(combination.batch / shown.median, 3),
        "speed_up": compared and reference and round(reference.median / compared.median, 3),
        "uncertainty": round(timing.uncertainty, 3),
        "rounds": len(timing.rounds),
        "withheld": timing.meaningless,
        "peak_memory_mb": facts["peak_memory_mb"],
        "gmacs": facts["gmacs"],
        "tokens": facts["tokens"],
        **machine(),
        **{k: facts[k] for k in ("processor",) if k in facts},
    }


def machine() -> dict[str, Any]:
    """What figures depend on besides what was asked for: processor, versions, date."""
    return {
        "processor": processor(),
        "versions": {name: found for name in _PACKAGES if (found := package_version(name))},
        "date": datetime.date.today().isoformat(),
    }


def processor() -> str:
    """What the machine computes with, as it calls itself."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.processor() or platform.machine()


def package_version(package: str) -> str | None:
    """What is installed; None if it is not."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None
