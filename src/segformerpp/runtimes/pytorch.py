"""Running a network in PyTorch, eagerly or compiled."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from segformerpp.checkpoints import Checkpoint
from segformerpp.errors import UsageError
from segformerpp.models.encoder import Found
from segformerpp.runtimes.memory import memory_limits

#: Input shapes to compile for; more of them run eagerly.
_MOST_SHAPES = 64
_DTYPES = {"bf16": torch.bfloat16, "f16": torch.float16}
T = TypeVar("T")


class TorchRuntime:
    """PyTorch, with autocast for precisions below f32 (see `Runtime`).

    Args:
        checkpoint: the network; moved to the device.
        precision: ``f32``, ``bf16``, ``f16`` (not on the processor) or ``auto``: ``f16`` on CUDA,
            else ``f32``.
        device: ``cpu``, ``cuda``, ``mps``, ``xpu``, with a number for one of several, or ``auto``.
        threads: processor threads that PyTorch is to use, in the whole process.
        compiled: whether `torch.compile` makes kernels for every input shape, which takes a
            minute or more for the first time on a machine and needs a C++ compiler (for CUDA
            Triton); on CUDA the network is then replayed as a CUDA graph.

    Raises:
        UsageError: if this machine lacks the device, or the device the precision.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        precision: str = "auto",
        device: str = "auto",
        threads: int | None = None,
        *,
        compiled: bool = False,
    ) -> None:
        self.name = "torch-compiled" if compiled else "torch"
        self._device = _find_device(device)
        self.device = str(self._device)
        kind = self._device.type
        self.precision = ("f16" if kind == "cuda" else "f32") if precision == "auto" else precision
        if kind == "cpu" and self.precision == "f16":
            raise UsageError("precision: PyTorch has no fast f16 on the CPU; use bf16 or f32")
        if threads is not None:
            torch.set_num_threads(threads)
        self.threads = torch.get_num_threads() if kind == "cpu" else 0
        self._model = checkpoint.model().to(self._device)
        self._network: Callable[[Tensor], Tensor] = self._model
        self._lock: AbstractContextManager[object] = nullcontext()
        if compiled:
            self._network = _compiled(self._model, kind)
            # CUDA graphs write every result to the same place; compiling is not thread-safe.
            self._lock = threading.Lock()

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Predict: normalised images (B, 3, H, W) float32 -> logits (B, K, h, w) float32."""
        return self._run(x, lambda tensor: (self._network(tensor), None))[0]

    def matched(self, x: np.ndarray, given: Found | None = None) -> tuple[np.ndarray, Found]:
        """Predict, and tell what was merged (see `MatchingRuntime`)."""
        return self._run(x, lambda tensor: self._model.matched(tensor, given))

    @torch.inference_mode()
    def _run(self, x: np.ndarray, network: Callable[[Tensor], tuple[Tensor, T]]) -> tuple[Any, T]:
        dtype = _DTYPES.get(self.precision)
        with self._lock, memory_limits(x.shape, self.device):
            tensor = torch.from_numpy(x).to(self._device, memory_format=torch.channels_last)
            with torch.autocast(self._device.type, dtype, enabled=dtype is not None):
                logits, found = network(tensor)
            return logits.float().cpu().numpy(), found


def _compiled(model: nn.Module, device: str) -> Callable[[Tensor], Tensor]:
    """The same network with kernels of its own; as a CUDA graph on CUDA."""
    from torch._dynamo import config
    from torch._dynamo.exc import BackendCompilerFailed

    config.recompile_limit = _MOST_SHAPES
    mode = "reduce-overhead" if device == "cuda" else "default"
    network = torch.compile(model, dynamic=False, mode=mode)

    def run(x: Tensor) -> Tensor:
        try:
            return network(x)
        except BackendCompilerFailed as error:
            reason = str(error).partition("\n")[0]
            raise UsageError(
                "runtime: torch-compiled needs a C++ compiler, on CUDA Triton, and cannot compile "
                f"here: {reason}"
            ) from None

    return run


def accelerators() -> list[str]:
    """The kinds of graphics cards and the like that PyTorch has here, the fastest first."""
    found = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "xpu": torch.xpu.is_available(),
    }
    return [kind for kind, available in found.items() if available]


def _find_device(device: str) -> torch.device:
    present = [*accelerators(), "cpu"]
    if device == "auto":
        return torch.device(present[0])
    try:
        found = torch.device(device)
        count = torch.cuda.device_count() if found.type == "cuda" else 1
    except RuntimeError:
        count = 0
    if count == 0 or found.type not in present or (found.index or 0) >= count:
        raise UsageError(
            f"device: {device!r} is not on this machine; there is {', '.join(present)}"
        )
    return found
