"""Label maps against masks."""

from __future__ import annotations

import numpy as np


def confusion(label_map: np.ndarray, mask: np.ndarray, classes: int) -> np.ndarray:
    """Count pixels by their true class (rows) and the predicted one (columns).

    Args:
        label_map: predicted ids, (H, W).
        mask: true ids, (H, W); ids that are no class, such as 255, are not counted.
        classes: K.

    Returns:
        (K, K) int64.
    """
    valid = mask < classes
    index = mask[valid].astype(np.int64) * classes + label_map[valid]
    return np.bincount(index, minlength=classes**2).reshape(classes, classes)


def iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union of each class in percent, (K,); NaN for classes that never occur."""
    true = np.diag(confusion)
    union = confusion.sum(0) + confusion.sum(1) - true
    return np.where(union > 0, 100 * true / np.maximum(union, 1), np.nan)


def mean_iou(confusion: np.ndarray) -> float:
    """Mean over the classes that occur, in percent; NaN if none does."""
    values = iou(confusion)
    return float(np.nanmean(values)) if np.isfinite(values).any() else float("nan")


def pixel_accuracy(confusion: np.ndarray) -> float:
    """The share of pixels with the right class, in percent; NaN if there are none."""
    total = confusion.sum()
    return float(100 * np.trace(confusion) / total) if total else float("nan")


def frequency_weighted_iou(confusion: np.ndarray) -> float:
    """The mean of the classes' IoU weighted by their true pixels, in percent; NaN without any."""
    true = confusion.sum(1)
    present = true > 0
    if not present.any():
        return float("nan")
    return float((iou(confusion)[present] * true[present]).sum() / true.sum())


def image_iou(confusion: np.ndarray) -> float:
    """Mean over the classes that the mask of one image has, in percent; NaN if it has none.

    Classes that were only predicted count through the pixels that they take from others, so that
    a single wrong pixel is not a class with an IoU of zero.
    """
    there = confusion.sum(1) > 0
    return float(iou(confusion)[there].mean()) if there.any() else float("nan")
