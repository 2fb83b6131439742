"""OpenVINO, without reports to its makers, and the one core of the process."""

from __future__ import annotations

import sys
from functools import lru_cache

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

__all__ = ["core", "ov", "passes"]


@lru_cache(maxsize=1)
def core() -> ov.Core:
    """The core that everything shares, which lives as long as the process.

    OpenVINO's plugin for processors gives the thread that loads it a stack for signals, and frees
    that stack where the last core ends. Ended by another thread, or ended before another thread's
    stack was put back, it leaves a stack that is no more, and the next signal that Python handles
    (Ctrl-C, a child that ends) ends the process with a segmentation fault.
    """
    return ov.Core()
