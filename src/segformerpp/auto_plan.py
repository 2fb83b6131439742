"""The merge plan `auto`: the preset that is fastest here among those that keep the labels.

Which one that is depends on the architecture, the size of the images, what computes and how, so it
is measured, once, and the answer is kept in the cache.
"""

from __future__ import annotations

import datetime
import json
import logging
import math
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import numpy as np

from segformerpp import __version__, cache, runtimes
from segformerpp.arguments import Size
from segformerpp.benchmark.gains import Gain, race, turn
from segformerpp.benchmark.run import package_version, processor
from segformerpp.checkpoints import Checkpoint
from segformerpp.errors import MemoryLimitError, UsageError
from segformerpp.plans import PRESETS, MergePlan
from segformerpp.plans.documented import AGREEMENT, presets_that_keep
from segformerpp.runtimes import ParallelRuntime, Runtime
from segformerpp.runtimes.memory import bytes_per_pixel, may_hold_maps

logger = logging.getLogger(__name__)

#: The share of labels, in percent, that a preset must keep (see `plans.documented`).
LEAST_AGREEMENT = 98.0
#: How many times as fast as `none` a preset must be to be worth it.
LEAST_GAIN = 1.02
_MOST_ROUNDS, _MOST_SECONDS = 15, 20.0  # for each preset
#: Others wait so long for a process that measures the same: they would disturb it.
_PATIENCE_SECONDS = 1800.0
#: Smaller images are too quick for merging to matter.
_LEAST_SIDE = 128
#: Larger images count as such squares: what merging gains grows with the size. Where ONNX Runtime
#: holds whole attention maps, those of 2048 x 2048 pixels take 12 GB.
_MOST_SIDE, _MOST_SIDE_WITH_MAPS = 2048, 1440
#: Two networks are in memory at the same time, each with at most this.
_MOST_BYTES = 2 * 2**30


@dataclass(frozen=True, slots=True)
class Choice:
    """A preset, and why.

    Attributes:
        name: of the preset.
        side: of the squares that it was measured on, in pixels; 0 where nothing was measured.
        gains: how many times as fast as `none` each preset was, as text.
        date: when that was measured.
        certain: whether the machine was quiet enough to tell, and had the memory.
    """

    name: str
    side: int
    gains: Mapping[str, str]
    date: str
    certain: bool = True

    def __str__(self) -> str:
        if not self.side:
            return f"{self.name}: images below {_LEAST_SIDE} x {_LEAST_SIDE} gain nothing"
        of = f"images of about {self.side} x {self.side}, measured {self.date}"
        gains = ", ".join(f"{name} {gain}" for name, gain in self.gains.items())
        known = f"times as fast as none: {gains}" if gains else "nothing else fits into the memory"
        note = "" if self.certain else "; not certain, so it is measured again next time"
        return f"{self.name} for {of} ({known}{note})"


class AutoRuntime:
    """Runs every image under the plan that is the fastest for its size (see `Runtime`).

    Images of similar size share a plan, see `measured_side`; which one does not depend on the
    images that came before.

    Args:
        checkpoint: the network; its own plan does not matter.
        runtime: see `runtimes.create`, also for the next three.
        precision: of the arithmetic; not ``int8``.
        device: where to run.
        threads: of the processor.

    Attributes:
        merge_plan: of the latest image; `none` before the first.
        described: ``auto:`` and the plans that were used so far.
        streams: see `ParallelRuntime`.

    Raises:
        UsageError: for int8, and as `runtimes.create`.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        runtime: str = "auto",
        precision: str = "auto",
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        if precision == "int8":
            raise UsageError("merge: auto is not for int8, which quantises every plan by itself")
        self._plain = checkpoint.with_plan(MergePlan())
        self._none = runtimes.create(self._plain, runtime, precision, device, threads)
        self.name, self.precision = self._none.name, self._none.precision
        self.device, self.threads = self._none.device, self._none.threads
        streams = runtimes.parallel(self._none)
        self.streams = streams.streams if streams else 1
        self._wanted = precision
        self._lock = threading.Lock()
        self._by_side: dict[int, str] = {}
        self._ready: dict[str, Runtime] = {"none": self._none}
        self.merge_plan = MergePlan()

    @property
    def described(self) -> str:
        """See the class."""
        return f"auto: {', '.join(dict.fromkeys(self._by_side.values()))}".rstrip(": ")

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Predict: normalised images (B, 3, H, W) float32 -> logits (B, K, h, w) float32."""
        return self._chosen(x.shape)(x)

    def stream(self, shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray] | None:
        """What computes inputs of one shape beside others; see `ParallelRuntime`."""
        return cast(ParallelRuntime, self._chosen(shape)).stream(shape)

    def _chosen(self, shape: tuple[int, ...]) -> Runtime:
        name = self.choose((shape[2], shape[3]))
        self.merge_plan = PRESETS[name]
        return self._ready[name]

    def choose(self, size: Size) -> str:
        """The name of the preset for images (H, W), measured where that is not known."""
        whole_maps = self.name == "onnxruntime" and may_hold_maps(self.device)
        most = _MOST_SIDE_WITH_MAPS if whole_maps else _MOST_SIDE
        side = measured_side(size, bytes_per_pixel(self._plain.config, self.name), most)
        with self._lock:
            if side not in self._by_side:
                choice = self._known(side) if side else Choice("none", 0, {}, "")
                logger.info("merge auto: %s", choice)
                self._by_side[side] = self._prepared(choice.name)
            return self._by_side[side]

    def _prepared(self, name: str) -> str:
        """Make a preset ready; where it computes in another precision than `none`, that one."""
        if name not in self._ready:
            made = self._create(PRESETS[name], self._wanted)
            if made.precision != self.precision:
                logger.info("merge auto: none, as %s needs %s", name, made.precision)
                return "none"
            self._ready[name] = made
        return name

    def _create(self, plan: MergePlan, precision: str) -> Runtime:
        threads = self.threads or None
        return runtimes.create(
            self._plain.with_plan(plan), self.name, precision, self.device, threads
        )

    def _known(self, side: int) -> Choice:
        try:
            make = partial(self._kept, side)
            return cache.fetch("plan", self._key(side), make, _parse, patience=_PATIENCE_SECONDS)
        except _UncertainError as error:
            return error.choice

    def _kept(self, side: int) -> bytes:
        logger.info("merge auto: timing the presets on %d x %d pixels, once", side, side)
        choice = self._measure(side)
        if not choice.certain:
            raise _UncertainError(choice)
        found = {"name": choice.name, "gains": choice.gains, "side": side, "date": choice.date}
        return json.dumps(found).encode()

    def _measure(self, side: int) -> Choice:
        channels = self._plain.config.in_channels
        x = np.random.default_rng(0).standard_normal((1, channels, side, side), dtype=np.float32)
        gains: dict[str, Gain] = {}
        complete = True
        try:
            reference = turn(partial(self._none, x))
            for name, plan in presets_that_keep(LEAST_AGREEMENT).items():
                # One after the other: each compiled network is large.
                candidate = turn(partial(self._create(plan, self.precision), x))
                gains[name] = race(reference, candidate, _clear, _MOST_ROUNDS, _MOST_SECONDS)
        except MemoryLimitError:
            complete = False
        certain = complete and all(_clear(g) or not g.meaningless for g in gains.values())
        texts = {name: str(gain) for name, gain in gains.items()}
        return Choice(pick(gains), side, texts, datetime.date.today().isoformat(), certain)

    def _key(self, side: int) -> dict[str, Any]:
        """All that the fastest plan depends on; the weights' values are not among it."""
        packages = [self.name.partition("-")[0]]
        if self.device.startswith("cuda"):
            packages.append("onnxruntime-gpu")
        native: tuple[str, ...] = ()
        if self.name == "openvino" and self.device == "cpu":
            from segformerpp.runtimes.native import native_precisions

            native = native_precisions()
        return {
            "model": self._plain.config.to_dict(),
            "plans": {n: p.to_dict() for n, p in presets_that_keep(LEAST_AGREEMENT).items()},
            "side": side,
            "runtime": self.name,
            "precision": self.precision,
            "device": self.device,
            "threads": self.threads,
            "native": native,
            "processor": _computes_on(self.device),
            "versions": {name: package_version(name) for name in packages},
            "segformerpp": __version__,
            "code": [cache.code_version(p) for p in ("runtimes", "models", "merging", "plans")],
        }


def pick(gains: Mapping[str, Gain]) -> str:
    """The preset with the largest gain, or of several that cannot be told apart the most faithful.

    `none` unless one is surely worth it.

    Args:
        gains: how many times as fast as `none` each preset is.
    """
    worth = {name: gain for name, gain in gains.items() if gain.least >= LEAST_GAIN}
    if not worth:
        return "none"
    best = max(worth.values(), key=lambda gain: gain.value)
    close = [name for name, gain in worth.items() if gain.most >= best.least]
    return max(close, key=lambda name: AGREEMENT[name])


def measured_side(size: Size, bytes_each: float, most: int = _MOST_SIDE) -> int:
    """The side of the square that stands for images (H, W); 0 where they are too small to matter.

    Sides are 128, 192, 256, 352, 512, 736, 1024 and so on, so that of two images that share one the
    larger has about twice the pixels at most. The largest is `most`, or what two gigabytes are
    enough for.

    Args:
        size: (H, W).
        bytes_each: how much memory a pixel takes; see `runtimes.memory`.
        most: the largest side.
    """
    pixels = min(math.prod(size), most**2, _MOST_BYTES / bytes_each)
    if pixels < _LEAST_SIDE**2:
        return 0
    return 32 * round(2 ** (round(math.log2(pixels)) / 2) / 32)


class _UncertainError(Exception):
    """Carries a choice that is not to be kept."""

    def __init__(self, choice: Choice) -> None:
        super().__init__()
        self.choice = choice


def _parse(data: bytes) -> Choice:
    return Choice(**json.loads(data))


def _clear(gain: Gain) -> bool:
    """Whether it is known if a preset is worth it."""
    return gain.least >= LEAST_GAIN or gain.most < LEAST_GAIN


def _computes_on(device: str) -> str:
    kind, _, number = device.partition(":")
    if kind == "cuda":
        import torch

        return torch.cuda.get_device_name(int(number or 0))
    if kind == "gpu":
        from segformerpp.runtimes.openvino_core import core

        return core().get_property("GPU", "FULL_DEVICE_NAME")
    return processor()
