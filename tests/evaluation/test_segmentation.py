from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from segformerpp import Predictor
from segformerpp.data.datasets import SegmentationDataset, open_dataset
from segformerpp.data.labels import LabelSet
from segformerpp.errors import ImageError, UsageError
from segformerpp.evaluation.segmentation import SegmentationEvaluation, SegmentationScore
from segformerpp.evaluation.side_by_side import evaluate
from segformerpp.evaluation.views import Views
from segformerpp.models import Segformer
from segformerpp.tasks.segmentation_result import SegmentationResult
from tests.training.test_batches import make_camvid

VIEWS = Views()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> SegmentationDataset:
    root = make_camvid(tmp_path_factory.mktemp("camvid"), {"val": 3}, (50, 70))
    return open_dataset("camvid", root, "val")


def predictor(model: Segformer, merge: str = "none", probabilities: bool = False) -> Predictor:
    return Predictor(
        model, merge=merge, runtime="torch", precision="f32", probabilities=probabilities
    )


def run(
    predictors: list[Predictor], dataset: SegmentationDataset, views: Views = VIEWS
) -> tuple[list[SegmentationScore], list[str]]:
    evaluation = SegmentationEvaluation(dataset, views)
    scores = [evaluation.score() for _ in predictors]
    problems: list[str] = []
    steps: list[int] = []

    def fail(error: ImageError) -> None:
        problems.append(str(error))

    evaluate(predictors, evaluation, scores, fail, lambda: steps.append(1))
    assert len(steps) == len(dataset)
    return scores, problems


def test_equals_torchmetrics(random_model: Segformer, dataset: SegmentationDataset) -> None:
    import torch
    from torchmetrics.classification import MulticlassAccuracy, MulticlassJaccardIndex

    predict = predictor(random_model)
    [score], _ = run([predict], dataset)
    samples = [dataset.read(i) for i in range(len(dataset))]
    masks = torch.from_numpy(np.stack([mask for _, mask in samples]).astype(np.int64))
    maps = torch.from_numpy(
        np.stack([predict(image).label_map for image, _ in samples]).astype(np.int64)
    )
    row = score.row(score)
    each = MulticlassJaccardIndex(11, average="none", ignore_index=255)(maps, masks)
    masks_or_maps = torch.bincount(torch.cat([maps[masks != 255], masks[masks != 255]]))
    present = torch.nonzero(masks_or_maps)[:, 0]
    for i, name in enumerate(predict.labels):
        if i in present:
            assert row["per_class_iou"][name] == pytest.approx(100 * each[i].item(), abs=0.006)
        else:
            assert row["per_class_iou"][name] is None
    assert row["miou"] == pytest.approx(100 * each[present].mean().item(), abs=0.006)
    weighted = MulticlassJaccardIndex(11, average="weighted", ignore_index=255)(maps, masks)
    assert row["fwiou"] == pytest.approx(100 * weighted.item(), abs=0.006)
    micro = MulticlassAccuracy(11, average="micro", ignore_index=255)(maps, masks)
    assert row["pixel_accuracy"] == pytest.approx(100 * micro.item(), abs=0.006)


def test_side_by_side(random_model: Segformer, dataset: SegmentationDataset) -> None:
    predictors = [predictor(random_model, merge) for merge in ("none", "fast")]
    scores, problems = run(predictors, dataset)
    assert problems == []
    rows = [score.row(scores[0]) for score in scores]
    assert rows[0]["agreement"] == 100
    images = [dataset.read(i)[0] for i in range(3)]
    same = [
        np.mean(predictors[0](image).label_map == predictors[1](image).label_map)
        for image in images
    ]
    assert rows[1]["agreement"] == pytest.approx(100 * np.mean(same), abs=0.006)
    assert len(scores[1].seconds) == 2  # not the first of its size
    assert min(scores[1].seconds) > 0


@dataclass
class Fake:
    """Predicts class 0 everywhere and takes the listed times; has no memory for some calls."""

    seconds: list[float] = field(default_factory=lambda: [9.0, 0.2, 0.2, 0.2, 0.2, 0.2])
    error: Exception | None = None
    labels: tuple[str, ...] = ("a",) * 11
    calls: int = 0

    def __call__(self, image: np.ndarray) -> SegmentationResult:
        self.calls += 1
        if self.error and self.calls == 2:
            raise self.error
        found = np.zeros(image.shape[:2], np.uint8)
        seconds = self.seconds[self.calls - 1]
        return SegmentationResult(found, self.labels, (), image, network_seconds=seconds)


def rows_of(tmp_path: Path, *fakes: Fake, images: int = 6) -> list[dict[str, Any]]:
    root = make_camvid(tmp_path / "camvid", {"val": images}, (8, 8))
    scores, _ = run(list(fakes), open_dataset("camvid", root, "val"))  # type: ignore[arg-type]
    return [score.row(scores[0]) for score in scores]


def test_times_without_the_first_image(tmp_path: Path) -> None:
    first, second = rows_of(tmp_path, Fake(), Fake([0.1] + [0.4] * 5))
    assert (first["median_ms"], first["speed_up"], first["withheld"]) == (200, 1, False)
    assert (second["median_ms"], second["speed_up"], second["withheld"]) == (400, 0.5, False)


def test_times_that_mean_nothing_are_withheld(tmp_path: Path) -> None:
    noisy = Fake([0.1, 0.1, 0.9, 0.4, 0.3, 0.7])
    first, second = rows_of(tmp_path, Fake(), noisy)
    assert (first["median_ms"], first["withheld"]) == (200, False)
    assert (second["median_ms"], second["speed_up"], second["withheld"]) == (None, None, True)


def test_images_of_many_sizes_have_a_speed_up_all_the_same(tmp_path: Path) -> None:
    """The times differ with the size; how they compare does not."""
    times = [0.1, 0.1, 0.9, 0.4, 0.3, 0.7]
    _, second = rows_of(tmp_path, Fake(times), Fake([seconds / 2 for seconds in times]))
    assert (second["median_ms"], second["speed_up"], second["withheld"]) == (None, 2, True)


def test_too_few_images_for_times(tmp_path: Path) -> None:
    [row] = rows_of(tmp_path, Fake(), images=3)
    assert (row["median_ms"], row["speed_up"], row["withheld"]) == (None, None, True)


@pytest.mark.parametrize("error", [MemoryError(), ImageError("image: 8 x 8 pixels do not fit")])
def test_where_memory_ends_the_image_is_named(
    dataset: SegmentationDataset, error: Exception
) -> None:
    """It counts for all or for none."""
    fakes: list[Any] = [Fake(), Fake(error=error)]
    scores, problems = run(fakes, dataset)
    reason = str(error).removeprefix("image: ") or "too large for the memory"
    assert problems == [f"{dataset.pairs[1].image}: {reason}"]
    assert [list(score.quality) for score in scores] == [[0, 2]] * 2
    assert scores[0].counts.sum() == scores[1].counts.sum() == 2 * 48 * 70


def test_a_view_that_is_too_large_is_a_fault_of_the_image(
    random_model: Segformer, dataset: SegmentationDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("segformerpp.predictor.MAX_PIXELS", 100 * 140 - 1)
    _, problems = run([predictor(random_model)], dataset, Views((2.0,)))
    assert problems == [
        f"{pair.image}: size: at most 13999 pixels, not 100 x 140" for pair in dataset.pairs
    ]


def test_what_cannot_be_read_does_not_count(
    random_model: Segformer, dataset: SegmentationDataset, tmp_path: Path
) -> None:
    broken = replace(dataset.pairs[1], mask=tmp_path / "missing.png")
    pairs = (dataset.pairs[0], broken, dataset.pairs[2])
    [score], problems = run([predictor(random_model)], replace(dataset, pairs=pairs))
    [problem] = problems
    assert "missing.png" in problem
    assert list(score.quality) == [0, 2]
    whole, _ = run([predictor(random_model)], replace(dataset, pairs=(pairs[0], pairs[2])))
    np.testing.assert_array_equal(score.counts, whole[0].counts)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda names: names[:10], r"tells 11 classes apart \(Sky, .*, \.\.\.\), the dataset 10"),
        (lambda names: names[::-1], "in another order: 0 is 'Sky', in the dataset 'Bicyclist'"),
        (lambda names: tuple("abcdefghijk"), "tells other classes apart .* than the dataset"),
        (lambda names: tuple(name.lower() for name in names), None),
        (lambda names: ("heaven", *names[1:]), None),
    ],
)
def test_classes_must_be_the_models(
    random_model: Segformer, dataset: SegmentationDataset, change, reason: str | None
) -> None:
    names = change(random_model.metadata.labels)
    classes = LabelSet(names, random_model.metadata.palette[: len(names)])
    predict = predictor(random_model)
    evaluation = SegmentationEvaluation(replace(dataset, classes=classes), VIEWS)
    if reason is None:
        evaluation.check(predict)
    else:
        with pytest.raises(UsageError, match=f"^model: .*{reason}"):
            evaluation.check(predict)
