"""OpenVINO, without reports to its makers, and the one core of the process."""

from __future__ import annotations

import sys
import threading
from functools import lru_cache

import numpy as np

_REPORTS = "openvino_telemetry"

# Importing OpenVINO forks a process that sends reports; forked beside threads, that one may hang.
_absent = _REPORTS not in sys.modules
if _absent:
    sys.modules[_REPORTS] = None  # type: ignore[assignment]  # not installed, as far as it can see
try:
    import openvino as ov
    from openvino import passes
finally:
    if _absent:
        del sys.modules[_REPORTS]

_lock = threading.Lock()
_core = lru_cache(maxsize=1)(ov.Core)

__all__ = ["core", "divides_by_root_mean_square", "ov", "passes"]


def core() -> ov.Core:
    """The core that everything shares, which lives as long as the process.

    OpenVINO's plugin for processors gives the thread that loads it a stack for signals, and frees
    that stack where the last core ends. Ended by another thread, or ended before another thread's
    stack was put back, it leaves a stack that is no more, and the next signal that Python handles
    (Ctrl-C, a child that ends) ends the process with a segmentation fault.
    """
    with _lock:
        return _core()


@lru_cache(maxsize=1)
def divides_by_root_mean_square() -> bool:
    """Whether OpenVINO makes one node of it here: only then is it faster than a layer norm.

    It depends on the instructions that the processor has, and on OpenVINO's version.
    """
    from openvino import opset13 as op

    x = op.parameter([1, 8, 32], np.float32)
    square = op.reduce_mean(op.power(x, np.float32(2)), [-1], keep_dims=True)
    root = op.sqrt(op.add(square, np.float32(1e-5)))
    model = ov.Model([op.multiply(x, op.divide(np.float32(1), root))], [x], "norm")
    nodes = core().compile_model(model, "CPU").get_runtime_model().get_ops()
    return any(node.get_rt_info()["layerType"].value == "RMS" for node in nodes)
