"""Running a network in OpenVINO: on a processor several times as fast as PyTorch."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable
from dataclasses import asdict
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from segformerpp import __version__, cache
from segformerpp.checkpoints import Checkpoint
from segformerpp.errors import MemoryLimitError, UsageError
from segformerpp.runtimes.memory import KeptNetworks, bytes_per_pixel, memory_limits
from segformerpp.runtimes.native import native_precisions
from segformerpp.runtimes.openvino_core import core, divides_by_root_mean_square, ov
from segformerpp.runtimes.precision import SHORTER_SIDE, keeps_labels
from segformerpp.runtimes.processor import cores
from segformerpp.runtimes.sizes import warn_small_grids
from segformerpp.runtimes.traits import Traits

if TYPE_CHECKING:
    from segformerpp.runtimes.graph import MatchFlow
    from segformerpp.runtimes.int8 import Images

logger = logging.getLogger(__name__)

_TYPES = {"f32": ov.Type.f32, "bf16": ov.Type.bf16, "f16": ov.Type.f16}
#: How many streams there are at most, and how much memory those of one shape may take together:
#: small boards have four cores and not much more. And for how many shapes they are kept ready.
_MOST_STREAMS, _STREAMS_BYTES, _KEPT_STREAMS = 4, 2**30, 2  # as `batching` has it
#: How many bytes of the head's features each thread works on at a time.
_HEAD_BAND = 2 * 2**20
#: What a value takes in the precisions in which it does.
_VALUE_BYTES = {"f32": 4, "bf16": 2}


class OpenvinoRuntime:
    """OpenVINO (see `Runtime`).

    The network is compiled for every input shape, which takes about a second for the first time;
    then the compiled network is in the cache.

    Args:
        checkpoint: the network.
        precision: ``f32``, ``bf16`` (on processors that have it), ``f16`` (on graphics cards),
            ``int8`` (what is not quantised is in bf16 where there is such a thing) or ``auto``:
            ``f16`` on graphics cards; on processors ``bf16`` where there is such a thing and the
            labels stay the same (see `precision.keeps_labels`), else ``f32``.
        device: ``cpu``, ``gpu`` (Intel's), or ``auto``, which is ``cpu``.
        threads: processor threads to compute with; None for one on each core.
        images: what to quantise on for ``int8``; see `int8.quantised`.

    Attributes:
        streams: see `ParallelRuntime`.

    Raises:
        UsageError: if this machine lacks the device, or the device the precision; for int8 see
            `int8.quantised`.
    """

    name = "openvino"

    def __init__(
        self,
        checkpoint: Checkpoint,
        precision: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        images: Images | None = None,
    ) -> None:
        self._core = core()
        self.device = "cpu" if device == "auto" else device
        present = sorted({name.partition(".")[0].lower() for name in self._core.available_devices})
        if self.device not in present:
            raise UsageError(f"device: OpenVINO has {', '.join(present)} here, not {device!r}")
        able = self._core.get_property(self.device.upper(), "OPTIMIZATION_CAPABILITIES")
        precisions = [
            name for name in _TYPES if {"f32": "FP32", "f16": "FP16"}.get(name, "BF16") in able
        ]
        # It computes in bf16 or f16 by itself where the device can, unless told otherwise.
        self._hints = {name: _TYPES[name] for name in precisions}
        if "INT8" in able and "f32" in precisions:
            self._hints["int8"] = _TYPES["bf16" if "bf16" in precisions else "f32"]
        if precision not in ("auto", *self._hints):
            raise UsageError(
                f"precision: OpenVINO has {', '.join(self._hints)} on this machine's "
                f"{self.device}, not {precision!r}"
            )
        if self.device == "cpu":
            native_precisions()  # it may have to compile, which is no time of the first image's
        self.threads = (threads or cores()) if self.device == "cpu" else 0
        self.streams = streams_of(self.threads)
        self._checkpoint = checkpoint
        self._too_large: set[tuple[int, ...]] = set()
        self._lock = threading.Lock()
        scale = checkpoint.merge_plan.input_scale
        self._bytes_each = bytes_per_pixel(checkpoint.config, self.name) * scale**2
        self._compiled = KeptNetworks(self._prepare, self._bytes_each)
        self._streams = lru_cache(_KEPT_STREAMS)(self._start_streams)
        self._int8: tuple[ov.Model, str | None] | None = None
        self.precision = self._choose(precisions) if precision == "auto" else precision
        if self.precision == "int8":
            from segformerpp.runtimes.int8 import quantised

            self._int8 = quantised(checkpoint, images, self._traits("int8", streams=1))

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Predict: normalised images (B, 3, H, W) float32 -> logits (B, K, h, w) float32."""
        # One inference uses all threads.
        with self._lock, memory_limits(x.shape, self.device):
            return self._compiled(x.shape, self.precision)(x)[0]

    def stream(self, shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray] | None:
        """What computes inputs of one shape beside others; see `ParallelRuntime`."""
        batch, _, height, width = shape
        each = self._bytes_each * batch * height * width
        if self.streams == 1 or self.streams * each > _STREAMS_BYTES or shape in self._too_large:
            return None
        try:
            with self._lock, memory_limits(shape, self.device):
                requests = self._streams(shape)
        except MemoryLimitError as error:
            self._refuse(shape, error)
            return None

        def infer(x: np.ndarray) -> np.ndarray:
            if x.shape != shape:
                return self(x)
            request = requests.get()
            try:
                with memory_limits(x.shape, self.device):
                    return request.infer(x, share_inputs=True)[0]
            except MemoryLimitError as error:
                self._refuse(shape, error)
                raise
            finally:
                requests.put(request)

        return infer

    def _refuse(self, shape: tuple[int, ...], error: MemoryLimitError) -> None:
        """Have no streams for a shape, and free what streams hold."""
        logger.info("no streams: %s", error)
        self._too_large.add(shape)
        self._streams.cache_clear()

    def matched(
        self, x: np.ndarray, given: list[np.ndarray] | None = None
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Predict, and tell what was merged (see `MatchingRuntime`; not in int8)."""
        flow: MatchFlow = "out" if given is None else "in"
        with self._lock, memory_limits(x.shape, self.device):
            found = self._compiled(x.shape, self.precision, flow)([x, *(given or ())])
            logits, *groups = found.values()
        return logits, groups if given is None else given

    def _choose(self, precisions: list[str]) -> str:
        if self.device == "gpu":
            return "f16" if "f16" in precisions else "f32"
        # The photograph is RGB, and some plans shrink it to less than the network takes.
        least = self._checkpoint.config.min_image_size / self._checkpoint.merge_plan.input_scale
        comparable = self._checkpoint.config.in_channels == 3 and least <= SHORTER_SIDE
        if "bf16" not in precisions or not comparable:
            return "f32"

        def compare() -> bytes:
            full, half = (
                lambda x, kind=kind: self._compiled(x.shape, kind)(x)[0] for kind in ("f32", "bf16")
            )
            same = keeps_labels(full, half, self._checkpoint.metadata)
            self._compiled.clear()  # each holds the weights once more
            return b"bf16" if same else b"f32"

        if self._checkpoint.digest is None:
            return compare().decode()
        key = self._key(None, "bf16") | {"f32": asdict(self._traits("f32", 1))}
        return cache.fetch("precision", key, compare, bytes.decode)

    def _start_streams(self, shape: tuple[int, ...]) -> queue.SimpleQueue[Any]:
        """Requests of a network that computes as many at the same time as there are streams."""
        network = self._prepare(shape, self.precision, streams=self.streams)
        requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        for _ in range(self.streams):
            requests.put(network.create_infer_request())
        return requests

    def _prepare(
        self, shape: tuple[int, ...], precision: str, flow: MatchFlow = "none", streams: int = 1
    ) -> Any:
        """The network for inputs of one shape, from the cache if it is there."""
        network = self._checkpoint  # of which the cache says nothing
        warn_small_grids(network.config, network.merge_plan, (shape[2], shape[3]))
        device = self.device.upper()
        options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": self._hints[precision],
            "PERFORMANCE_HINT": "LATENCY" if streams == 1 else "THROUGHPUT",
        }
        if streams > 1:
            options["NUM_STREAMS"] = streams
        if self.threads:
            options["INFERENCE_NUM_THREADS"] = self.threads
            # Threads tied to a core wait for what else runs there, such as decoding and drawing.
            options["ENABLE_CPU_PINNING"] = False
        made: list[Any] = []

        def compile_network() -> bytes:
            made.append(
                self._core.compile_model(
                    self._network(shape, precision, flow, streams), device, options
                )
            )
            return made[0].export_model().getvalue()

        if self._checkpoint.digest is None:
            return self._core.compile_model(
                self._network(shape, precision, flow, streams), device, options
            )

        def usable(data: bytes) -> Any:
            return made[0] if made else self._core.import_model(data, device, options)

        key = self._key(shape, precision, streams) | {"matches": flow}
        return cache.fetch("network", key, compile_network, usable)

    def _network(
        self, shape: tuple[int, ...], precision: str, flow: MatchFlow, streams: int
    ) -> ov.Model:
        if self._int8:
            network = self._int8[0].clone()
            network.reshape(list(shape))
            return network
        from segformerpp.runtimes.graph import Interface, build

        network = self._checkpoint
        batch, _, height, width = shape
        interface = Interface((height, width), batch, matches=flow)
        graph = build(
            *(network.config, network.tensors(), network.merge_plan, interface),
            traits=self._traits(precision, streams),
        )
        return self._core.read_model(graph.SerializeToString())

    def _traits(self, precision: str, streams: int) -> Traits:
        """What graphs may count on: on a processor, in the precisions that were measured."""
        if self.device != "cpu" or precision not in ("int8", *_VALUE_BYTES):
            return Traits()
        divides = divides_by_root_mean_square()
        computed = next(name for name, kind in _TYPES.items() if kind == self._hints[precision])
        native = computed if computed in native_precisions() else ""
        if precision == "int8":  # for all sizes; linear layers are convolutions in any case
            return Traits(root_mean_square=divides, native=native)
        return Traits(
            native=native,
            head_band=_HEAD_BAND * self.threads // streams,
            value_bytes=_VALUE_BYTES[precision],
            constants_stay_f32=precision == "bf16",
            root_mean_square=divides,
            adding_convolutions=True,
        )

    def _key(
        self, shape: tuple[int, ...] | None, precision: str, streams: int = 1
    ) -> dict[str, Any]:
        """All that a compiled network depends on."""
        device = self.device.upper()
        return {
            "model": self._checkpoint.name,
            "weights": self._checkpoint.digest,
            "config": self._checkpoint.config.to_dict(),
            "merge": self._checkpoint.merge_plan.to_dict(),
            "shape": shape,
            "runtime": self.name,
            "precision": precision,
            "images": self._int8 and self._int8[1],
            "threads": self.threads,
            "streams": streams,
            # Asking for them gives OpenVINO the operators that the network may have.
            "traits": asdict(self._traits(precision, streams)),
            "device": self._core.get_property(device, "FULL_DEVICE_NAME"),
            "abilities": sorted(self._core.get_property(device, "OPTIMIZATION_CAPABILITIES")),
            "openvino": ov.__version__,
            "segformerpp": __version__,
            "code": [cache.code_version(p) for p in ("runtimes", "plans", "checkpoints")],
        }


def streams_of(threads: int) -> int:
    """How many streams of equally many threads so many are divided into; 1 for 0 threads."""
    return max(n for n in range(1, _MOST_STREAMS + 1) if n == 1 or (threads and not threads % n))
