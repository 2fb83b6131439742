import csv
from pathlib import Path

import pytest

from segformerpp.data.labels import describe, generated_palette, label_set
from segformerpp.errors import UsageError
from segformerpp.models import Metadata


@pytest.mark.parametrize(
    ("name", "count", "first", "last"),
    [
        ("cityscapes", 19, "road", "bicycle"),
        ("ade20k", 150, "wall", "flag"),
        ("camvid", 11, "Sky", "Bicyclist"),
    ],
)
def test_label_sets(name: str, count: int, first: str, last: str) -> None:
    found = label_set(name)
    assert len(found.labels) == len(found.palette) == len(set(found.labels)) == count
    assert (found.labels[0], found.labels[-1]) == (first, last)
    assert all(
        len(colour) == 3 and 0 <= min(colour) <= max(colour) <= 255 for colour in found.palette
    )


def test_unknown_label_set() -> None:
    with pytest.raises(UsageError, match="one of cityscapes, ade20k, camvid, not 'voc'"):
        label_set("voc")


def test_ade20k_names_are_the_official_ones(shared: Path) -> None:
    with (shared / "data/ade20k_sample/objectInfo150.csv").open() as file:
        official = [row["Name"].replace(";", " ") for row in csv.DictReader(file)]
    for ours, names in zip(label_set("ade20k").labels, official, strict=True):
        assert names.startswith(ours)


def test_what_a_model_brings_comes_first() -> None:
    own = Metadata(labels=("a", "b"), palette=((1, 2, 3), (4, 5, 6)))
    assert describe(own, 2).labels == ("a", "b")
    assert describe(own, 2).palette == ((1, 2, 3), (4, 5, 6))


@pytest.mark.parametrize(("count", "name"), [(19, "cityscapes"), (150, "ade20k")])
def test_published_checkpoints_without_names(count: int, name: str) -> None:
    assert describe(Metadata(), count) == label_set(name)


@pytest.mark.parametrize("count", [1, 2, 11, 20, 151])
def test_no_names_known(count: int) -> None:
    found = describe(Metadata(), count)
    assert found.labels[-1] == f"class {count - 1}"
    assert found.palette == generated_palette(count)


def test_known_names_get_their_colours() -> None:
    known = label_set("ade20k")
    labels = (*known.labels[:140], *(f"other {i}" for i in range(10)))
    assert describe(Metadata(labels=labels), 150).palette == known.palette
    assert describe(Metadata(labels=labels), 150).labels == labels
    camvid = label_set("camvid")
    lower = tuple(label.lower() for label in camvid.labels)
    assert describe(Metadata(labels=lower), 11).palette == camvid.palette
    own = tuple(f"plant {i}" for i in range(19))
    assert describe(Metadata(labels=own), 19).palette == generated_palette(19)


def test_labels_that_do_not_fit_are_passed_over() -> None:
    assert describe(Metadata(labels=("a",), palette=((0, 0, 0),)), 3).labels == (
        *("class 0", "class 1", "class 2"),
    )


@pytest.mark.parametrize("count", [0, 1, 19, 300, 3000])
def test_generated_colours_differ(count: int) -> None:
    assert len(set(generated_palette(count))) == count
    assert generated_palette(count) == generated_palette(count + 1)[:count]
