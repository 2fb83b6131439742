import numpy as np
import pytest

from segformerpp.tuning.quality import Budget, Quality, from_dict, quality


def test_agreement_and_its_error() -> None:
    found = quality([0.9, 1.0, 0.95, 0.95])
    assert found.agreement == pytest.approx(95)
    assert found.agreement_error == pytest.approx(np.std([90, 100, 95, 95], ddof=1) / 2)
    assert (found.drop, found.miou, found.images) == (None, None, 4)
    assert quality([1.0]).agreement_error == 100


def test_drop_of_known_tables() -> None:
    right, wrong = np.array([[8, 0], [0, 8]]), np.array([[8, 0], [8, 0]])
    found = quality([1.0, 0.5], [right, wrong], [right, right])
    # 16 of class 0 are right and 8 wrongly so, of class 1 8 of 16 are found
    assert found.miou == pytest.approx(100 * (16 / 24 + 8 / 16) / 2)
    assert found.miou is not None
    assert found.drop == pytest.approx(100 - found.miou)
    assert found.drop_error > 10
    same = quality([1.0, 1.0], [right, right], [right, right])
    assert (same.drop, same.drop_error) == (0, 0)
    assert from_dict(found.to_dict()) == found


def test_budget() -> None:
    found = Quality(9, 98.5, 0.2, drop=0.2, drop_error=0.05, miou=50.0)
    assert Budget(max_drop=0.3).overshoot(found, 1) == pytest.approx(-0.05 / 0.3)
    assert Budget(max_drop=0.2).overshoot(found, 1) == pytest.approx(0.25)
    assert Budget(max_drop=0.2).overshoot(found, -2) < 0
    assert Budget(min_agreement=98).overshoot(found, 1) == pytest.approx(-0.15)
    assert Budget(0.3, 99).overshoot(found, 0) == pytest.approx(0.5)
    assert str(Budget(0.3, 99)) == (
        "at most 0.3 points of mIoU lost, at least 99 % of the labels kept"
    )
