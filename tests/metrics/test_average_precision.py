import copy
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformerpp.data.skeletons import skeleton
from segformerpp.errors import UsageError
from segformerpp.metrics.average_precision import average_precision

KEYS = {"ap", "ar", "ap_50", "ap_75"}


def results_of(
    truth: Any, rng: np.random.Generator | None = None, noise: float = 0
) -> list[dict[str, Any]]:
    """Everyone with a labelled keypoint, found with an error of so many parts of the box."""
    rng = rng or np.random.default_rng(0)
    found = []
    for entry in truth["annotations"]:
        if entry["iscrowd"] or not entry["num_keypoints"]:
            continue
        points = np.array(entry["keypoints"], float).reshape(-1, 3)
        points[:, :2] += rng.normal(0, noise * max(entry["bbox"][2:]), (len(points), 2))
        row = {"image_id": entry["image_id"], "category_id": 1, "score": float(rng.random())}
        found.append({**row, "keypoints": points.ravel().tolist()})
    return found


@pytest.fixture(scope="module")
def coco(shared: Path) -> Any:
    path = shared / "data" / "coco_sample" / "annotations" / "person_keypoints_val2017.json"
    return json.loads(path.read_text())


def by_pycocotools(truth: Any, results: Sequence[Any], sigmas: Sequence[float]) -> dict[str, float]:
    pytest.importorskip("pycocotools", reason="nothing to compare with")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    known = COCO()
    known.dataset = copy.deepcopy(truth)
    known.createIndex()
    judge = COCOeval(known, known.loadRes(copy.deepcopy(list(results))), "keypoints")
    judge.params.kpt_oks_sigmas = np.array(sigmas)
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    places = {"ap": 0, "ap_50": 1, "ap_75": 2, "ar": 5}
    return {key: 100 * judge.stats[place] for key, place in places.items()}


def test_truth_itself_is_perfect(coco: Any) -> None:
    found = average_precision(coco, results_of(coco), skeleton("coco").sigmas)
    assert found == dict.fromkeys(KEYS, pytest.approx(100, abs=1e-9))


@pytest.mark.parametrize("noise", [0.01, 0.03, 0.1])
@pytest.mark.parametrize("extra", [0, 25])
def test_falls_with_noise_as_pycocotools_says(coco: Any, noise: float, extra: int) -> None:
    """Also with so many people who are not there, in every image, crowds and unlabelled ones."""
    rng = np.random.default_rng(1)
    results = results_of(coco, rng, noise)
    for row in results_of(coco, rng, 0.2)[:extra]:
        results += [{**row, "score": 0.3}] * 2
    before = copy.deepcopy((coco, results))
    sigmas = skeleton("coco").sigmas
    found = average_precision(coco, results, sigmas)
    expected = by_pycocotools(coco, results, sigmas)
    assert found == pytest.approx(expected, abs=1e-6)
    assert 0 < found["ap"] < 99
    assert (coco, results) == before


def person(number: int, image: int, **more: Any) -> dict[str, Any]:
    """Someone 100 pixels tall with two keypoints."""
    entry = {"id": number, "image_id": image, "category_id": 1, "iscrowd": 0, "area": 5000.0}
    return {**entry, "bbox": [0, 0, 50, 100], "keypoints": [10, 20, 2, 30, 60, 2]} | more


def finding(image: int, far: float = 0.0, score: float = 1.0) -> dict[str, Any]:
    """Everything so many pixels off."""
    return {"image_id": image, "score": score, "keypoints": [10 + far, 20, 1, 30 + far, 60, 1]}


SIGMAS = (0.05, 0.05)


def test_by_hand() -> None:
    """OKS is exp(-d^2 / (2 s^2 (2 sigma)^2)): 0.8 where d^2 = -ln 0.8 * 2 * 5000 * 0.01."""
    far = math.sqrt(-math.log(0.801) * 2 * 5000 * 0.01)
    truth = {"annotations": [person(0, 7)]}
    found = average_precision(truth, [finding(7, far)], SIGMAS)
    # Right at 0.5, 0.55, ... 0.8: seven of ten similarities.
    assert found == pytest.approx({"ap": 70, "ar": 70, "ap_50": 100, "ap_75": 100})
    found = average_precision(truth, [finding(7, far, 0.5), finding(7, 500, 0.9)], SIGMAS)
    assert found == pytest.approx({"ap": 35, "ar": 70, "ap_50": 50, "ap_75": 50})


def test_a_person_who_is_not_found_costs_recall() -> None:
    truth = {"annotations": [person(1, 1), person(2, 2)]}
    found = average_precision(truth, [finding(1)], SIGMAS)
    assert found["ar"] == pytest.approx(50)
    assert found["ap"] == pytest.approx(100 * 51 / 101)  # recalls 0, 0.01, ..., 0.5 of 101


def test_only_some_images() -> None:
    truth = {"annotations": [person(1, 1), person(2, 2)]}
    results = [finding(1), finding(2, 500)]
    assert average_precision(truth, results, SIGMAS, {1})["ap"] == pytest.approx(100)
    assert average_precision(truth, results, SIGMAS, {2})["ap"] == pytest.approx(0)


@pytest.mark.parametrize("ignored", [{"iscrowd": 1}, {"keypoints": [0] * 6}])
def test_crowds_and_people_without_keypoints_count_neither_way(ignored: Any) -> None:
    truth = {"annotations": [person(1, 1), person(2, 2, **ignored)]}
    assert average_precision(truth, [finding(1), finding(2)], SIGMAS)["ap"] == pytest.approx(100)
    alone = average_precision(truth, [finding(2)], SIGMAS, {2})
    assert alone.keys() == KEYS
    assert all(map(math.isnan, alone.values()))


def test_nothing_found() -> None:
    found = average_precision({"annotations": [person(1, 1)]}, [], SIGMAS)
    assert found == dict.fromkeys(KEYS, 0)


def test_annotations_without_an_area() -> None:
    """Then it is 0.53 of the box, and no category or id is needed."""
    entry = person(1, 1)
    for key in ("area", "id", "category_id", "iscrowd"):
        del entry[key]
    with_area = {"annotations": [person(1, 1, area=0.53 * 5000)]}
    for far in (3, 5, 8):
        results = [finding(1, far)]
        found = average_precision({"annotations": [entry]}, results, SIGMAS)
        assert found == average_precision(with_area, results, SIGMAS)


@given(seed=st.integers(0, 2**32 - 1), shift=st.integers(1, 10**6))
def test_order_and_numbering_mean_nothing(seed: int, shift: int) -> None:
    rng = np.random.default_rng(seed)
    people = [person(i, int(rng.integers(4))) for i in range(6)]
    results = [finding(p["image_id"], rng.uniform(0, 15), rng.random()) for p in people]
    found = average_precision({"annotations": people}, results, SIGMAS)
    for row in people + results:
        row["image_id"] = shift - row["image_id"]
    shuffled = [results[i] for i in rng.permutation(6)]
    again = average_precision({"annotations": people[::-1]}, shuffled, SIGMAS)
    assert again == pytest.approx(found)
    assert found["ap_75"] <= found["ap_50"]


@pytest.mark.parametrize(
    ("sigmas", "reason"),
    [
        (skeleton("lsp").sigmas, "sigmas: AP needs one for each keypoint"),
        ((0.1, 0.1, 0.1), "sigmas: one for each keypoint: 3 for 2 keypoints in image 1"),
    ],
)
def test_refused(sigmas: tuple[float, ...], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        average_precision({"annotations": [person(1, 1)]}, [finding(1)], sigmas)


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "faster_coco_eval", None)
    with pytest.raises(UsageError, match="pip install 'segformerpp\\[train\\]'"):
        average_precision({"annotations": [person(1, 1)]}, [finding(1)], SIGMAS)
