"""COCO's average precision and recall of keypoints, by their similarity to labelled ones (OKS)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from segformerpp.errors import UsageError

#: A person's area where annotations do not say it, in parts of the box (CrowdPose's convention).
_AREA_OF_BOX = 0.53
_PERSON = 1
#: Where COCO's summary has them.
_PLACES = {"ap": 0, "ar": 5, "ap_50": 1, "ap_75": 2}


def check_average_precision(sigmas: Sequence[float]) -> None:
    """See whether `average_precision` can be had.

    Raises:
        UsageError: if there are no sigmas, or faster-coco-eval is not installed.
    """
    if not len(sigmas):
        raise UsageError(
            "sigmas: AP needs one for each keypoint, and those of this skeleton are unknown; "
            "a YAML file may have them"
        )
    try:
        import faster_coco_eval  # noqa: F401
    except ImportError:
        raise UsageError(
            "data: AP needs faster-coco-eval, which is not installed: "
            "pip install 'segformerpp[train]'"
        ) from None


def average_precision(
    truth: Mapping[str, Any],
    results: Sequence[Mapping[str, Any]],
    sigmas: Sequence[float],
    images: Collection[int] | None = None,
) -> dict[str, float]:
    """Score keypoints as COCO does (https://cocodataset.org/#keypoints-eval).

    People without a labelled keypoint, and crowds, count neither for nor against: what is found
    there is left out. At most 20 people count in an image, those with the highest scores. Neither
    argument is changed.

    Args:
        truth: COCO's annotations: an object with ``annotations``. Where one has no ``area``, it is
            0.53 of its box; where it has no ``num_keypoints``, they are counted. All are people,
            whatever their category.
        results: COCO's results: ``image_id``, ``keypoints`` (x, y, confidence of each) and
            ``score``.
        sigmas: one for each of the K keypoints.
        images: the ids of those to look at; None for all.

    Returns:
        ``ap`` and ``ar`` over similarities of 0.5 to 0.95, ``ap_50`` and ``ap_75``, in percent;
        NaN if nobody counts.

    Raises:
        UsageError: if there are no sigmas, or not as many as keypoints, or faster-coco-eval is
            not installed.
    """
    check_average_precision(sigmas)
    from faster_coco_eval import COCO, COCOeval_faster

    people = [
        _person(number, entry)
        for number, entry in enumerate(truth["annotations"], 1)
        if entry.get("keypoints") and (images is None or entry["image_id"] in images)
    ]
    found = [
        _found(number, entry)
        for number, entry in enumerate(results, 1)
        if images is None or entry["image_id"] in images
    ]
    for entry in (*people, *found):
        if len(entry["keypoints"]) != 3 * len(sigmas):
            raise UsageError(
                f"sigmas: one for each keypoint: {len(sigmas)} for "
                f"{len(entry['keypoints']) / 3:g} keypoints in image {entry['image_id']}"
            )
    if not any(person["num_keypoints"] and not person["iscrowd"] for person in people):
        return dict.fromkeys(_PLACES, float("nan"))
    ids = dict.fromkeys(entry["image_id"] for entry in (*people, *found))
    pictures = [{"id": i} for i in ids]
    kinds = [{"id": _PERSON, "name": "person"}]
    both = [
        COCO({"images": pictures, "annotations": entries, "categories": kinds})
        for entries in (people, found)
    ]
    judge = COCOeval_faster(
        *both, iouType="keypoints", kpt_oks_sigmas=np.asarray(sigmas, np.float64)
    )
    judge.run()
    return {key: 100 * float(judge.stats[place]) for key, place in _PLACES.items()}


def _person(number: int, entry: Mapping[str, Any]) -> dict[str, Any]:
    """What the evaluation needs of an annotation, as it needs it: ids from 1 up, for one."""
    box, keypoints = list(entry["bbox"]), list(entry["keypoints"])
    return {
        "id": number,
        "image_id": entry["image_id"],
        "category_id": _PERSON,
        "keypoints": keypoints,
        "num_keypoints": entry.get("num_keypoints", int(np.count_nonzero(keypoints[2::3]))),
        "bbox": box,
        "area": entry.get("area", _AREA_OF_BOX * box[2] * box[3]),
        "iscrowd": int(entry.get("iscrowd", 0)),
    }


def _found(number: int, entry: Mapping[str, Any]) -> dict[str, Any]:
    """The same of a result; its area is that of the box around all its keypoints, as in COCO."""
    keypoints = list(entry["keypoints"])
    width, height = np.ptp(keypoints[0::3]), np.ptp(keypoints[1::3])
    return {
        "id": number,
        "image_id": entry["image_id"],
        "category_id": _PERSON,
        "keypoints": keypoints,
        "score": float(entry["score"]),
        "bbox": [min(keypoints[0::3]), min(keypoints[1::3]), float(width), float(height)],
        "area": float(width * height),
        "iscrowd": 0,
    }
