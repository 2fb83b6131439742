import numpy as np
import pytest

from segformerpp.models import Metadata
from segformerpp.runtimes.precision import keeps_labels


@pytest.mark.parametrize(("changed", "kept"), [(0, True), (0.004, True), (0.006, False)])
def test_up_to_half_a_percent_of_the_labels_may_change(changed: float, kept: bool) -> None:
    seen = []

    def full(x: np.ndarray) -> np.ndarray:
        seen.append(x)
        logits = np.zeros((1, 2, 100, 100), np.float32)
        logits[:, 1] = 1
        return logits

    def lower(x: np.ndarray) -> np.ndarray:
        logits = full(x)
        logits[0, 0].ravel()[: round(10_000 * changed)] = 2
        return logits

    assert keeps_labels(full, lower, Metadata()) is kept
    assert seen[0].shape == (1, 3, 384, 768)
    assert abs(seen[0].mean()) < 2  # normalised
    np.testing.assert_array_equal(seen[0], seen[1])
