"""How long a byte takes from one core to another and back, Python's own loop included.

    python benchmarks/core_distance.py

On virtual machines it changes while they run: the host moves their cores. Where the two no longer
share a cache, what is computed on both in turns takes longer. Needs Linux and two cores.
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
    for _ in range(ROUND_TRIPS + 1):
        while byte[0] != 1:
            pass
        byte[0] = 0


def there_and_back(byte: mmap) -> None:
    """Set the byte, and wait until it is cleared."""
    byte[0] = 1
    while byte[0] != 0:
        pass


def main() -> None:
    """Measure the first two cores."""
    argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0]).parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise SystemExit("needs two cores")
    first, second = cores[:2]
    byte = mmap(-1, 1)
    other = get_context("fork").Process(target=answer, args=(byte, second))
    other.start()
    os.sched_setaffinity(0, {first})
    there_and_back(byte)  # when the other has started
    began = time.perf_counter()
    for _ in range(ROUND_TRIPS):
        there_and_back(byte)
    print(f"{(time.perf_counter() - began) / ROUND_TRIPS * 1e9:.0f} ns")
    other.join()


if __name__ == "__main__":
    main()
