"""Keypoints against labels: the share of correct ones (PCK)."""

from __future__ import annotations

import numpy as np


def distances(predicted: np.ndarray, keypoints: np.ndarray, box: np.ndarray) -> np.ndarray:
    """How far the keypoints of a person are from where they are labelled.

    Args:
        predicted: (K, 2 or more): x, y in image pixels.
        keypoints: (K, 3): the labelled ones, with 0 in the third column for those that are not.
        box: (4,): x, y, width, height of the person.

    Returns:
        (K,) float64 in parts of the box's larger side; NaN for those that are not labelled.
    """
    far = np.linalg.norm(np.asarray(predicted, np.float64)[:, :2] - keypoints[:, :2], axis=1)
    return np.where(keypoints[:, 2] > 0, far / max(box[2:]), np.nan)


def correct(
    predicted: np.ndarray, keypoints: np.ndarray, box: np.ndarray, threshold: float
) -> np.ndarray:
    """Which keypoints of a person are near enough to where they are labelled (SegFormer++, 4.2).

    Args:
        predicted: (K, 2 or more): x, y in image pixels.
        keypoints: (K, 3): the labelled ones, with 0 in the third column for those that are not.
        box: (4,): x, y, width, height of the person.
        threshold: the largest distance, in parts of the box's larger side.

    Returns:
        (K,) float64: 1 for correct ones, 0 for others, NaN for those that are not labelled.
    """
    far = distances(predicted, keypoints, box)
    return np.where(np.isnan(far), np.nan, far <= threshold)


def pck(correct: np.ndarray) -> tuple[float, np.ndarray]:
    """The share of correct keypoints in percent.

    Args:
        correct: (P, K), of what `correct` gives for each person.

    Returns:
        Of all labelled keypoints together, and for each of the K; NaN where none is labelled.
    """
    labelled = np.isfinite(correct)
    right = np.where(labelled, correct, 0).sum(axis=0)
    counts = labelled.sum(axis=0)
    each = np.where(counts > 0, 100 * right / np.maximum(counts, 1), np.nan)
    total = 100 * right.sum() / counts.sum() if counts.sum() else float("nan")
    return float(total), each
