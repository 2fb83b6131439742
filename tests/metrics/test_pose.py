import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from segformerpp.metrics.pose import correct, pck


@given(seed=st.integers(0, 2**32 - 1), threshold=st.sampled_from([0.05, 0.1]))
def test_equals_brute_force(seed: int, threshold: float) -> None:
    rng = np.random.default_rng(seed)
    people, joints = 5, 4
    keypoints = rng.uniform(0, 100, (people, joints, 3))
    keypoints[..., 2] = rng.integers(0, 3, (people, joints))
    keypoints[:, 0, 2] = 0  # never labelled
    predicted = keypoints + rng.normal(0, 8, keypoints.shape)
    boxes = rng.uniform(20, 100, (people, 4))
    hits = [0] * joints
    counts = [0] * joints
    for p in range(people):
        for j in range(joints):
            if keypoints[p, j, 2] > 0:
                counts[j] += 1
                far = math.dist(predicted[p, j, :2], keypoints[p, j, :2])
                hits[j] += far <= threshold * max(boxes[p, 2], boxes[p, 3])
    rows = np.stack(
        [correct(*one, threshold) for one in zip(predicted, keypoints, boxes, strict=True)]
    )
    total, each = pck(rows)
    assert math.isnan(each[0])
    expected = [100 * h / c if c else math.nan for h, c in zip(hits, counts, strict=True)]
    np.testing.assert_allclose(each, expected)
    np.testing.assert_allclose(total, 100 * sum(hits) / sum(counts) if sum(counts) else math.nan)
