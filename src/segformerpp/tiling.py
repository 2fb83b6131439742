"""Which images go through the network in windows, and how much goes through it together."""

from __future__ import annotations

import sys
from typing import SupportsIndex, cast

from segformerpp.arguments import Size
from segformerpp.checkpoints import Checkpoint
from segformerpp.errors import UsageError
from segformerpp.plans import MergePlan
from segformerpp.runtimes.memory import bytes_per_pixel
from segformerpp.tasks.windows import Tiling

#: What `tile="auto"` means: images that would need more memory go in square tiles of this side,
#: and no more images or tiles go together than fit into it.
AUTO_TILE_BYTES = 4 * 2**30
AUTO_TILE = 1024


def without_tiles(tile: object) -> bool:
    """Whether a user has not asked for windows."""
    return tile is None or (isinstance(tile, str) and tile == "auto")


def tiling_of(
    tile: Size | str | None,
    overlap: SupportsIndex | Size | None,
    least: int,
    network: Checkpoint,
    plan: MergePlan,
    runtime: str,
) -> tuple[Tiling | None, int]:
    """Which images go in tiles, and how many pixels go through the network together at most.

    Args:
        tile: (H, W) of tiles, ``"auto"``, or None for none.
        overlap: of tiles; see `Tiling`.
        least: the smallest side of what goes through the network.
        network: what images go through.
        plan: its plan.
        runtime: what runs it, as the user said it; ``auto`` is never ONNX Runtime.

    Raises:
        UsageError: if tile or overlap are none, or there is an overlap of nothing.
    """
    if isinstance(tile, str) and tile == "auto":
        each = bytes_per_pixel(network.config, runtime) * plan.input_scale**2
        limit = int(AUTO_TILE_BYTES / each)
        side = max(AUTO_TILE, least)
        return Tiling.of((side, side), overlap, least, above=limit), limit
    if tile is not None:
        return Tiling.of(cast(Size, tile), overlap, least), sys.maxsize
    if overlap is not None:
        raise UsageError("overlap: only where there are tiles")
    return None, sys.maxsize
