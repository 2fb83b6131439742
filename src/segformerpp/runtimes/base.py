"""The interface of a runtime, and the choice of one."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from segformerpp.arguments import whole_number
from segformerpp.checkpoints import Checkpoint
from segformerpp.errors import UsageError
from segformerpp.runtimes.processor import may_have_accelerator

if TYPE_CHECKING:
    from segformerpp.models import Segformer
    from segformerpp.runtimes.int8 import Images

logger = logging.getLogger(__name__)

RUNTIMES = ("torch", "torch-compiled", "openvino", "onnxruntime")
_MATCHING = ("torch", "openvino", "onnxruntime")
PRECISIONS = ("f32", "bf16", "f16", "int8")
DEVICES = ("cpu", "cuda", "mps", "xpu", "gpu")
#: More threads than processors only slow things down, but may be wanted for comparisons.
_THREADS_PER_CPU = 4


class Runtime(Protocol):
    """A network ready to run; may be called from several threads.

    Attributes:
        name: one of `RUNTIMES`.
        precision: what it computes in, one of `PRECISIONS`.
        device: where it computes, one of `DEVICES`, with a number if there are several.
        threads: how many processor threads it uses; 0 where it does not compute on the processor.
    """

    name: str
    precision: str
    device: str
    threads: int

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Predict: normalised images (B, 3, H, W) float32 -> logits (B, K, h, w) float32.

        Raises:
            MemoryLimitError: if the images do not fit into the memory together.
        """


class ParallelRuntime(Runtime, Protocol):
    """A runtime through which several inputs may go at the same time, each on some of the threads.

    Each takes longer then, but no thread waits for the others: on many cores, or beside other work,
    more of them are done in a second.

    Attributes:
        streams: how many at the same time, at most.
    """

    streams: int

    def stream(self, shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray] | None:
        """What computes inputs of one shape beside others, in as many threads as there are streams.

        It predicts as a call does, up to rounding.

        Args:
            shape: (B, 3, H, W).

        Returns:
            What is called with them (and computes others as a call does). None if inputs of this
            shape are to be computed one after the other, as they are so large that several need
            more memory than there may be.
        """


class MatchingRuntime(Runtime, Protocol):
    """A runtime that can merge in images what it matched in an earlier one."""

    def matched(self, x: np.ndarray, given: Any = None) -> tuple[np.ndarray, Any]:
        """Predict, and tell what was merged.

        Args:
            x: as for a call.
            given: what is to be merged, as this found it in images of the same shape; None to
                match anew.

        Returns:
            The logits, as of a call, and what was merged: of use here alone.
        """


def parallel(runtime: Runtime) -> ParallelRuntime | None:
    """Take a runtime as one with several streams, if it is one."""
    found = cast(ParallelRuntime, runtime)
    return found if getattr(found, "streams", 1) > 1 else None


def matching(runtime: Runtime) -> MatchingRuntime:
    """Take a runtime as one that can reuse matches.

    Raises:
        UsageError: if it cannot.
    """
    if runtime.name not in _MATCHING or runtime.precision == "int8":
        raise UsageError(
            f"reuse_match: for the runtimes {', '.join(_MATCHING)} in any precision but int8, not "
            f"for {runtime.name} in {runtime.precision}"
        )
    return cast(MatchingRuntime, runtime)


def check(runtime: str, precision: str, device: str, threads: int | None) -> None:
    """Refuse what no machine has; needs no model and is quick.

    Raises:
        UsageError: if a value is unknown; the text lists what there is.
    """
    for key, value, known in (
        ("runtime", runtime, RUNTIMES),
        ("precision", precision, PRECISIONS),
        ("device", device.partition(":")[0], DEVICES),
    ):
        if value not in ("auto", *known):
            raise UsageError(f"{key}: one of auto, {', '.join(known)}, not {value!r}")
    if threads is not None:
        # Thousands of threads end the process, without an error that could be caught.
        whole_number("threads", threads, 1, most=_THREADS_PER_CPU * (os.cpu_count() or 1))


def create(
    model: Checkpoint | Segformer,
    runtime: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    images: Images | None = None,
) -> Runtime:
    """Prepare a network for running.

    Args:
        model: a checkpoint that was opened, or a network, which the runtime owns from now on.
        runtime: one of `RUNTIMES`, or ``auto``: ``torch`` on graphics cards that PyTorch has, else
            ``openvino``, the fastest on a processor. ``onnxruntime`` needs the extra `onnx`;
            ``torch-compiled`` takes a minute or more for every new image size.
        precision: one of `PRECISIONS`, or ``auto``: ``f16`` on graphics cards that have it; on
            processors ``bf16`` where OpenVINO has it and this model's labels stay the same (see
            `precision.py`), else ``f32``.
        device: one of `DEVICES` (``gpu`` is OpenVINO's, the others PyTorch's), for several of a
            kind also with a number (``cuda:1``), or ``auto``: for PyTorch the first of CUDA, MPS,
            XPU that there is, else the processor; for ONNX Runtime CUDA, else the processor; for
            OpenVINO the processor.
        threads: processor threads to compute with; None for what the runtime chooses.
        images: what to quantise on for ``int8``, which only OpenVINO has; needed once for each
            model and plan.

    Raises:
        UsageError: if a value is unknown, or this machine does not have it.
    """
    check(runtime, precision, device, threads)
    threads = None if threads is None else int(threads)  # NumPy's numbers are not taken below
    checkpoint = model if isinstance(model, Checkpoint) else Checkpoint.of_model(model)
    chosen = _choose(device) if runtime == "auto" else runtime
    if precision == "int8" and chosen != "openvino":
        raise UsageError(f"precision: int8 is for the runtime openvino, not for {chosen}")
    made: Runtime
    if chosen == "openvino":
        from segformerpp.runtimes.openvino import OpenvinoRuntime

        made = OpenvinoRuntime(checkpoint, precision, device, threads, images)
    elif chosen == "onnxruntime":
        from segformerpp.runtimes.onnxruntime import OnnxRuntime

        made = OnnxRuntime(checkpoint, precision, device, threads)
    else:
        from segformerpp.runtimes.pytorch import TorchRuntime

        compiled = chosen == "torch-compiled"
        made = TorchRuntime(checkpoint, precision, device, threads, compiled=compiled)
    if "auto" in (runtime, precision, device):
        logger.info("runtime %s, %s on %s", made.name, made.precision, made.device)
    return made


def _choose(device: str) -> str:
    """The fastest runtime of a device."""
    if device in ("cpu", "gpu"):
        return "openvino"
    if device != "auto":
        return "torch"
    if may_have_accelerator():
        from segformerpp.runtimes.pytorch import accelerators

        return "torch" if accelerators() else "openvino"
    return "openvino"
