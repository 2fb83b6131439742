"""Names and colours of classes: of the known datasets, and for models that came without."""

from __future__ import annotations

import colorsys
import itertools
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING

from segformerpp.errors import UsageError

if TYPE_CHECKING:
    from segformerpp.models import Metadata

Palette = tuple[tuple[int, int, int], ...]


@dataclass(frozen=True, slots=True)
class LabelSet:
    """The classes of a dataset.

    Args:
        labels: their names by training id.
        palette: their RGB colours.
        published: whether there are well-known checkpoints for it that bring no names.
    """

    labels: tuple[str, ...]
    palette: Palette
    published: bool = field(default=False, compare=False)


def label_set(name: str) -> LabelSet:
    """The classes of ``cityscapes`` (19), ``ade20k`` (150) or ``camvid`` (11).

    Raises:
        UsageError: if there is no such set.
    """
    sets = _label_sets()
    if name not in sets:
        raise UsageError(f"label set: one of {', '.join(sets)}, not {name!r}")
    return sets[name]


def describe(metadata: Metadata, num_outputs: int) -> LabelSet:
    """The names and colours for a model with so many outputs.

    What the model brings itself comes first. A model without names that has as many outputs as
    Cityscapes (19) or ADE20K (150), as published checkpoints do, gets the names of that dataset;
    any other ``class 0``, ``class 1`` and so on, or ``keypoint 0`` for poses. Names without colours
    get those of the dataset that has as many classes and at least 80 % of their names, whatever
    their case, else generated ones.
    """
    published = next(
        (s for s in _label_sets().values() if s.published and len(s.labels) == num_outputs),
        None,
    )
    poses = metadata.task == "pose"
    if len(metadata.labels) == num_outputs:
        labels = metadata.labels
    elif published and not poses:
        labels = published.labels
    else:
        labels = tuple(f"{'keypoint' if poses else 'class'} {i}" for i in range(num_outputs))
    if len(metadata.palette) == num_outputs:
        return LabelSet(labels, metadata.palette)
    for known in _label_sets().values():
        if _same_classes(labels, known.labels):
            return LabelSet(labels, known.palette)
    return LabelSet(labels, generated_palette(num_outputs))


def class_ids(classes: str | Iterable[str | int], labels: tuple[str, ...]) -> tuple[int, ...]:
    """The ids of classes that a person names.

    Args:
        classes: names, whatever their case, and ids; or a text of them with commas between. A name
            that several classes have means all of them.
        labels: the names by id.

    Returns:
        The ids, each once, in rising order.

    Raises:
        UsageError: if there are none, or one that is no class; it lists what there is.
    """
    wanted = [classes] if isinstance(classes, str) else list(classes)
    names = [_plain(label) for label in labels]
    found: set[int] = set()
    for word in itertools.chain.from_iterable(_words(one, names) for one in wanted):
        same = {i for i, name in enumerate(names) if name == word}
        if not same and word.isdecimal() and int(word) < len(labels):
            same = {int(word)}
        if not same:
            there = ", ".join(f"{label} ({i})" for i, label in enumerate(labels))
            raise UsageError(f"classes: {word!r} is none of {there}")
        found |= same
    if not found:
        raise UsageError("classes: one or more, names or numbers with commas between")
    return tuple(sorted(found))


def _words(classes: str | int, names: list[str]) -> list[str]:
    """The parts of a text between commas; some names, such as "rail, railing", have one inside."""
    text = _plain(str(classes))
    if text in names:
        return [text]
    return [word for part in text.split(",") if (word := _plain(part))]


def _plain(name: str) -> str:
    return " ".join(name.split()).casefold()


@lru_cache(maxsize=64)
def generated_palette(count: int) -> Palette:
    """So many RGB colours, all different and the first few dozen easy to tell apart."""
    colours: dict[tuple[int, int, int], None] = {}
    for n in itertools.count(1):
        if len(colours) == count:
            break
        # A sequence that fills hue, saturation and brightness evenly: the multiples of the
        # powers of 1 / g, where g**4 = g + 1 (Roberts' R3 sequence).
        hue, saturation, value = (n * 0.8191725134 % 1, n * 0.6710436067 % 1, n * 0.5497004779 % 1)
        rgb = colorsys.hsv_to_rgb(hue, 0.45 + 0.55 * saturation, 0.5 + 0.5 * value)
        colours[round(rgb[0] * 255), round(rgb[1] * 255), round(rgb[2] * 255)] = None
    return tuple(colours)


@lru_cache(maxsize=1)
def _label_sets() -> dict[str, LabelSet]:
    text = files("segformerpp.data").joinpath("label_sets.json").read_text(encoding="utf-8")
    return {
        name: LabelSet(
            tuple(label for label, _ in dataset["classes"]),
            tuple((r, g, b) for _, (r, g, b) in dataset["classes"]),
            dataset["published"],
        )
        for name, dataset in json.loads(text).items()
    }


def _same_classes(labels: tuple[str, ...], known: tuple[str, ...]) -> bool:
    """Whether nearly all names agree: copies of a label list differ in a synonym here and there."""
    equal = sum(a.strip().lower() == b.lower() for a, b in zip(labels, known, strict=False))
    return len(labels) == len(known) and equal >= 0.8 * len(known)
