"""Plans in one line: YAML's keys for people in a hurry (see `MergePlan.from_string`)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from segformerpp.errors import PlanError

_STAGES = 4


def read_keywords(text: str) -> dict[str, Any]:
    """Read a keyword string as the mapping that a YAML plan holds.

    >>> read_keywords("q34:mode=n1d,s=2")["stages"][2:]
    [{'q': {'mode': 'n1d', 's': 2}}, {'q': {'mode': 'n1d', 's': 2}}]

    Raises:
        PlanError: where it is no such string; the values are left to `MergePlan.from_dict`.
    """
    stages: list[dict[str, Any]] = [{} for _ in range(_STAGES)]
    data: dict[str, Any] = {"stages": stages}
    for part in re.split(r"[\s;]+", text.strip()):
        if part.startswith("input_scale="):
            if "input_scale" in data:
                raise PlanError("input_scale: given twice")
            data["input_scale"] = _value(part.removeprefix("input_scale="))
        elif found := re.fullmatch(r"reuse([1-4]+)=(.+)", part):
            _give(stages, "reuse", found[1], _value(found[2]))
        elif found := re.fullmatch(r"(q|kv)([1-4]+):(.*)", part):
            _give(stages, found[1], found[2], _strategy(found[3], part))
        else:
            raise PlanError(
                f"{part!r}: expected q or kv, stage numbers and a colon (q34:mode=bsm,...), "
                f"reuse and stage numbers (reuse3=4), or input_scale=NUMBER"
            )
    return data


def write_keywords(data: Mapping[str, Any]) -> str:
    """The keyword string of a plan, which `read_keywords` reads: data as `MergePlan.to_dict` has.

    Empty where nothing is merged.
    """
    parts: dict[tuple[str, str], str] = {}
    for number, stage in enumerate(data["stages"], 1):
        for key, value in stage.items():
            if value is not None:
                part = key, f"={value}" if key == "reuse" else ":" + _items(value)
                parts[part] = parts.get(part, "") + str(number)
    words = [key + digits + text for (key, text), digits in parts.items()]
    if "input_scale" in data:
        words.append(f"input_scale={data['input_scale']}")
    return " ".join(words)


def _strategy(text: str, part: str) -> dict[str, Any]:
    spec: dict[str, Any] = {}
    for item in text.split(","):
        key, equals, value = item.partition("=")
        if not equals:
            raise PlanError(f"{part!r}: expected key=value, not {item!r}")
        if key in spec:
            raise PlanError(f"{part!r}: {key} is given twice")
        spec[key] = _value(value)
    return spec


def _items(spec: Mapping[str, Any]) -> str:
    return ",".join(f"{key}={'true' if v is True else v}" for key, v in spec.items())


def _give(stages: list[dict[str, Any]], key: str, digits: str, value: Any) -> None:
    for digit in digits:
        stage = stages[int(digit) - 1]
        if key in stage:
            raise PlanError(f"stage {digit}, {key}: given twice")
        stage[key] = value


def _value(text: str) -> bool | int | float | str:
    if text in ("true", "false"):  # as in YAML
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text
