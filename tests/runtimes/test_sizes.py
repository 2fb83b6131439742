import pytest

from segformerpp.models import SegformerConfig
from segformerpp.plans import MergePlan
from segformerpp.runtimes.sizes import (
    Matching,
    least_size,
    logit_size,
    matchings,
    patch_grid,
    share_of,
)

B0 = SegformerConfig.of_size("b0")


def test_grids_are_those_of_the_convolutions() -> None:
    assert patch_grid(B0, 0, (251, 64)) == (63, 16)
    assert patch_grid(B0, 1, (63, 16)) == (32, 8)
    assert logit_size(B0, MergePlan(), (251, 64)) == (63, 16)
    assert logit_size(B0, MergePlan.parse("downsample"), (251, 64)) == (32, 8)


def test_what_is_matched() -> None:
    found = list(matchings(B0, MergePlan.parse("hq"), (1024, 1024)))
    # kv of stages 1 and 2 have 32 x 32 tokens, q of 3 and 4 have 64 x 64 and 32 x 32.
    assert found == [
        Matching(1, 256, 1024 - 256 - 614),
        Matching(2, 256, 1024 - 256 - 614),
        Matching(3, 256, 4096 - 256 - 3276),
        Matching(4, 64, 1024 - 64 - 819),
    ]
    assert not list(matchings(B0, MergePlan.parse("2x2"), (1024, 1024)))


@pytest.mark.parametrize(
    ("plan", "least"),
    [
        ("none", (32, 32)),
        ("2x2", (32, 32)),
        ("downsample", (64, 64)),
        ("hq", (97, 97)),  # stage 4 has a whole 4 x 4 cell
        ("q4:mode=bsm,r=0.5,sx=3,sy=1 input_scale=0.5", (64, 130)),
        ("q4:mode=bsm,r=0,sx=9,sy=9", (32, 32)),
    ],
)
def test_least_sizes(plan: str, least: tuple[int, int]) -> None:
    assert least_size(B0, MergePlan.parse(plan)) == least


def test_shares() -> None:
    assert share_of(0.7, 90) == 62  # as floats have it, and so the modules
    assert share_of(0.8, 4096) == 3276
