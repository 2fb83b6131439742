import logging
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from segformerpp.merging.match import Grid, match
from segformerpp.plans import BipartiteMatching, Merge, Neighbour1d, Neighbour2d

grids = st.tuples(st.integers(1, 13), st.integers(1, 13))
stride = st.integers(1, 5)
ratio = st.one_of(st.floats(0, 1), st.sampled_from([0.0, 0.5, 0.6, 0.8, 0.9, 1.0]))
least = st.one_of(st.just(0), st.integers(1, 60))
matchings = st.builds(BipartiteMatching, ratio, stride, stride, min_tokens=least)
merges = st.one_of(
    matchings,
    st.builds(Neighbour1d, st.integers(1, 20), min_tokens=least),
    st.builds(Neighbour2d, stride, stride, min_tokens=least),
)


def tokens(grid: Grid, batch: int = 1, channels: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, grid[0] * grid[1], channels)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def brute_force_bsm(x: Tensor, grid: Grid, merge: BipartiteMatching) -> tuple[Tensor, list[int]]:
    """One image (N, C): merged tokens in the order of their first token, and each token's group."""
    h, w = grid
    destination = [
        row * w + column
        for row in range(0, h // merge.sy * merge.sy, merge.sy)
        for column in range(0, w // merge.sx * merge.sx, merge.sx)
    ]
    sources = [i for i in range(h * w) if i not in destination]
    pairs = []
    for s in sources:
        cosine = [float(torch.cosine_similarity(x[s], x[d], dim=0)) for d in destination]
        best = max(range(len(destination)), key=cosine.__getitem__) if destination else 0
        pairs.append((cosine[best] if destination else 0.0, s, best))
    pairs.sort(reverse=True)
    group = list(range(h * w))
    merged = min(int(merge.r * h * w), max(h * w - merge.min_tokens, 0)) if destination else 0
    for _, s, best in pairs[:merged]:
        group[s] = destination[best]
    leaders = sorted(set(group))
    means = torch.stack(
        [x[[i for i in range(h * w) if group[i] == lead]].mean(dim=0) for lead in leaders]
    )
    return means, [leaders.index(lead) for lead in group]


@settings(deadline=None)
@given(grids, matchings, st.integers(0, 99))
def test_bsm_equals_brute_force(grid: Grid, merge: BipartiteMatching, seed: int) -> None:
    x = tokens(grid, seed=seed)
    expected, group = brute_force_bsm(x[0], grid, merge)
    found = match(merge, x, grid)
    merged = found.merge(x)[0] if found else x[0]
    unmerged = found.unmerge(merged[None])[0] if found else merged
    assert merged.shape == expected.shape
    torch.testing.assert_close(unmerged, expected[group], rtol=0, atol=1e-12)


@settings(deadline=None)
@given(grids, merges, st.integers(1, 4), st.integers(0, 99))
def test_batch_groups_and_means(grid: Grid, merge: Merge, batch: int, seed: int) -> None:
    x = tokens(grid, batch, seed=seed)
    found = match(merge, x, grid)
    if found is None:
        return
    merged = found.merge(x)
    out = found.unmerge(merged)
    assert out.shape == x.shape
    for i in range(batch):
        alone = match(merge, x[i : i + 1], grid)
        assert alone is not None
        torch.testing.assert_close(alone.merge(x[i : i + 1]), merged[i : i + 1])
        torch.testing.assert_close(alone.unmerge(alone.merge(x[i : i + 1])), out[i : i + 1])
    if isinstance(merge, BipartiteMatching):
        # Every group's mean is the mean of its members: so is the mean of all tokens.
        torch.testing.assert_close(out.mean(dim=1), x.mean(dim=1))
        torch.testing.assert_close(found.merge(out), merged)


@given(grids, merges)
def test_what_is_left_is_known_beforehand(grid: Grid, merge: Merge) -> None:
    x = tokens(grid)
    found = match(merge, x, grid)
    left = merge.left(*grid)
    assert left == (found.merge(x).shape[1] if found else x.shape[1])
    assert left >= min(merge.min_tokens, x.shape[1])


def test_few_tokens_are_left_as_they_are(caplog: pytest.LogCaptureFixture) -> None:
    x = tokens((6, 6))
    for merge in (
        BipartiteMatching(0.9, 7, 7, min_tokens=36),
        BipartiteMatching(0.9, 2, 2, min_tokens=36),
        Neighbour1d(2, min_tokens=19),
        Neighbour2d(2, 2, min_tokens=10),
    ):
        assert match(merge, x, (6, 6)) is None
    assert not caplog.records
    fewer = match(BipartiteMatching(0.9, 2, 2, min_tokens=30), x, (6, 6))
    assert fewer
    assert fewer.merge(x).shape[1] == 30


@settings(deadline=None)
@given(grids, merges, st.integers(1, 3))
def test_log_sizes_count_the_tokens_of_each_group(grid: Grid, merge: Merge, batch: int) -> None:
    x = tokens(grid, batch)
    found = match(merge, x, grid)
    if found is None:
        return
    # A group's mean of the indicator of one token is one over the group's size, or zero.
    each = torch.eye(x.shape[1], dtype=x.dtype).expand(batch, -1, -1)
    sizes = 1 / found.merge(each).amax(dim=2)
    logs = found.log_sizes(x)
    if logs is None:
        assert (sizes == sizes[:1, :1]).all()
    else:
        torch.testing.assert_close(logs.exp().expand_as(sizes), sizes)


@given(grids, st.integers(1, 20))
def test_n1d_averages_runs_and_reads_nearest(grid: Grid, s: int) -> None:
    x, n = tokens(grid), grid[0] * grid[1]
    found = match(Neighbour1d(s), x, grid)
    if found is None:
        assert math.ceil(n / s) == n
        return
    pools = math.ceil(n / s)
    expected = torch.stack([x[:, i * s : (i + 1) * s].mean(dim=1) for i in range(pools)], dim=1)
    torch.testing.assert_close(found.merge(x), expected)
    nearest = torch.stack([expected[:, i * pools // n] for i in range(n)], dim=1)
    torch.testing.assert_close(found.unmerge(expected), nearest)


@given(grids, stride, stride)
def test_n2d_averages_cells_and_reads_nearest(grid: Grid, sx: int, sy: int) -> None:
    (h, w), x = grid, tokens(grid)
    found = match(Neighbour2d(sx, sy), x, grid)
    if found is None:
        assert math.ceil(h / sy) * math.ceil(w / sx) == h * w
        return
    image = x.unflatten(1, grid)
    rows, columns = math.ceil(h / sy), math.ceil(w / sx)
    cells = torch.stack(
        [
            image[:, r * sy : (r + 1) * sy, c * sx : (c + 1) * sx].mean(dim=(1, 2))
            for r in range(rows)
            for c in range(columns)
        ],
        dim=1,
    )
    torch.testing.assert_close(found.merge(x), cells)
    nearest = torch.stack(
        [
            cells[:, (i * rows // h) * columns + j * columns // w]
            for i in range(h)
            for j in range(w)
        ],
        dim=1,
    )
    torch.testing.assert_close(found.unmerge(cells), nearest)


@given(grids, stride, stride)
def test_ratio_zero_is_no_merging(grid: Grid, sx: int, sy: int) -> None:
    assert match(BipartiteMatching(0, sx, sy), tokens(grid), grid) is None
    assert match(None, tokens(grid), grid) is None


def test_a_grid_without_a_whole_cell_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    merge = BipartiteMatching(0.77, 5, 5)
    with caplog.at_level(logging.WARNING, "segformerpp"):
        for _ in range(3):
            assert match(merge, tokens((4, 9)), (4, 9)) is None
    assert [r.getMessage() for r in caplog.records] == [
        "a token grid of 4 x 9 has no whole cell of 5 x 5: nothing is merged there"
    ]


def test_half_precision_counts_large_groups() -> None:
    # 4095 equal tokens in one group: bf16 cannot count that far, nor sum them.
    grid = (64, 64)
    x = torch.ones(1, 64 * 64, 8, dtype=torch.bfloat16)
    found = match(BipartiteMatching(1.0, 64, 64), x, grid)
    assert found is not None
    merged = found.merge(x)
    assert merged.dtype == torch.bfloat16
    torch.testing.assert_close(merged, torch.ones(1, 1, 8, dtype=torch.bfloat16))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_zero_destination_attracts_nobody(dtype: torch.dtype) -> None:
    x = torch.ones(1, 16, 3, dtype=dtype)
    x[:, 0] = 0  # the first of four destinations; its cosine with anything is taken as 0
    found = match(BipartiteMatching(1.0, 2, 2), x, (4, 4))
    assert found is not None
    assert torch.equal(found.unmerge(found.merge(x)), x)


@pytest.mark.parametrize("merge", [BipartiteMatching(0.6, 2, 2), Neighbour1d(3), Neighbour2d(2, 3)])
def test_gradients(merge: Merge) -> None:
    grid = (5, 7)
    x = tokens(grid, batch=2).requires_grad_()

    def round_trip(x: Tensor) -> Tensor:
        found = match(merge, x, grid)
        assert found is not None
        return found.unmerge(found.merge(x))

    assert torch.autograd.gradcheck(round_trip, (x,))
