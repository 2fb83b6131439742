import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from segformerpp.explaining.groups import groups_of, recording
from segformerpp.merging.match import match
from segformerpp.models import Segformer
from segformerpp.plans import BipartiteMatching, MergePlan, Neighbour1d, Neighbour2d


def found(merge, x, grid):
    return groups_of(merge, match(merge, x, grid), x, grid)


def test_pool_by_hand():
    x = torch.tensor([[[1.0, 0], [0, 1], [1, 0], [1, 0], [0, 1], [0, 1]]])
    group, similarity, destinations = found(Neighbour2d(sx=2, sy=2), x, (2, 3))
    assert group.tolist() == [[0, 0, 1], [0, 0, 1]]
    # The first group's average is (0.5, 0.5); the second's (0.5, 0.5).
    assert similarity == pytest.approx(np.full((2, 3), 0.5**0.5), abs=1e-6)
    assert destinations.shape == (0, 2)


def test_last_group_of_a_row_has_what_is_left():
    group, similarity, _ = found(Neighbour1d(s=3), torch.ones(1, 7, 2), (1, 7))
    assert group.tolist() == [[0, 0, 0, 1, 1, 1, 2]]
    assert np.isnan(similarity).tolist() == [[False] * 6 + [True]]


def test_bipartite_by_hand():
    # 2 x 4 tokens, destinations at 0 and 2; the sources 1, 3, 4 join 0, 2, 2; 5, 6, 7 are left.
    x = torch.tensor(
        [[[1.0, 0, 0], [1, 0.1, 0], [0, 1, 0], [0, 1, 0.2], [0, 1, 0.3], *[[0.0, 0, -1]] * 3]]
    )
    group, similarity, destinations = found(BipartiteMatching(r=3 / 8, sx=2, sy=2), x, (2, 4))
    assert destinations.tolist() == [[0, 0], [0, 2]]
    assert group[0].tolist() == [0, 0, 1, 1]
    assert group[1, 0] == 1
    assert sorted(group[1, 1:].tolist()) == [2, 3, 4]
    cosines = [1, 1 / 1.01**0.5, 1, 1 / 1.04**0.5, 1 / 1.09**0.5, *[np.nan] * 3]
    assert similarity.ravel() == pytest.approx(np.array(cosines), abs=1e-6, nan_ok=True)


@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    merge=st.one_of(
        st.builds(BipartiteMatching, r=st.floats(0, 1), sx=st.integers(1, 4), sy=st.integers(1, 4)),
        st.builds(Neighbour1d, s=st.integers(1, 5)),
        st.builds(Neighbour2d, sx=st.integers(1, 4), sy=st.integers(1, 4)),
    ),
    seed=st.integers(0, 9),
)
def test_groups_are_those_that_are_averaged(grid, merge, seed):
    x = torch.randn(1, grid[0] * grid[1], 5, generator=torch.Generator().manual_seed(seed))
    made = match(merge, x, grid)
    group, similarity, _ = groups_of(merge, made, x, grid)
    numbers = torch.from_numpy(group).flatten()
    if made is None:
        assert len(numbers.unique()) == len(numbers)
        return
    averages = torch.stack([x[0, numbers == n].mean(dim=0) for n in range(numbers.max() + 1)])
    torch.testing.assert_close(averages[None], made.merge(x))
    assert (np.isnan(similarity) == (np.bincount(group.ravel())[group] == 1)).all()


@pytest.mark.parametrize(
    "plan", ["hq", "balanced", "q3:mode=bsm,r=0.8,sx=2,sy=2 kv3:mode=bsm,r=0.5,sx=2,sy=2 reuse3=2"]
)
def test_recording_counts_what_the_plan_says(random_model: Segformer, plan: str):
    encoder = random_model.encoder
    before, encoder.merge_plan = encoder.merge_plan, MergePlan.parse(plan)
    places = [(stage, block) for stage in (1, 2, 3, 4) for block in (1, 2)]
    try:
        with torch.inference_mode(), recording(encoder, places) as groupings:
            encoder(torch.randn(1, 3, 256, 320))
        noted = list(groupings)
        with torch.inference_mode():
            encoder(torch.randn(1, 3, 64, 64))
        assert groupings == noted, "watched after the end"
    finally:
        encoder.merge_plan = before
    wanted = [
        (stage, block, part)
        for stage, merge in enumerate(MergePlan.parse(plan).stages, 1)
        for block in (1, 2)
        for part, strategy in (("q", merge.q), ("kv", merge.kv))
        if strategy
    ]
    assert [(g.stage, g.block, g.part) for g in noted] == wanted
    for grouping in noted:
        stride = 2 << grouping.stage
        keys = (8, 4, 2, 1)[grouping.stage - 1] if grouping.part == "kv" else 1
        assert grouping.group.shape == (256 // stride // keys, 320 // stride // keys)
        assert grouping.cell == pytest.approx((stride * keys, stride * keys))
        if isinstance(grouping.merge, BipartiteMatching):
            left = grouping.merge.left(*grouping.group.shape)
            assert grouping.merged == grouping.tokens - left > 0
            assert np.nanmin(grouping.similarity) >= -1.0001
            assert grouping.similarity[tuple(grouping.destinations.T)][
                grouping.alone[tuple(grouping.destinations.T)] == 0
            ] == pytest.approx(1, abs=1e-5)
        assert grouping.reused == ("reuse" in plan and grouping.block == 2)
