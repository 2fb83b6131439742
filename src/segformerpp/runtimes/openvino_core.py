"""OpenVINO's one core of this process."""

from __future__ import annotations

from functools import lru_cache

import openvino as ov


@lru_cache(maxsize=1)
def core() -> ov.Core:
    """The core that everything shares, which lives as long as the process.

    OpenVINO's plugin for processors gives the thread that loads it a stack for signals, and frees
    that stack where the last core ends. Ended by another thread, or ended before another thread's
    stack was put back, it leaves a stack that is no more, and the next signal that Python handles
    (Ctrl-C, a child that ends) ends the process with a segmentation fault.
    """
    return ov.Core()
