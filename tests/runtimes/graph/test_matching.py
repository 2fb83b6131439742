"""What OpenVINO computes of sizes that follow the image, beside whole numbers of any length."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from segformerpp.plans.strategies import Neighbour1d
from segformerpp.runtimes.graph.builder import Graph, Value
from segformerpp.runtimes.graph.matching import Tokens, match, nearest
from segformerpp.runtimes.sizes import share_of
from tests.runtimes.graph.parity import ENGINES, Engine


def engine(name: str, rank: int, kind: int, write: Callable[[Graph, Value], Any]) -> Engine:
    """A graph from a tensor of any shape of that rank to one list of numbers."""
    g = Graph()
    given = helper.make_tensor_value_info("images", TensorProto.FLOAT, [*"abcd"[:rank]])
    out = helper.make_tensor_value_info("out", kind, ["n"])
    return Engine(name, g.model([given], [(write(g, Value(g, "images")), out)], {}))


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("scale", [0.5, 0.75, 0.3])
def test_pixels_that_remain_of_large_images(scale: float, name: str) -> None:
    def write(g: Graph, x: Value) -> Any:
        side = g.size(x, 0)
        return nearest(g, share_of(scale, side), side)

    run = engine(name, 1, TensorProto.INT64, write)
    for side in (33, 1000, 5035, 5889, 6377, 8207, 8939, 9001):
        kept = int(scale * side)
        np.testing.assert_array_equal(
            run(np.zeros(side, np.float32)), np.arange(kept) * side // kept
        )


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("s", [2, 3, 8])
@pytest.mark.parametrize("grid", [(1, 7), (255, 255), (256, 513), (512, 1024)])
def test_neighbours_in_one_dimension_of_large_images(
    grid: tuple[int, int], s: int, name: str
) -> None:
    def write(g: Graph, x: Value) -> Any:
        tokens = Tokens(g.size(x, 0), (g.size(x, 1), g.size(x, 2)), 1)
        rows = g.reshape(x, tokens.batch, tokens.count, 1)
        found = match(g, Neighbour1d(s), rows, tokens)
        assert found
        cells = g.op("Range", np.float32(0), g.op("Cast", (tokens.count + (s - 1)) // s, to=1), 1.0)
        return g.reshape(found.unmerge(g.reshape(cells, 1, -1, 1)), -1)

    count = grid[0] * grid[1]
    cells = -(-count // s)
    found = engine(name, 3, TensorProto.FLOAT, write)(np.zeros((1, *grid), np.float32))
    np.testing.assert_array_equal(found, np.arange(count) * cells // count)
