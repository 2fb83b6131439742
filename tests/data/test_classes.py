from pathlib import Path

import numpy as np
import pytest

from segformerpp.data.classes import FolderClasses
from segformerpp.data.labels import generated_palette
from segformerpp.errors import ImageError, UsageError


def read(folder: Path, text: str) -> FolderClasses:
    path = folder / "classes.yaml"
    path.write_text(text)
    return FolderClasses.read(path)


def encode(found: FolderClasses, values: object) -> list[list[int]]:
    ids: list[list[int]] = found.encode(np.array([values])).tolist()
    return ids


def test_names_alone(tmp_path: Path) -> None:
    found = read(tmp_path, "classes: [road, tree]")
    assert found.classes.labels == ("road", "tree")
    assert found.classes.palette == generated_palette(2)
    assert encode(found, [1, 0, 255]) == [[1, 0, 255]]
    with pytest.raises(ImageError, match="colours, not a number"):
        encode(found, [[1, 2, 3]])


def test_ids_and_colours(tmp_path: Path) -> None:
    found = read(
        tmp_path,
        """
        classes:
          - {name: road, id: 7, color: [128, 64, 128]}
          - {name: tree, id: 1000, color: [0, 255, 0]}
        ignore: [0, [0, 0, 0]]
        """,
    )
    assert found.classes.palette == ((128, 64, 128), (0, 255, 0))
    assert encode(found, [1000, 7, 0]) == [[1, 0, 255]]
    assert encode(found, [[0, 255, 0], [0, 0, 0], [128, 64, 128]]) == [[1, 255, 0]]
    with pytest.raises(ImageError, match="no class has the value 255"):
        encode(found, [255])


def test_masks_of_0_and_255(tmp_path: Path) -> None:
    found = read(tmp_path, "classes: [{name: back, id: 0}, {name: front, id: 255}]")
    assert encode(found, [255, 0]) == [[1, 0]]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "a file with the key 'classes' and a list"),
        ("classes: 3", "a file with the key 'classes' and a list"),
        ("classes: []", "from 1 to 255 classes, not 0"),
        (f"classes: {[f'c{i}' for i in range(256)]}", "from 1 to 255 classes, not 256"),
        ("classes: [a]\nclases: [b]", "unknown key 'clases'; there are 'classes' and 'ignore'"),
        ("classes: [a, no]", "class 1: a name, or a mapping with one, not False"),
        ("classes: [{id: 3}]", "class 0: a name, or a mapping with one, not {'id': 3}"),
        ("classes: [{name: a, colour: 3}]", "class a: unknown key 'colour'"),
        ("classes: [{name: a, id: -1}]", "class a: id: a number in the masks, not -1"),
        ("classes: [{name: a, id: true}]", "class a: id: a number in the masks, not True"),
        ("classes: [{name: a, id: 65536}]", "class a: id: a number in the masks, not 65536"),
        ("classes: [{name: a, color: [1, 2]}]", "class a: color: [red, green, blue], not [1, 2]"),
        ("classes: [{name: a, color: [1, 2, 256]}]", "class a: color: [red, green, blue]"),
        ("classes: [a, a]", "two classes have the name 'a'"),
        ("classes: [a, {name: b, id: 0}]", "two classes have the id 0"),
        (
            "classes: [{name: a, color: [1, 2, 3]}, {name: b, color: [1, 2, 3]}]",
            "two classes have the color (1, 2, 3)",
        ),
        ("classes: [a]\nignore: 255", "ignore: a list of numbers and colours, not 255"),
        ("classes: [a]\nignore: [0]", "ignore: 0 is the id of a class"),
        (
            "classes: [{name: a, color: [1, 2, 3]}]\nignore: [[1, 2, 3]]",
            "ignore: [1, 2, 3] is the color of a class",
        ),
        ("classes: [a", "is not YAML: while parsing a flow sequence"),
        ("classes: [2024-13-45]", "is not YAML: month must be in 1..12"),
    ],
)
def test_what_is_wrong_is_named(text: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        read(tmp_path, text)
    assert str(error.value).startswith(f"classes: {tmp_path / 'classes.yaml'}")
    assert reason in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        FolderClasses.read(tmp_path / "x.yaml")
    (tmp_path / "x.yaml").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(UsageError, match="is not YAML"):
        FolderClasses.read(tmp_path / "x.yaml")
