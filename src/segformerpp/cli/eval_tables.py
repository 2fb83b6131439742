"""What `segformerpp eval` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from segformerpp.terminal import print_table

if TYPE_CHECKING:
    from segformerpp.evaluation.side_by_side import Evaluation

#: What tells the rows apart.
_FORM = ("merge", "runtime", "precision")


def show(rows: Sequence[Mapping[str, Any]], evaluation: Evaluation[Any, Any]) -> None:
    """Print the rows, and a table with each class or keypoint."""
    # A figure that no row has, such as AP without sigmas, needs no column.
    columns = {
        key: heading
        for key, heading in evaluation.columns.items()
        if any(row[key] is not None for row in rows)
    }
    lines = []
    for row in rows:
        line = [*(row[key] for key in _FORM), *(_text(row[key]) for key in columns)]
        line += [_text(row[key], "withheld") for key in ("median_ms", "speed_up")]
        lines.append(line)
    print_table([*_FORM, *columns.values(), "ms", "speed-up"], lines)
    print()
    key, heading = evaluation.details
    print_table(
        [heading, *headings(rows)],
        [[name, *(_text(row[key][name]) for row in rows)] for name in rows[0][key]],
    )
    first = rows[0]
    people = f" with {first['people']} people" if "people" in first else ""
    what = f"{first['model']} on {first['images']} images{people} of {first['data']}"
    where = f"{first['processor']}, {first['threads']} threads, {first['date']}"
    print(f"\n{what} {first['split']}, {where}")


def headings(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A name for each row: its plan, and runtime and precision where there are several."""
    plan, *others = _FORM
    keys = [plan, *(key for key in others if len({row[key] for row in rows}) > 1)]
    return [" ".join(row[key] for key in keys) for row in rows]


def title(row: Mapping[str, Any]) -> str:
    """A line above the plot of a row's confusion matrix."""
    return f"{row['merge']} ({row['runtime']} {row['precision']}): mIoU {_text(row['miou'])} %"


def _text(value: float | None, instead: str = "") -> str:
    return instead if value is None else f"{value:.2f}"
