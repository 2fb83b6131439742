import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segformerpp.metrics.segmentation import (
    confusion,
    frequency_weighted_iou,
    image_iou,
    iou,
    mean_iou,
    pixel_accuracy,
)

MAPS = arrays(np.uint8, (5, 7), elements=st.integers(0, 2))


def test_by_hand() -> None:
    mask = np.array([[0, 0, 1, 255]], np.uint8)
    label_map = np.array([[0, 1, 1, 2]], np.uint8)
    table = confusion(label_map, mask, 3)
    assert table.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 0]]
    np.testing.assert_equal(iou(table), [50, 50, np.nan])
    assert mean_iou(table) == 50
    assert pixel_accuracy(table) == pytest.approx(200 / 3)
    assert frequency_weighted_iou(table) == 50
    for figure in (mean_iou, pixel_accuracy, frequency_weighted_iou, image_iou):
        assert np.isnan(figure(np.zeros((3, 3), np.int64)))


def test_a_class_that_an_image_has_not_is_no_zero() -> None:
    table = np.array([[98, 0, 2], [0, 100, 0], [0, 0, 0]])
    assert mean_iou(table) == pytest.approx(66)
    assert image_iou(table) == pytest.approx(99)


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


@given(
    arrays(np.uint8, (6, 6), elements=st.integers(0, 4)),
    arrays(np.uint8, (6, 6), elements=st.sampled_from([0, 1, 2, 255])),
)
@settings(deadline=None)  # the first import takes seconds
@example(np.zeros((6, 6), np.uint8), np.full((6, 6), 2, np.uint8))
def test_figures_are_those_of_torchmetrics(label_map: np.ndarray, mask: np.ndarray) -> None:
    """Class 3 is never there, and is not predicted in many of the examples; 4 may be predicted."""
    metrics = pytest.importorskip("torchmetrics.functional.classification")
    if (mask == 255).all():
        return
    import torch

    pair = torch.from_numpy(label_map), torch.from_numpy(mask)
    options = {"num_classes": 5, "ignore_index": 255}
    table = confusion(label_map, mask, 5)
    theirs = metrics.multiclass_confusion_matrix(*pair, **options)
    np.testing.assert_array_equal(table, theirs)
    each = metrics.multiclass_jaccard_index(*pair, **options, average=None).numpy()
    occurs = ~np.isnan(iou(table))
    np.testing.assert_allclose(iou(table)[occurs], 100 * each[occurs], atol=1e-4)
    assert (np.nan_to_num(each[~occurs]) == 0).all()
    for ours, average in ((mean_iou, "macro"), (frequency_weighted_iou, "weighted")):
        theirs = metrics.multiclass_jaccard_index(*pair, **options, average=average)
        assert ours(table) == pytest.approx(100 * float(theirs), abs=1e-4)
    theirs = metrics.multiclass_accuracy(*pair, **options, average="micro")
    assert pixel_accuracy(table) == pytest.approx(100 * float(theirs), abs=1e-4)
