"""Boxes of people that were found before, from a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from segformerpp.data.files import expand_user
from segformerpp.data.poses import read_annotations
from segformerpp.errors import UsageError

BoxesByName = Mapping[str, list[list[float]]]


def read_boxes(path: str | Path) -> BoxesByName:
    """Read people's boxes by the names of their images.

    Args:
        path: COCO's JSON with ``images`` and ``annotations``, of which crowds are left out; or a
            text file with a line for each person: the image's name, x, y, width, height, with
            blanks or commas between.

    Returns:
        For the name of each image, without folders, x, y, width, height of each person.

    Raises:
        UsageError: if the file cannot be read, or says something else; it names the line.
    """
    file = expand_user(path)
    if file.suffix.lower() == ".json":
        return _from_coco(file)
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise UsageError(f"boxes: {file} cannot be read: {error}") from None
    boxes: dict[str, list[list[float]]] = {}
    for number, line in enumerate(lines, 1):
        words = line.replace(",", " ").split()
        if not words or words[0].startswith("#"):
            continue
        name, values = " ".join(words[:-4]), words[-4:]
        try:
            box = [float(value) for value in values]
        except ValueError:
            box = []
        _add(boxes, Path(name).name, box, f"line {number} of {file}")
    return boxes


def _from_coco(file: Path) -> BoxesByName:
    data = read_annotations(file)
    boxes: dict[str, list[list[float]]] = {}
    try:
        names = {image["id"]: Path(image["file_name"]).name for image in data["images"]}
        boxes |= {name: [] for name in names.values()}
        for entry in data["annotations"]:
            if not entry.get("iscrowd"):
                where = f"annotation {entry.get('id')} of {file}"
                _add(boxes, names[entry["image_id"]], entry["bbox"], where)
    except (KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"boxes: {file} is no JSON of COCO: {error!r}") from None
    return boxes


def _add(boxes: dict[str, list[list[float]]], name: str, box: list[float], where: str) -> None:
    if not name or len(box) != 4 or not np.isfinite(box).all() or min(box[2:]) <= 0:
        raise UsageError(
            f"boxes: {where}: an image and x, y, width, height with the last two above 0 are needed"
        )
    boxes.setdefault(name, []).append([float(value) for value in box])
