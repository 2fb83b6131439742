"""Running a network in OpenVINO: on a processor several times as fast as PyTorch."""

from __future__ import annotations

import threading
import warnings
from functools import lru_cache
from typing import Any

import numpy as np
import openvino as ov
import openvino.opset15 as ops
import torch
from openvino.frontend.pytorch import ConversionExtension

from segformerpp.errors import UsageError
from segformerpp.models import Segformer
from segformerpp.runtimes.memory import memory_limits

_TYPES = {"f32": ov.Type.f32, "bf16": ov.Type.bf16, "f16": ov.Type.f16}
#: Input shapes whose networks are kept ready; each holds the weights once more.
_KEPT_SHAPES = 8


class OpenvinoRuntime:
    """OpenVINO (see `Runtime`).

    The network is translated and compiled anew for every input shape, which takes seconds; it
    pays where many images have the same size.

    Args:
        model: in evaluation mode, on the CPU.
        precision: ``f32``, ``bf16`` (on processors that have it), ``f16`` (on graphics cards) or
            ``auto``: ``f32`` on processors, ``f16`` on graphics cards.
        device: ``cpu``, ``gpu`` (Intel's), or ``auto``, which is ``cpu``.
        threads: processor threads to compute with; None for as many as PyTorch would take.

    Raises:
        UsageError: if this machine lacks the device, or the device the precision.
    """

    name = "openvino"

    def __init__(
        self,
        model: Segformer,
        precision: str = "auto",
        device: str = "auto",
        threads: int | None = None,
    ) -> None:
        self._core = ov.Core()
        self.device = "cpu" if device == "auto" else device
        present = sorted({name.partition(".")[0].lower() for name in self._core.available_devices})
        if self.device not in present:
            raise UsageError(f"device: OpenVINO has {', '.join(present)} here, not {device!r}")
        able = self._core.get_property(self.device.upper(), "OPTIMIZATION_CAPABILITIES")
        precisions = [
            name for name in _TYPES if {"f32": "FP32", "f16": "FP16"}.get(name, "BF16") in able
        ]
        default = "f16" if self.device == "gpu" and "f16" in precisions else "f32"
        self.precision = default if precision == "auto" else precision
        if self.precision not in precisions:
            raise UsageError(
                f"precision: OpenVINO has {', '.join(precisions)} on this machine's {self.device}, "
                f"not {precision!r}"
            )
        # It computes in bf16 or f16 by itself where the device can, unless told otherwise.
        self._options: dict[str, Any] = {
            "INFERENCE_PRECISION_HINT": _TYPES[self.precision],
            "PERFORMANCE_HINT": "LATENCY",
        }
        self.threads = 0
        if self.device == "cpu":
            self.threads = threads or torch.get_num_threads()
            self._options["INFERENCE_NUM_THREADS"] = self.threads
        self._model = model
        self._lock = threading.Lock()
        self._compiled = lru_cache(_KEPT_SHAPES)(self._compile)

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Predict: normalised images (B, 3, H, W) float32 -> logits (B, K, h, w) float32."""
        # One inference uses all threads.
        with self._lock, memory_limits(x.shape, self.device):
            return self._compiled(x.shape)(x)[0]

    def _compile(self, shape: tuple[int, ...]) -> Any:
        return self._core.compile_model(
            convert(self._model, shape), self.device.upper(), self._options
        )


def convert(model: Segformer, shape: tuple[int, ...]) -> ov.Model:
    """Translate a network, with its merge plan, for inputs of one shape (B, C, H, W)."""
    extension = ConversionExtension("aten.index_add.default", _index_add)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # torch.export's, of itself
        exported = torch.export.export(model, (torch.zeros(shape),))
        converted = ov.convert_model(exported, extension=[extension])
    converted.inputs[0].set_names({"images"})
    converted.outputs[0].set_names({"logits"})
    return converted


def _index_add(context: Any) -> Any:
    """Add rows to the rows that an index names; OpenVINO 2026.4 does not translate it itself."""
    target, _, index, rows = (context.get_input(i) for i in range(4))
    index = ops.unsqueeze(index, ops.constant(np.int64(-1)))
    return ops.scatter_nd_update(target, index, rows, reduction="sum").outputs()
