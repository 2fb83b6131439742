"""Keypoints and how they hang together: of the known datasets, and as files describe them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import yaml

from segformerpp.data.labels import Palette
from segformerpp.errors import UsageError
from segformerpp.models.config import Metadata

Links = tuple[tuple[int, int], ...]

_LEFT, _RIGHT, _MIDDLE = (0, 170, 255), (255, 140, 0), (60, 200, 60)


@dataclass(frozen=True, slots=True)
class Skeleton:
    """The K keypoints of a person.

    Args:
        names: of the keypoints; ``left_`` and ``right_`` tell the sides.
        links: pairs of keypoints with a line between them, counted from 0.
        sigmas: of the object keypoint similarity, one for each keypoint; empty if unknown.
        size: (H, W) that published models of it look at people at; None if there are none.

    Raises:
        UsageError: if links or sigmas do not belong to the names.
    """

    names: tuple[str, ...]
    links: Links = ()
    sigmas: tuple[float, ...] = ()
    size: tuple[int, int] | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        if len(set(self.names)) != len(self.names) or not self.names:
            raise UsageError("keypoints: names, none of them twice")
        for link in self.links:
            if len(link) != 2 or not all(0 <= end < len(self.names) for end in link):
                raise UsageError(f"skeleton: pairs of keypoints, not {link}")
        if len(self.sigmas) not in (0, len(self.names)):
            raise UsageError(f"sigmas: one for each of {len(self.names)} keypoints, or none")

    @property
    def mirror(self) -> tuple[int, ...]:
        """What each keypoint becomes in a mirror: left ones the right ones of the same name."""
        numbers = {name.lower(): i for i, name in enumerate(self.names)}
        return tuple(numbers.get(_other_side(name.lower()), i) for name, i in numbers.items())

    @property
    def palette(self) -> Palette:
        """A colour for each keypoint: orange on the right side, blue on the left, else green."""
        sides = {"l": _LEFT, "r": _RIGHT}
        return tuple(
            sides[name.lower()[0]] if _other_side(name.lower()) != name.lower() else _MIDDLE
            for name in self.names
        )


def skeleton(name: str) -> Skeleton:
    """The skeleton of ``coco`` (17), ``jbd`` (Jump Broadcast, 20) or ``lsp`` (14).

    Raises:
        UsageError: if there is no such skeleton.
    """
    known = _skeletons()
    if name not in known:
        raise UsageError(f"skeleton: one of {', '.join(known)}, not {name!r}")
    return known[name]


def describe_poses(metadata: Metadata, num_outputs: int) -> Metadata:
    """What is known of a pose model with so many outputs, completed.

    What the model brings itself comes first. A model without names that has as many outputs as
    COCO (17), the Jump Broadcast dataset (20) or Leeds Sports Poses (14) gets the names of that
    dataset. Lines, colours and the size that people are looked at come from the dataset with these
    names, unless the model has them.
    """
    known: Skeleton | None
    if len(labels := metadata.labels) == num_outputs:
        known = next((s for s in _skeletons().values() if s.names == labels), Skeleton(labels))
    else:
        known = next((s for s in _skeletons().values() if len(s.names) == num_outputs), None)
    if known is None:
        return metadata
    return replace(
        metadata,
        labels=known.names,
        palette=metadata.palette or known.palette,
        skeleton=metadata.skeleton or known.links,
        image_size=metadata.image_size or known.size,
    )


def read_skeleton(path: str | Path) -> Skeleton:
    """Read a skeleton from YAML: ``names``, ``skeleton`` (pairs of names), ``sigmas``.

    Raises:
        UsageError: if the file cannot be read, or does not say what it should.
    """
    try:
        data = yaml.safe_load(Path(path).expanduser().read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"keypoints: {path} cannot be read: {reason}") from None
    if not isinstance(data, dict) or set(data) - {"names", "skeleton", "sigmas"}:
        raise UsageError(f"keypoints: {path} holds names, skeleton (pairs of names) and sigmas")
    names = _texts(data.get("names"))
    try:
        links = tuple((names.index(a), names.index(b)) for a, b in data.get("skeleton") or ())
        return Skeleton(names, links, tuple(float(s) for s in data.get("sigmas") or ()))
    except (TypeError, ValueError) as error:
        raise UsageError(f"keypoints: {path}: {error}") from None


def from_category(category: Mapping[str, Any]) -> Skeleton:
    """The skeleton in a category of COCO's JSON, with the sigmas of a known one of these names.

    Raises:
        UsageError: if there is none in it.
    """
    names = _texts(category.get("keypoints"))
    known = next((s for s in _skeletons().values() if s.names == names), None)
    links: Sequence[Any] = category.get("skeleton") or ()
    try:
        pairs = tuple((int(a) - 1, int(b) - 1) for a, b in links)
    except (TypeError, ValueError):
        raise UsageError("skeleton: pairs of keypoints, counted from 1") from None
    return Skeleton(names, pairs or (known.links if known else ()), known.sigmas if known else ())


def _texts(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(name, str) and name for name in value):
        raise UsageError("keypoints: a list of names")
    return tuple(value)


def _other_side(name: str) -> str:
    """The name with left for right; itself if it has no side."""
    for side, other in (("left", "right"), ("right", "left")):
        if name.startswith(side):
            return other + name.removeprefix(side)
    return name


@lru_cache(maxsize=1)
def _skeletons() -> dict[str, Skeleton]:
    text = files("segformerpp.data").joinpath("skeletons.json").read_text(encoding="utf-8")
    return {
        name: Skeleton(
            tuple(data["names"]),
            tuple((a, b) for a, b in data["skeleton"]),
            tuple(data.get("sigmas", ())),
            tuple(data["size"]) if "size" in data else None,
        )
        for name, data in json.loads(text).items()
    }
