"""The processor that a network runs on."""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

_CPUS, _INFO = Path("/sys/devices/system/cpu"), Path("/proc/cpuinfo")
#: What CUDA, ROCm and XPU talk to.
_DRIVERS = (
    *("libcuda.so.1", "libamdhip64.so", "libze_loader.so.1"),
    *("nvcuda.dll", "amdhip64.dll", "ze_loader.dll"),
)


def cores() -> int:
    """How many threads to compute with: one for each core that this process may use.

    ``OMP_NUM_THREADS`` is obeyed where it is set, as PyTorch obeys it. A core that shows as two
    processors counts once: the second makes arithmetic no faster.
    """
    wanted = os.environ.get("OMP_NUM_THREADS", "")
    if wanted.isdecimal() and int(wanted) > 0:
        return int(wanted)
    if not hasattr(os, "sched_getaffinity"):  # not on every system
        return os.cpu_count() or 1
    usable = os.sched_getaffinity(0)
    siblings = set()
    for number in usable:
        path = _CPUS / f"cpu{number}" / "topology" / "thread_siblings_list"
        siblings.add(path.read_text() if path.exists() else str(number))
    return len(siblings)


def instructions() -> frozenset[str]:
    """The sets of instructions that the processor has, as Linux calls them; empty elsewhere."""
    for line in _INFO.read_text().splitlines() if _INFO.exists() else ():
        name, _, value = line.partition(":")
        if name.strip() == "flags":
            return frozenset(value.split())
    return frozenset()


def may_have_accelerator() -> bool:
    """Whether it is worth asking PyTorch for a graphics card; asking means to import it."""
    if sys.platform == "darwin":
        return True
    for name in _DRIVERS:
        try:
            ctypes.CDLL(name)
        except OSError:
            continue
        return True
    return False
