"""The classes of a folder of the user's own, as a YAML file describes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from segformerpp.data.labels import LabelSet, generated_palette
from segformerpp.data.masks import IGNORED, Colour, Encode, either, from_colours, from_ids
from segformerpp.errors import UsageError

_KEYS = {"name", "id", "color"}
_MOST_ID = 2**16 - 1


@dataclass(frozen=True, slots=True)
class FolderClasses:
    """Classes, and how masks tell them.

    Args:
        classes: names and colours by training id.
        encode: see `masks`.
    """

    classes: LabelSet
    encode: Encode

    @classmethod
    def read(cls, path: Path) -> FolderClasses:
        """Read a file with ``classes:``, and optionally ``ignore:``.

        Each class is a name, or ``{name, id, color}``: `id` is its number in the masks (its place
        in the list by default), `color` its RGB colour in them and in pictures. What `ignore`
        lists, numbers and colours, does not count; by default it is 255, unless a class has that.

        Raises:
            UsageError: which names the entry and what would be right.
        """
        try:
            data = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise UsageError(f"classes: {path} cannot be read: {error.strerror}") from None
        except (yaml.YAMLError, ValueError) as error:  # the latter for dates that are none
            raise UsageError(f"classes: {path} is not YAML: {_one_line(error)}") from None
        try:
            return cls._of(data)
        except UsageError as error:
            raise UsageError(f"classes: {path}: {error}") from None

    @classmethod
    def _of(cls, data: Any) -> FolderClasses:
        if not isinstance(data, dict) or not isinstance(data.get("classes"), list):
            raise UsageError("a file with the key 'classes' and a list")
        if unknown := [str(key) for key in data if key not in ("classes", "ignore")]:
            raise UsageError(f"unknown key {unknown[0]!r}; there are 'classes' and 'ignore'")
        entries = [_entry(i, entry) for i, entry in enumerate(data["classes"])]
        if not 1 <= len(entries) <= IGNORED:
            raise UsageError(f"from 1 to {IGNORED} classes, not {len(entries)}")
        names, ids = (tuple(entry[key] for entry in entries) for key in ("name", "id"))
        colours = tuple(entry["color"] for entry in entries)
        for what, values in (("name", names), ("id", ids), ("color", colours)):
            given = [value for value in values if value is not None]
            if twice := [value for value in given if given.count(value) > 1]:
                raise UsageError(f"two classes have the {what} {twice[0]!r}")
        default = [] if IGNORED in ids else [IGNORED]
        ignored_ids, ignored_colours = _ignored(data.get("ignore", default))
        if both := [value for value in ignored_ids if value in ids]:
            raise UsageError(f"ignore: {both[0]} is the id of a class")
        if both_colours := [value for value in ignored_colours if value in colours]:
            raise UsageError(f"ignore: {list(both_colours[0])} is the color of a class")
        from_rgb = None
        if None not in colours:
            from_rgb = from_colours({c: i for i, c in enumerate(colours)}, ignored_colours)
        palette = generated_palette(len(names)) if None in colours else colours
        return cls(LabelSet(names, palette), either(from_ids(ids, ignored_ids), from_rgb))


def _entry(place: int, entry: Any) -> dict[str, Any]:
    """A class as ``{name, id, color}``."""
    if isinstance(entry, str):
        entry = {"name": entry}
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        raise UsageError(f"class {place}: a name, or a mapping with one, not {entry!r}")
    if unknown := [str(key) for key in entry if key not in _KEYS]:
        raise UsageError(f"class {entry['name']}: unknown key {unknown[0]!r}")
    number = entry.get("id", place)
    if not _is_id(number):
        raise UsageError(f"class {entry['name']}: id: a number in the masks, not {number!r}")
    colour = entry.get("color")
    if colour is not None and not _is_colour(colour):
        raise UsageError(f"class {entry['name']}: color: [red, green, blue], not {colour!r}")
    return {"name": entry["name"], "id": number, "color": colour and tuple(colour)}


def _ignored(values: Any) -> tuple[list[int], list[Colour]]:
    if not isinstance(values, list) or not all(_is_id(v) or _is_colour(v) for v in values):
        raise UsageError(f"ignore: a list of numbers and colours, not {values!r}")
    numbers = [value for value in values if _is_id(value)]
    return numbers, [tuple(value) for value in values if not _is_id(value)]


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_ID


def _is_colour(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 3 and all(_is_id(v) and v < 256 for v in value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
