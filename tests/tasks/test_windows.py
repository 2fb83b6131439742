from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from segformerpp.errors import UsageError
from segformerpp.tasks import label_maps
from segformerpp.tasks.label_maps import from_logits
from segformerpp.tasks.windows import Tiling, Windows

SIDES = st.integers(1, 90)


def pooled(windows: np.ndarray, cell: int = 4) -> np.ndarray:
    """A network that sees nothing but the cell itself: (B, h, w, 3) -> (B, 3, h / cell, ...)."""
    b, h, w, _ = windows.shape
    means = windows.reshape(b, h // cell, cell, w // cell, cell, 3).mean(axis=(2, 4))
    return means.transpose(0, 3, 1, 2).astype(np.float32)


def padded(image: np.ndarray, cell: int = 4) -> np.ndarray:
    bottom, right = (-side % cell for side in image.shape[:2])
    return np.pad(image, ((0, bottom), (0, right), (0, 0)), mode="edge")


@settings(max_examples=60, deadline=None)
@given(
    height=SIDES,
    width=SIDES,
    tile=st.tuples(st.integers(4, 60), st.integers(4, 60)),
    overlap=st.floats(0, 0.99),
    batch=st.integers(1, 4),
    cell=st.sampled_from([4, 8]),
)
def test_windows_of_a_local_network_are_the_whole(
    height: int, width: int, tile: tuple[int, int], overlap: float, batch: int, cell: int
) -> None:
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    shapes = set()

    def network(windows: np.ndarray) -> np.ndarray:
        assert len(windows) <= batch
        shapes.add(windows.shape[1:])
        return pooled(windows, cell)

    tiling = Tiling(tile, (int(tile[0] * overlap), int(tile[1] * overlap)))
    logits = Windows(image, network, 3, tiling, cell, batch)
    whole = pooled(padded(image, cell)[None], cell)[0]
    assert logits.shape == whole.shape
    rows = [logits[:, i : i + 1] for i in range(logits.shape[1])]
    np.testing.assert_allclose(np.concatenate(rows, axis=1), whole, rtol=1e-5)
    assert len(shapes) == 1


def test_label_maps_read_windows_like_an_array(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(label_maps, "_STRIP_LOGITS", 200)  # some rows at a time
    image = np.random.default_rng(1).integers(0, 256, (210, 130, 3), dtype=np.uint8)
    windows = Windows(image, pooled, 3, Tiling((64, 64), (16, 16)))
    whole = pooled(padded(image)[None])[0]
    np.testing.assert_array_equal(
        from_logits(windows, (4200, 1300)), from_logits(whole, (4200, 1300))
    )


def test_rows_that_were_passed_are_forgotten() -> None:
    image = np.zeros((4000, 40, 3), np.uint8)
    windows = Windows(image, pooled, 3, Tiling((64, 64), (16, 16)))
    for i in range(0, 1000, 10):
        windows[:, i : i + 10]
        assert windows._sums.shape[1] <= 16 + 10


def test_overlaps_are_faded() -> None:
    """Two windows that disagree: between them the average goes over from one to the other."""
    image = np.zeros((32, 48, 3), np.uint8)
    image[:, 16:] = 1
    windows = Windows(
        image,
        lambda x: np.broadcast_to(x[:, :1, :1, :1].astype(np.float32), (1, 1, 8, 8)),
        1,
        Tiling((32, 32), (16, 16)),
    )
    row = windows[:, 0:8][0, 0]
    assert (row[:4] == 0).all()
    assert (row[8:] == 1).all()
    assert (np.diff(row[3:9]) > 0).all()


def test_logits_of_another_size_are_resized() -> None:
    image = np.full((64, 96, 3), 7, np.uint8)

    def network(windows: np.ndarray) -> np.ndarray:
        return np.full((len(windows), 2, 5, 5), 7, np.float32)

    windows = Windows(image, network, 2, Tiling((48, 48), (12, 12)), cell=6)
    found = windows[:, 0:11]
    assert found.shape == (2, 11, 16)
    np.testing.assert_allclose(found, 7, rtol=1e-6)


def test_tiling() -> None:
    assert Tiling.of((1024, 512), None, 32) == Tiling((1024, 512), (256, 128))
    assert Tiling.of((64, 64), 8, 32, above=99) == Tiling((64, 64), (8, 8), 99)
    assert Tiling.of((64, 64), np.int64(8), 32) == Tiling((64, 64), (8, 8))
    tiling = Tiling((64, 64), (8, 8), above=64 * 100)
    assert not tiling.takes((64, 64))
    assert not tiling.takes((64, 100))
    assert tiling.takes((64, 101))
    assert tiling.takes((101, 64))


@pytest.mark.parametrize("overlap", [64, -1, 1.5, "8", (64, 0), (0, 64), (1, 2, 3)])
def test_wrong_overlaps(overlap: Any) -> None:
    with pytest.raises(UsageError, match="overlap: "):
        Tiling.of((64, 64), overlap, 32)


@pytest.mark.parametrize("tile", [(31, 64), (64,), (64.0, 64), 64])
def test_wrong_tiles(tile: Any) -> None:
    with pytest.raises(UsageError, match=r"tile: .* from 32 up"):
        Tiling.of(tile, 0, 32)
