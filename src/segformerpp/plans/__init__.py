"""Merge plans: what is merged where. Needs no torch; `merging` carries them out."""

from segformerpp.plans.plan import PRESETS, MergePlan
from segformerpp.plans.strategies import (
    BipartiteMatching,
    Merge,
    Neighbour1d,
    Neighbour2d,
    StageMerge,
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
