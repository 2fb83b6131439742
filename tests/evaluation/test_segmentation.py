from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from segformerpp import Predictor
from segformerpp.data.datasets import Problem, SegmentationDataset, open_dataset
from segformerpp.data.labels import LabelSet
from segformerpp.errors import UsageError
from segformerpp.evaluation.segmentation import Score, Views, check_classes, evaluate, segment
from segformerpp.models import Segformer
from tests.training.test_batches import make_camvid


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> SegmentationDataset:
    root = make_camvid(tmp_path_factory.mktemp("camvid"), {"val": 3}, (50, 70))
    return open_dataset("camvid", root, "val")


def predictor(model: Segformer, merge: str = "none", probabilities: bool = False) -> Predictor:
    return Predictor(
        model, merge=merge, runtime="torch", precision="f32", probabilities=probabilities
    )


def run(
    predictors: list[Predictor], dataset: SegmentationDataset
) -> tuple[list[Score], list[Problem]]:
    scores = [Score(11) for _ in predictors]
    problems: list[Problem] = []
    steps: list[int] = []
    evaluate(predictors, dataset, scores, Views(), problems.append, lambda: steps.append(1))
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
    row = score.row(predict.labels, score)
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
    rows = [score.row([str(i) for i in range(11)], scores[0]) for score in scores]
    assert (rows[0]["agreement"], rows[0]["speed_up"]) == (100, 1)
    images = [dataset.read(i)[0] for i in range(3)]
    same = [
        np.mean(predictors[0](image).label_map == predictors[1](image).label_map)
        for image in images
    ]
    assert rows[1]["agreement"] == pytest.approx(100 * np.mean(same), abs=0.006)
    assert len(scores[1].seconds) == 2  # not the first of its size
    assert rows[1]["median_ms"] > 0


def test_views_are_averaged(random_model: Segformer, dataset: SegmentationDataset) -> None:
    predict = predictor(random_model, probabilities=True)
    image = dataset.read(0)[0]
    found, seconds = segment(predict, image, Views((1.0, 1.5), flip=True))
    total = np.zeros((50, 70, 11))
    for size in ((70, 50), (105, 75)):
        scaled = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))
        for flipped in (False, True):
            result = predict(scaled[:, ::-1] if flipped else scaled)
            assert result.probabilities is not None
            chances = result.probabilities.astype(np.float32).transpose(1, 2, 0)
            chances = chances[:, ::-1] if flipped else chances
            total += cv2.resize(np.ascontiguousarray(chances), (70, 50))
    assert seconds > 0
    assert (found == total.argmax(2)).mean() > 0.999
    assert segment(predict, image, Views())[0].tolist() == predict(image).label_map.tolist()


def test_what_cannot_be_read_does_not_count(
    random_model: Segformer, dataset: SegmentationDataset, tmp_path: Path
) -> None:
    broken = replace(dataset.pairs[1], mask=tmp_path / "missing.png")
    pairs = (dataset.pairs[0], broken, dataset.pairs[2])
    [score], problems = run([predictor(random_model)], replace(dataset, pairs=pairs))
    assert [problem.pair for problem in problems] == [broken]
    assert "missing.png" in str(problems[0])
    [rest], _ = run([predictor(random_model)], dataset.without(problems))
    assert list(score.mious) == [0, 2]
    whole, _ = run([predictor(random_model)], replace(dataset, pairs=(pairs[0], pairs[2])))
    np.testing.assert_array_equal(score.counts, whole[0].counts)
    assert rest.mious.keys() == {0, 1, 2}


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
def test_classes_must_be_the_models(random_model: Segformer, change, reason: str | None) -> None:
    names = change(random_model.metadata.labels)
    classes = LabelSet(names, random_model.metadata.palette[: len(names)])
    predict = predictor(random_model)
    if reason is None:
        check_classes(predict, classes)
    else:
        with pytest.raises(UsageError, match=f"^model: .*{reason}"):
            check_classes(predict, classes)
