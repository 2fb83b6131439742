"""A picture of what `segformerpp bench` measured."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO

from segformerpp.errors import UsageError

#: The formats that matplotlib writes and people want.
FORMATS = (".png", ".svg", ".pdf")
#: The same for figures with photographs in them.
PHOTO_FORMATS = (*FORMATS, ".jpg", ".jpeg")


def check(path: Path, key: str = "plot", formats: Sequence[str] = FORMATS) -> None:
    """Refuse what cannot be drawn; quick. `key` names the option in errors.

    Raises:
        UsageError: if matplotlib is missing, or the file's format is not one of `formats`.
    """
    if path.suffix.lower() not in formats:
        raise UsageError(f"{key}: a file ending in {', '.join(formats)}, not {path}")
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        raise UsageError(f'{key}: needs matplotlib: pip install "segformerpp[plot]"') from None


def plot(rows: Sequence[dict[str, Any]], file: BinaryIO, form: str) -> None:
    """Draw the median of each row as a bar, with a whisker to the 95th percentile.

    Args:
        rows: of `run.measure`; those that were withheld are named without a bar.
        file: where to.
        form: ``png``, ``svg`` or ``pdf``.
    """
    import matplotlib as mpl
    from matplotlib.figure import Figure

    groups = [
        (title, list(group))
        for title, group in groupby(rows, key=lambda r: (r["size"], r["batch"]))
    ]
    heights = [len(group) for _, group in groups]
    figure = Figure(
        figsize=(8, 1.2 + 0.75 * len(groups) + 0.34 * sum(heights)), layout="constrained"
    )
    axes = figure.subplots(len(groups), 1, squeeze=False, height_ratios=heights)[:, 0]
    plans = list(dict.fromkeys(row["merge"] for row in rows))
    colours = {plan: f"C{i % 10}" for i, plan in enumerate(plans)}
    for axis, ((size, batch), group) in zip(axes, groups, strict=True):
        labels = [f"{row['runtime']} {row['precision']}  {row['merge']}" for row in group]
        longest = max((row["p95_ms"] or 0 for row in group), default=0) or 1
        for y, row in enumerate(group):
            if row["withheld"]:
                text = f" withheld: uncertain by {row['uncertainty']:.0%}"
                axis.text(0, y, text, va="center", fontsize=9, color="0.4")
                continue
            median, p95 = row["median_ms"], row["p95_ms"]
            whisker = [[0], [max(p95 - median, 0)]]
            axis.barh(y, median, xerr=whisker, color=colours[row["merge"]], ecolor="0.3", capsize=2)
            gain = f" ({row['speed_up']:.2f}x)" if row["speed_up"] else ""
            place = max(median, p95) + 0.01 * longest
            axis.text(place, y, f"{median:.0f} ms{gain}", va="center", fontsize=9)
        axis.set_yticks(range(len(group)), labels)
        axis.set_ylim(len(group) - 0.4, -0.6)
        axis.set_xlim(0, 1.22 * longest)
        axis.set_title(f"{size.replace('x', ' x ')} pixels, batch {batch}", fontsize=10, loc="left")
        axis.spines[["top", "right"]].set_visible(False)
    axes[-1].set_xlabel("milliseconds for a batch: median, whisker to the 95th percentile")
    first = rows[0]
    threads = f"{first['threads']} threads, " if first["threads"] else ""
    title = f"{first['model']} on {first['processor']} ({threads}{first['date']})"
    figure.suptitle(title, fontsize=11)
    with mpl.rc_context({"svg.hashsalt": "segformerpp"}):
        figure.savefig(file, format=form.lower(), dpi=150)
