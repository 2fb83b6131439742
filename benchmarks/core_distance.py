"""How long a byte takes from one core to another and back, in nanoseconds.

    python benchmarks/core_distance.py

On virtual machines it changes while they run: the host moves their cores. Where the two no longer
share a cache, what is computed on both in turns takes longer.
"""

from __future__ import annotations

import argparse
import os
import time
from mmap import mmap
from multiprocessing import get_context

ROUND_TRIPS = 200_000


def answer(byte: mmap, core: int) -> None:
    """Clear the byte whenever it is set."""
    os.sched_setaffinity(0, {core})
    for _ in range(ROUND_TRIPS):
        while byte[0] != 1:
            pass
        byte[0] = 0


def main() -> None:
    """Measure the first two cores; needs Linux."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    first, second = sorted(os.sched_getaffinity(0))[:2]
    byte = mmap(-1, 1)
    other = get_context("fork").Process(target=answer, args=(byte, second))
    other.start()
    os.sched_setaffinity(0, {first})
    began = time.perf_counter()
    for _ in range(ROUND_TRIPS):
        byte[0] = 1
        while byte[0] != 0:
            pass
    print(f"{(time.perf_counter() - began) / ROUND_TRIPS * 1e9:.0f} ns")
    other.join()


if __name__ == "__main__":
    main()
