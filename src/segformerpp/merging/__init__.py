"""Token merging: plans (`plan`) and the pure functions that carry them out (`match`)."""

from segformerpp.merging.plan import PRESETS, MergePlan, StageMerge
from segformerpp.merging.strategies import (
    BipartiteMatching,
    Merge,
    Neighbour1d,
    Neighbour2d,
)

__all__ = [
    "PRESETS",
    "BipartiteMatching",
    "Merge",
    "MergePlan",
    "Neighbour1d",
    "Neighbour2d",
    "StageMerge",
]
