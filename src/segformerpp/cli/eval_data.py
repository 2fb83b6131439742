"""What `segformerpp eval` evaluates on."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from segformerpp.arguments import whole_number
from segformerpp.errors import UsageError

if TYPE_CHECKING:
    from segformerpp.evaluation.pose import PoseEvaluation
    from segformerpp.evaluation.side_by_side import Evaluation
    from segformerpp.evaluation.views import Views


def open_evaluation(
    data: str,
    root: str,
    split: str,
    classes: str | None,
    keypoints: str | None,
    views: Views,
    images: int | None,
) -> tuple[Evaluation[Any, Any], str]:
    """Open a dataset; see `cli.eval.eval` for the arguments.

    Returns:
        The evaluation, and a remark on what it has no figures for, which may be empty.

    Raises:
        UsageError: if there is no such dataset, or an option does not go with it.
    """
    from segformerpp.data.datasets import DATASETS, open_dataset
    from segformerpp.evaluation.segmentation import SegmentationEvaluation

    if images is not None:
        whole_number("images", images, 1)
    if data == "coco":
        if classes:
            raise UsageError("classes: of images with masks; poses have --keypoints")
        if views.scales != (1.0,):
            raise UsageError("scales: for models that segment")
        return _poses(root, split, keypoints, images)
    if data not in DATASETS:
        raise UsageError(f"data: one of {', '.join(DATASETS)}, coco, not {data!r}")
    if keypoints:
        raise UsageError("keypoints: of people, which are in --data coco")
    dataset = open_dataset(data, root, split, classes)
    return SegmentationEvaluation(replace(dataset, pairs=dataset.pairs[:images]), views), ""


def _poses(
    root: str, split: str, keypoints: str | None, images: int | None
) -> tuple[PoseEvaluation, str]:
    from segformerpp.data.poses import open_poses
    from segformerpp.evaluation.pose import PoseEvaluation
    from segformerpp.metrics.average_precision import check_average_precision

    dataset = open_poses(root, split, keypoints=keypoints)
    try:
        check_average_precision(dataset.skeleton.sigmas)
    except UsageError as error:
        reason = str(error).partition(": ")[2]
        return PoseEvaluation(dataset, images), f"without AP and AR: {reason}"
    return PoseEvaluation(dataset, images, ap=True), ""
