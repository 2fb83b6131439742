"""How many labels each preset keeps, as data: what `auto` goes by, and docs/accuracy.md shows."""

from __future__ import annotations

from segformerpp.plans.plan import PRESETS, MergePlan

#: The share of labels, in percent, that stay what they are under `none`: `camvid-b0` on CamVid's
#: 233 test images at their own size, 360x480 (`benchmarks/accuracy.py`, to one decimal).
AGREEMENT: dict[str, float] = {
    "none": 100.0,
    "balanced": 98.8,
    "2x2": 98.8,
    "turbo": 98.7,
    "hq": 98.7,
    "fast": 96.5,
    "downsample": 88.7,
}


def presets_that_keep(least: float) -> dict[str, MergePlan]:
    """The presets that merge and keep at least `least` % of the labels, the most faithful first."""
    kept = sorted(AGREEMENT, key=lambda name: -AGREEMENT[name])
    return {n: PRESETS[n] for n in kept if AGREEMENT[n] >= least and PRESETS[n] != MergePlan()}
