"""Whether a model and a dataset speak of the same classes or keypoints."""

from __future__ import annotations

from collections.abc import Sequence

from segformerpp.errors import UsageError
from segformerpp.models.config import Metadata

#: Names may differ for so many of them: lists of a dataset's classes differ in synonyms.
_LEAST_EQUAL = 0.8


def check_names(
    metadata: Metadata, own: Sequence[str], wanted: Sequence[str], task: str, what: str, truth: str
) -> None:
    """Refuse a model for another task, or for other classes or keypoints, than the dataset's.

    Args:
        metadata: of the model.
        own: the names of its classes or keypoints, made up where it has none.
        wanted: the names of the dataset's.
        task: of the dataset.
        what: ``classes`` or ``keypoints``.
        truth: what the dataset has of each image.

    Raises:
        UsageError: naming both.
    """
    if metadata.task != task:
        raise UsageError(f"model: one for {metadata.task}, and the dataset has {truth}")
    if len(own) != len(wanted):
        raise UsageError(
            f"model: tells {len(own)} {what} apart ({_some(own)}), the dataset {len(wanted)} "
            f"({_some(wanted)})"
        )
    if not metadata.labels:
        return
    a, b = ([name.strip().casefold() for name in names] for names in (own, wanted))
    different = [i for i, names in enumerate(zip(a, b, strict=True)) if names[0] != names[1]]
    if sorted(a) == sorted(b) and different:
        raise UsageError(
            f"model: has the {what} of the dataset in another order: {different[0]} is "
            f"{own[different[0]]!r}, in the dataset {wanted[different[0]]!r}"
        )
    if len(different) > (1 - _LEAST_EQUAL) * len(a):
        raise UsageError(
            f"model: tells other {what} apart ({_some(own)}) than the dataset ({_some(wanted)})"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
