"""Running a network in ONNX Runtime: everywhere, small boards included."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from segformerpp.errors import UsageError
from segformerpp.runtimes.graph import Form, Interface, MatchFlow, build
from segformerpp.runtimes.memory import KeptNetworks, bytes_per_pixel, memory_limits
from segformerpp.runtimes.processor import cores

if TYPE_CHECKING:
    from segformerpp.checkpoints import Checkpoint

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxRuntime:
    """ONNX Runtime (see `Runtime`).

    The network is written anew for every input shape, which takes a fraction of a second.

    Args:
        checkpoint: the network.
        precision: ``f32`` or ``auto``, which is ``f32``.
        device: ``cpu``, ``cuda`` (with a number for one of several; package `onnxruntime-gpu`), or
            ``auto``: ``cuda`` where the package has it, else ``cpu``.
        threads: processor threads to compute with; None for one on each core.

    Raises:
        UsageError: if the package is missing, or lacks the device or the precision.
    """

    name = "onnxruntime"

    def __init__(
        self,
        checkpoint: Checkpoint,
        precision: str = "auto",
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        try:
            import onnxruntime
        except ImportError:
            raise UsageError(
                "runtime: onnxruntime is not installed: pip install 'segformerpp[onnx]'"
            ) from None
        if precision not in ("auto", "f32"):
            raise UsageError(f"precision: ONNX Runtime computes in f32 here, not {precision!r}")
        self.precision = "f32"
        self._package: Any = onnxruntime
        present = onnxruntime.get_available_providers()
        able = [kind for kind, provider in _PROVIDERS.items() if provider in present]
        self.device = able[-1] if device == "auto" else device
        kind, _, number = self.device.partition(":")
        if kind not in able or (number and (kind == "cpu" or not number.isdecimal())):
            raise UsageError(f"device: ONNX Runtime has {', '.join(able)} here, not {device!r}")
        self._provider: tuple[str, dict[str, str]] = (_PROVIDERS[kind], {})
        self.threads = 0
        if kind == "cuda":
            self._provider[1].update(device_id=number or "0", use_tf32="0")
        else:
            self.threads = threads or cores()
        self._checkpoint = checkpoint
        self._lock = threading.Lock()
        each = bytes_per_pixel(checkpoint.config, self.name) * checkpoint.merge_plan.input_scale**2
        self._session = KeptNetworks(self._prepare, each)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Predict: normalised images (B, 3, H, W) float32 -> logits (B, K, h, w) float32."""
        return self._run(x, "none", ())[0]

    def matched(
        self, x: np.ndarray, given: list[np.ndarray] | None = None
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """Predict, and tell what was merged (see `MatchingRuntime`)."""
        logits, *found = self._run(x, "out" if given is None else "in", given or ())
        return logits, found if given is None else given

    def _run(self, x: np.ndarray, flow: MatchFlow, given: Sequence[np.ndarray]) -> Any:
        # One inference uses all threads.
        with self._lock, memory_limits(x.shape, self.device):
            try:
                session = self._session(x.shape, flow)
                names = [value.name for value in session.get_inputs()]
                return session.run(None, dict(zip(names, [x, *given], strict=True)))
            except self._errors as error:
                raise RuntimeError(str(error)) from error  # what `memory_limits` looks into

    @property
    def _errors(self) -> tuple[type[Exception], ...]:
        """What it raises where memory ends; derived from nothing but `Exception`."""
        state = self._package.capi.onnxruntime_pybind11_state
        return state.RuntimeException, state.Fail

    def _prepare(self, shape: tuple[int, ...], flow: MatchFlow) -> Any:
        network, package = self._checkpoint, self._package
        batch, _, height, width = shape
        interface = Interface((height, width), batch, matches=flow)
        form: Form = "onnxruntime" if self.device == "cpu" else "processor"
        graph = build(network.config, network.tensors(), network.merge_plan, interface, form=form)
        options = package.SessionOptions()
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = package.GraphOptimizationLevel.ORT_ENABLE_ALL
        if self.device == "cpu":
            # From the second run on it would take one large block beside what the first had taken,
            # in no less time (B0 at 2048x2048: 2.7 instead of 1.5 GB).
            options.enable_mem_pattern = False
        options.log_severity_level = 3  # errors
        session = package.InferenceSession(
            graph.SerializeToString(), options, providers=[self._provider]
        )
        # Without a driver for it, ONNX Runtime would quietly compute on the processor.
        if self._provider[0] not in session.get_providers():
            raise UsageError(f"device: ONNX Runtime finds no {self.device!r} on this machine")
        return session
