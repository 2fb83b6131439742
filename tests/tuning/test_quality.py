from pathlib import Path

import numpy as np
import pytest

from segformerpp.data.poses import Person
from segformerpp.tuning.kinds import Keypoints
from segformerpp.tuning.quality import KEYPOINTS, Budget, Quality, from_dict, quality


def test_agreement_and_its_error() -> None:
    found = quality([0.9, 1.0, 0.95, 0.95])
    assert found.agreement == pytest.approx(95)
    assert found.agreement_error == pytest.approx(np.std([90, 100, 95, 95], ddof=1) / 2)
    assert (found.drop, found.score, found.images) == (None, None, 4)
    assert quality([1.0]).agreement_error == 100


def test_drop_of_known_tables() -> None:
    right, wrong = np.array([[8, 0], [0, 8]]), np.array([[8, 0], [8, 0]])
    found = quality([1.0, 0.5], [right, wrong], [right, right])
    # 16 of class 0 are right and 8 wrongly so, of class 1 8 of 16 are found
    assert found.score == pytest.approx(100 * (16 / 24 + 8 / 16) / 2)
    assert found.score is not None
    assert found.drop == pytest.approx(100 - found.score)
    assert found.drop_error > 10
    same = quality([1.0, 1.0], [right, right], [right, right])
    assert (same.drop, same.drop_error) == (0, 0)
    assert from_dict(found.to_dict()) == found


def test_budget() -> None:
    found = Quality(9, 98.5, 0.2, drop=0.2, drop_error=0.05, score=50.0)
    assert Budget(max_drop=0.3).overshoot(found, 1) == pytest.approx(-0.05 / 0.3)
    assert Budget(max_drop=0.2).overshoot(found, 1) == pytest.approx(0.25)
    assert Budget(max_drop=0.2).overshoot(found, -2) < 0
    assert Budget(min_agreement=98).overshoot(found, 1) == pytest.approx(-0.15)
    assert Budget(0.3, 99).overshoot(found, 0) == pytest.approx(0.5)
    assert str(Budget(0.3, 99)) == (
        "at most 0.3 points of mIoU lost, at least 99 % of the labels kept"
    )
    assert str(Budget(0.5, words=KEYPOINTS)) == "at most 0.5 points of PCK@0.1 lost"


def test_keypoints_by_hand() -> None:
    """Two people with a box of 100 x 50: 10 pixels count as right, 5 as the same."""
    kind = Keypoints((64, 64))
    box = np.array([0, 0, 50, 100.0])
    labelled = np.array([[10, 10, 2], [20, 20, 1], [0, 0, 0]], np.float32)
    people = [Person(Path("a.jpg"), 1, box, labelled)] * 2
    none = np.array([[[10, 10, 1], [20, 20, 1], [9, 9, 1]]] * 2, np.float32)
    found = none.copy()
    found[0, 0, 0] += 6  # moved, and still right
    found[1, 1, 1] += 11
    found[1, 2] += 40  # not labelled
    assert kind.same(found, none, people) == 0.5
    assert kind.count(found, people).tolist() == [3, 4]
    counts = [kind.count(k, people) for k in (none, found)]
    both = quality([1.0, 0.5], [counts[0], counts[1]], [counts[0]] * 2, kind.score)
    assert both.score == pytest.approx(100 * 7 / 8)
    assert both.drop == pytest.approx(100 / 8)
