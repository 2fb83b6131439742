import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segformerpp.metrics.segmentation import confusion, iou, mean_iou

MAPS = arrays(np.uint8, (5, 7), elements=st.integers(0, 2))


def test_by_hand() -> None:
    mask = np.array([[0, 0, 1, 255]], np.uint8)
    label_map = np.array([[0, 1, 1, 2]], np.uint8)
    table = confusion(label_map, mask, 3)
    assert table.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    np.testing.assert_equal(iou(table), [50, 50, np.nan])
    assert mean_iou(table) == 50
    assert np.isnan(mean_iou(np.zeros((3, 3), np.int64)))


@given(MAPS, MAPS)
def test_iou_is_that_of_the_sets(label_map: np.ndarray, mask: np.ndarray) -> None:
    found = iou(confusion(label_map, mask, 3))
    for label in range(3):
        union = ((label_map == label) | (mask == label)).sum()
        both = ((label_map == label) & (mask == label)).sum()
        if union:
            assert found[label] == pytest.approx(100 * both / union)
        else:
            assert np.isnan(found[label])
