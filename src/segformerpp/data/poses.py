"""Keypoint datasets in COCO's JSON: images, and the people in them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from segformerpp.data.files import expand_user
from segformerpp.data.images import read_image
from segformerpp.data.skeletons import Skeleton, from_category, read_skeleton
from segformerpp.errors import ImageError, UsageError


@dataclass(frozen=True, slots=True, eq=False)
class Person:
    """A person in an image.

    Args:
        image: the file.
        image_id: its number in the annotations.
        box: (4,) float64: x, y of the upper left corner, width, height.
        keypoints: (K, 3) float32: x, y in image pixels, and 0 if not labelled, 1 if hidden, 2 if
            visible.
    """

    image: Path
    image_id: int
    box: np.ndarray
    keypoints: np.ndarray


@dataclass(frozen=True, slots=True)
class ImageProblem:
    """An image that cannot be used, and why."""

    image: Path
    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, slots=True)
class PoseDataset:
    """People in images.

    Args:
        name: of the dataset and its split, for people who read.
        skeleton: of the keypoints.
        people: all with a labelled keypoint and a box, and no crowds.
        annotations: the JSON file.
    """

    name: str
    skeleton: Skeleton
    people: tuple[Person, ...]
    annotations: Path

    def __len__(self) -> int:
        return len(self.people)

    def read(self, index: int) -> tuple[np.ndarray, Person]:
        """The image (H, W, 3) uint8 RGB of a person, and the person.

        Raises:
            ImageError: if it cannot be read.
        """
        person = self.people[index]
        return read_image(person.image), person

    def without(self, problems: Sequence[ImageProblem]) -> PoseDataset:
        """The people in other images."""
        out = {problem.image for problem in problems}
        return replace(self, people=tuple(p for p in self.people if p.image not in out))

    @property
    def images(self) -> tuple[Path, ...]:
        """The files with people, each once."""
        return tuple(dict.fromkeys(person.image for person in self.people))


def open_poses(
    root: str | Path,
    split: str,
    annotations: str | Path | None = None,
    keypoints: str | Path | None = None,
) -> PoseDataset:
    """Open a dataset in COCO's layout.

    Annotations are looked for at ``annotations/person_keypoints_<split>2017.json``,
    ``annotations/person_keypoints_<split>.json`` and ``annotations/<split>.json``, images at
    ``<split>2017/``, ``images/<split>/``, ``<split>/`` and ``images/``.

    Args:
        root: the folder.
        split: such as ``train``.
        annotations: a JSON file elsewhere.
        keypoints: a YAML file with the skeleton (see `read_skeleton`); None for that in the JSON.

    Raises:
        UsageError: if something is not there, is no such JSON, or names images that are missing.
    """
    folder = expand_user(root)
    if not folder.is_dir():
        raise UsageError(f"root: no folder {folder}")
    names = (f"person_keypoints_{split}2017.json", f"person_keypoints_{split}.json")
    candidates = [folder / "annotations" / name for name in (*names, f"{split}.json")]
    if annotations:
        candidates = [expand_user(annotations)]
    file = next((path for path in candidates if path.is_file()), None)
    if file is None:
        looked = ", ".join(str(path) for path in candidates)
        raise UsageError(f"split: no annotations for {split!r}: none of {looked}")
    places = (f"{split}2017", f"images/{split}", split, "images")
    images = next((folder / place for place in places if (folder / place).is_dir()), folder)
    data = read_annotations(file)
    skeleton = read_skeleton(keypoints) if keypoints else _skeleton(data, file)
    people = _people(data, images, skeleton, file)
    _refuse_missing(people, file)
    return PoseDataset(f"{folder.name} {split}", skeleton, people, file)


def read_annotations(path: Path) -> dict[str, Any]:
    """Read COCO's JSON: an object with the lists ``images`` and ``annotations`` at least.

    Raises:
        UsageError: if it is none.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"annotations: {path} cannot be read: {error}") from None
    lists = ("images", "annotations")
    if not isinstance(data, dict) or not all(isinstance(data.get(k), list) for k in lists):
        raise UsageError(f"annotations: {path} is no JSON of COCO: images and annotations")
    return data


def _skeleton(data: Mapping[str, Any], file: Path) -> Skeleton:
    categories = data.get("categories")
    for category in categories if isinstance(categories, list) else ():
        if isinstance(category, dict) and category.get("keypoints"):
            return from_category(category)
    raise UsageError(f"annotations: {file} has no category with keypoints; give a YAML file")


def _people(
    data: Mapping[str, Any], images: Path, skeleton: Skeleton, file: Path
) -> tuple[Person, ...]:
    count = len(skeleton.names)
    people = []
    try:
        names = {image["id"]: images / image["file_name"] for image in data["images"]}
        for entry in data["annotations"]:
            if entry.get("iscrowd") or not any(entry.get("keypoints", ())[2::3]):
                continue
            keypoints = np.array(entry["keypoints"], np.float32).reshape(-1, 3)
            if len(keypoints) != count:
                raise UsageError(
                    f"annotations: {len(keypoints)} keypoints in annotation {entry.get('id')} of "
                    f"{file}, not {count}"
                )
            box = np.array(entry["bbox"], np.float64)
            if box.shape == (4,) and min(box[2:]) > 0:
                path = names[entry["image_id"]]
                people.append(Person(path, int(entry["image_id"]), box, keypoints))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UsageError(f"annotations: {file} is no JSON of COCO: {error!r}") from None
    if not people:
        raise UsageError(f"annotations: there is nobody with keypoints in {file}")
    return tuple(people)


def _refuse_missing(people: Sequence[Person], file: Path) -> None:
    missing = [path for path in dict.fromkeys(p.image for p in people) if not path.is_file()]
    if missing:
        shown = ", ".join(str(path) for path in missing[:5])
        more = f" and {len(missing) - 5} others" if len(missing) > 5 else ""
        raise UsageError(f"annotations: {file} names images that are missing: {shown}{more}")


def check_poses(
    dataset: PoseDataset, advance: Callable[[], None] = lambda: None
) -> list[ImageProblem]:
    """Read every image; those that cannot be read, in order.

    Args:
        dataset: what to read.
        advance: called after each image.
    """
    problems = []
    for path in dataset.images:
        try:
            read_image(path)
        except ImageError as error:
            problems.append(ImageProblem(path, str(error)))
        advance()
    return problems
