"""Keypoints against those of a dataset; people are cut out by the dataset's boxes."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
from PIL import Image

from segformerpp.data.images import read_image
from segformerpp.data.poses import Person, PoseDataset, read_annotations
from segformerpp.errors import UsageError
from segformerpp.evaluation.names import check_names
from segformerpp.evaluation.pictures import worst_poses
from segformerpp.evaluation.side_by_side import Evaluation, Score, rounded
from segformerpp.metrics.average_precision import average_precision
from segformerpp.metrics.pose import correct, distances, pck
from segformerpp.predictor import Predictor
from segformerpp.tasks.pose_result import PoseResult

#: Largest distances of correct keypoints, in parts of the box's larger side, by the key of a row.
THRESHOLDS = {"pck_0.1": 0.1, "pck_0.05": 0.05}
#: Keypoints that lie nearer to the first predictor's are the same.
SAME = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class PoseSample:
    """An image (H, W, 3) uint8, and the people in it."""

    image: np.ndarray
    people: tuple[Person, ...]


class Judge(Protocol):
    """Gives AP and AR of COCO's results for the images of some ids."""

    def __call__(
        self, results: Sequence[Mapping[str, Any]], *, images: Collection[int]
    ) -> dict[str, float]:
        """The figures, in percent."""


class PoseScore(Score[PoseSample, PoseResult]):
    """What one predictor has got right so far.

    Args:
        names: of the K keypoints.
        judge: for AP and AR; None to do without.

    Attributes:
        correct: (K,) for each person, what `metrics.pose.correct` says, by the key of a row.
        agreements: (K,) for each person: the same, of the first predictor's keypoints.
        results: COCO's results, of everyone.
        quality: of each image, the mean distance of its keypoints in parts of their boxes, below 0.
    """

    def __init__(self, names: Sequence[str], judge: Judge | None) -> None:
        super().__init__()
        self.names, self._judge = names, judge
        self.correct: dict[str, list[np.ndarray]] = {key: [] for key in THRESHOLDS}
        self.agreements: list[np.ndarray] = []
        self.results: list[dict[str, Any]] = []
        self._image_ids: set[int] = set()

    def add(self, index: int, sample: PoseSample, found: PoseResult, first: PoseResult) -> None:
        """Count an image."""
        far = []
        for person, own, other in zip(sample.people, found.keypoints, first.keypoints, strict=True):
            for key, threshold in THRESHOLDS.items():
                right = correct(own, person.keypoints, person.box, threshold)
                self.correct[key].append(right)
            labelled = np.column_stack((other[:, :2], person.keypoints[:, 2]))
            self.agreements.append(correct(own, labelled, person.box, SAME))
            far.append(distances(own, person.keypoints, person.box))
        self.quality[index] = -float(np.nanmean(far))
        image_id = sample.people[0].image_id
        self.results += found.to_coco(image_id)
        self._image_ids.add(image_id)

    def figures(self) -> dict[str, Any]:
        """How good it is, in percent.

        None for keypoints that are never labelled, and for AP where there is no judge.
        """
        totals: dict[str, Any] = {}
        details: dict[str, Any] = {}
        for key, rows in self.correct.items():
            total, each = pck(np.array(rows).reshape(-1, len(self.names)))
            totals[key] = rounded(total)
            details[f"per_keypoint_{key}"] = dict(zip(self.names, map(rounded, each), strict=True))
        judged: dict[str, float] = {}
        if self._judge:
            judged = self._judge(self.results, images=self._image_ids)
        nothing = float("nan")
        agreement, _ = pck(np.array(self.agreements).reshape(-1, len(self.names)))
        return {
            **totals,
            **{key: rounded(judged.get(key, nothing)) for key in ("ap", "ar", "ap_50", "ap_75")},
            **details,
            "agreement": rounded(agreement),
            "people": len(self.agreements),
        }


class PoseEvaluation(Evaluation[PoseSample, PoseResult]):
    """Images of people.

    Crowds, people without a labelled keypoint, and images with nobody else in them, are left out,
    as they count neither for PCK nor, with boxes that are given, for AP.

    Args:
        dataset: the people.
        images: only the first so many; None for all.
        ap: whether to have AP and AR.

    Raises:
        UsageError: if AP is wanted, and there are no sigmas, faster-coco-eval is not installed, or
            the annotations are not as COCO has them.
    """

    columns: ClassVar = {
        **{"pck_0.1": "PCK@0.1", "pck_0.05": "PCK@0.05"},
        **{"ap": "AP", "ar": "AR", "agreement": "agreement"},
    }
    details = ("per_keypoint_pck_0.1", "PCK@0.1 in %")

    def __init__(self, dataset: PoseDataset, images: int | None = None, ap: bool = False) -> None:
        self.dataset = dataset
        by_image: dict[int, list[Person]] = {}
        for person in dataset.people:
            by_image.setdefault(person.image_id, []).append(person)
        self._images = [tuple(people) for people in by_image.values()][:images]
        self._judge: Judge | None = None
        if ap:
            truth = read_annotations(dataset.annotations)
            self._judge = partial(average_precision, truth, sigmas=dataset.skeleton.sigmas)
            try:  # now, not when everything has been predicted
                self._judge((), images={people[0].image_id for people in self._images})
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                if isinstance(error, UsageError):
                    raise
                file = dataset.annotations
                raise UsageError(f"annotations: {file} is no JSON of COCO: {error!r}") from None

    def __len__(self) -> int:
        """How many images there are."""
        return len(self._images)

    def check(self, predictor: Predictor) -> None:
        """Refuse a model for other keypoints than the dataset's."""
        names = self.dataset.skeleton.names
        check_names(
            predictor.metadata, predictor.labels, names, "pose", "keypoints", "keypoints of people"
        )

    def score(self) -> PoseScore:
        """A score in which nothing has been counted."""
        return PoseScore(self.dataset.skeleton.names, self._judge)

    def file(self, index: int) -> Path:
        """The file of an image."""
        return self._images[index][0].image

    def read(self, index: int) -> PoseSample:
        """An image and the people in it."""
        return PoseSample(read_image(self.file(index)), self._images[index])

    def predict(self, predictor: Predictor, sample: PoseSample) -> tuple[PoseResult, float]:
        """The keypoints of everyone, and the seconds that the network took for one of them."""
        result = predictor(sample.image, boxes=[person.box.tolist() for person in sample.people])
        return result, result.network_seconds / len(sample.people)

    def form(self, sample: PoseSample) -> str:
        """The same for all: people are cut out at one size."""
        return "person"

    def picture(self, predictor: Predictor, index: int, quality: float) -> Image.Image:
        """Image, labelled and found keypoints, and errors."""
        sample = self.read(index)
        result, _ = self.predict(predictor, sample)
        name, plan = self.file(index).stem, predictor.merge_plan.name
        title = f"{name}: keypoints off by {-quality:.0%} of the box on average, merge {plan}"
        keypoints = np.stack([person.keypoints for person in sample.people])
        return worst_poses(result, keypoints, THRESHOLDS["pck_0.1"], title)
