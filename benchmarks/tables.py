"""Write the tables of the pages below docs/ from benchmarks/results/*.json.

python benchmarks/tables.py            # writes them
python benchmarks/tables.py --check    # fails if they are not what the results say
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterable
from itertools import groupby
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
PAGES = (
    *("docs/performance.md", "docs/small-boards.md", "docs/accuracy.md"),
    *("docs/transformers.md", "docs/video.md", "docs/strategies.md", "docs/tuning.md"),
    "docs/merging.md",
)
PLANS = ("none", "hq", "fast", "2x2")
Row = dict[str, Any]


def peers(rows: list[Row]) -> Iterable[list[str]]:
    """Milliseconds beside transformers, and in brackets the share of its time."""
    yield ["", "transformers", *(f"`{plan}`" for plan in PLANS)]
    for name, found in _by_setting(rows):
        cells = [_time(found["transformers"])]
        for plan in PLANS:
            row = found[plan]
            share = "" if row["ratio_to_peer"] is None else f" ({row['ratio_to_peer']:.2f})"
            cells.append(_time(row) + share)
        yield [name, *cells]


def memory(rows: list[Row]) -> Iterable[list[str]]:
    """Peak memory of a fresh process in MB, and in brackets the share of transformers'."""
    yield ["", "transformers", *(f"`{plan}`" for plan in PLANS)]
    for name, found in _by_setting(rows):
        cells = [f"{found['transformers']['peak_memory_mb']:.0f}"]
        for plan in PLANS:
            row = found[plan]
            cells.append(f"{row['peak_memory_mb']:.0f} ({row['memory_ratio_to_peer']:.2f})")
        yield [name, *cells]


def folder(rows: list[Row]) -> Iterable[list[str]]:
    """A folder of images beside the network alone."""
    yield ["plan", "network alone, ms", "whole folder, ms for each image", "on top"]
    for row in rows:
        cells = ["withheld"] * 3
        if not row["withheld"]:
            cells = [f"{row['network_ms']:.0f}", f"{row['folder_ms']:.0f}", f"{row['on_top']:.1%}"]
        yield [f"`{row['merge']}`", *cells]


def label_maps(rows: list[Row]) -> Iterable[list[str]]:
    """Label maps from logits, beside the usual way."""
    yield [
        "image",
        "all logits resized, ms",
        "ours, ms",
        "times as fast",
        "the same labels",
    ]
    for row in rows:
        cells = ["withheld"] * 3
        if not row["withheld"]:
            cells = [f"{row[key]:.1f}" for key in ("usual_ms", "ours_ms", "speed_up")]
        yield [row["size"], *cells, f"{row['agreement']:.2f} %"]


def bench(rows: list[Row]) -> Iterable[list[str]]:
    """What `segformerpp bench` wrote: a row for each setting, a column for each plan."""
    plans = list(dict.fromkeys(row["merge"] for row in rows))
    yield ["", *(f"`{plan}`" for plan in plans), "peak MB"]
    for key, group in groupby(rows, lambda r: (r["size"], r["runtime"], r["precision"])):
        found = {row["merge"]: row for row in group}
        most = max(row["peak_memory_mb"] for row in found.values())
        yield [
            " ".join(key),
            *(_time(found[plan]) if plan in found else "" for plan in plans),
            f"{most:.0f}",
        ]


def int8(rows: list[Row]) -> Iterable[list[str]]:
    """What int8 costs in accuracy."""
    yield ["plan", "images", "labels as in f32", "mIoU in f32", "mIoU in int8"]
    for row in rows:
        yield [
            f"`{row['merge']}`",
            str(row["images"]),
            f"{row['agreement']:.2f} %",
            f"{row['miou_before']:.2f}",
            f"{row['miou']:.2f}",
        ]


def accuracy(rows: list[Row]) -> Iterable[list[str]]:
    """Every preset at every size."""
    header = ["size", "plan", "mIoU", "lost", "labels as under `none`", "pixel accuracy"]
    yield [*header, "speed-up"]
    for size, group in groupby(rows, lambda r: r["size"]):
        first, *_ = found = list(group)
        name = "360x480, their own" if size == "own" else f"{size}, upsampled"
        for row in found:
            lost = first["miou"] - row["miou"]
            yield [
                *(name, f"`{row['merge']}`", f"{row['miou']:.2f}", f"{lost:.2f}"),
                *(f"{row['agreement']:.2f} %", f"{row['pixel_accuracy']:.2f} %"),
                "withheld" if row["speed_up"] is None else f"{row['speed_up']:.2f}",
            ]


def video(rows: list[Row]) -> Iterable[list[str]]:
    """Frames per second from file to file, beside the network's alone."""
    yield ["plan", "frames", "network alone, fps", "whole video, fps", "share"]
    for row in rows:
        share = "withheld" if row["share"] is None else f"{row['share']:.2f}"
        rates = f"{row['network_fps']:.2f}", f"{row['video_fps']:.2f}"
        yield [f"`{row['merge']}`", f"{row['images']} of {row['size']}", *rates, share]


def trained(rows: list[Row]) -> Iterable[list[str]]:
    """Models that were trained with a plan."""
    yield ["trained and evaluated with", "mIoU", "lost", "pixel accuracy"]
    (plain,) = (row for row in rows if row["merge"] == "none")
    for row in rows:
        lost = plain["miou"] - row["miou"]
        cells = [f"`{row['merge']}`", f"{row['miou']:.2f}", f"{lost:.2f}"]
        yield [*cells, f"{row['pixel_accuracy']:.2f} %"]


def harder_images(rows: list[Row]) -> Iterable[list[str]]:
    """How many labels change on images of several kinds, a column for each plan."""
    plans = list(dict.fromkeys(row["merge"] for row in rows))
    yield ["images", *("a tuned plan" if ":" in plan else f"`{plan}`" for plan in plans)]
    for name, group in groupby(rows, lambda r: r["image"]):
        changed = {row["merge"]: row["labels_changed"] for row in group}
        yield [name, *(f"{changed[plan]:.2f}" for plan in plans)]


def poses(rows: list[Row]) -> Iterable[list[str]]:
    """Every preset without retraining, and beside it a model that was trained with the plan."""
    trained = {row["merge"]: row for row in rows if row["trained_with"] != "none"}
    first, *_ = found = [row for row in rows if row["trained_with"] == "none"]
    header = [f"plan, on {first['images']} images", "PCK@0.1", "lost", "PCK@0.05"]
    header += ["keypoints as under `none`", "speed-up"]
    yield header + ["trained with the plan: PCK@0.1", "PCK@0.05"] * bool(trained)
    for row in found:
        cells = [
            *(f"`{row['merge']}`", f"{row['pck_0.1']:.2f}"),
            *(f"{first['pck_0.1'] - row['pck_0.1']:.2f}", f"{row['pck_0.05']:.2f}"),
            f"{row['agreement']:.2f} %",
            "withheld" if row["speed_up"] is None else f"{row['speed_up']:.2f}",
        ]
        if trained:
            other = trained.get(row["merge"])
            cells += [f"{other[key]:.2f}" if other else "" for key in ("pck_0.1", "pck_0.05")]
        yield cells


def training(rows: list[Row]) -> Iterable[list[str]]:
    """Step time and peak memory, and in brackets the share of the peer's."""
    plans = list(dict.fromkeys(row["merge"] for row in rows if row["merge"] != "transformers"))
    yield ["", "", "transformers", *(f"`{plan}`" for plan in plans)]
    for model, group in groupby(rows, lambda r: r["model"]):
        found = {row["merge"]: row for row in group}
        peer, ours = found["transformers"], [found[plan] for plan in plans]
        shares = ["" if r["time_ratio"] is None else f" ({r['time_ratio']:.2f})" for r in ours]
        times = [_time(r) + share for r, share in zip(ours, shares, strict=True)]
        yield [model.upper(), "ms for a step", _time(peer), *times]
        memory = [f"{r['peak_memory_mb']:.0f} ({r['memory_ratio']:.2f})" for r in ours]
        yield [model.upper(), "peak MB", f"{peer['peak_memory_mb']:.0f}", *memory]


def accelerated(rows: list[Row]) -> Iterable[list[str]]:
    """Milliseconds in place and in our own runtime, and in brackets the share of transformers'."""
    plans = list(dict.fromkeys(row["merge"] for row in rows if row["runtime"] != "transformers"))
    yield ["", "", "transformers", *(f"`{plan}`" for plan in plans)]
    for key, group in groupby(rows, lambda r: (r["model"].upper(), r["size"], r["precision"])):
        found = {(row["runtime"], row["merge"]): row for row in group}
        for runtime, name in (("accelerated", "`accelerate`"), ("torch", "ours, `torch`")):
            cells = [_time(found["transformers", "none"])]
            for plan in plans:
                row = found[runtime, plan]
                share = "" if row["ratio_to_peer"] is None else f" ({row['ratio_to_peer']:.2f})"
                cells.append(_time(row) + share)
            yield [" ".join(key), name, *cells]


def reuse_match(rows: list[Row]) -> Iterable[list[str]]:
    """Labels that stay where several frames share a match: a row for each plan."""
    shared = list(dict.fromkeys(row["reuse_match"] for row in rows))
    yield ["plan", "frames", *(f"N = {frames}" for frames in shared)]
    for plan, group in groupby(rows, lambda r: r["merge"]):
        found = {row["reuse_match"]: row for row in group}
        row = found[shared[0]]
        cells = [f"{found[frames]['agreement']:.2f} %" for frames in shared]
        yield [f"`{plan}`", f"{row['frames']} of {row['video']}, {row['size']}", *cells]


def strategies(rows: list[Row]) -> Iterable[list[str]]:
    """The plans whose accuracy was measured, those with the most labels kept first."""
    times = sorted({key for row in rows for key in row if key.startswith("of_fast_")})
    header = ["plan", "labels as under `none`, %", "mIoU lost", "PCK@0.1 lost, `lsp-b0`"]
    named = [f"of `fast`'s time, {key.removeprefix('of_fast_').replace('_', ' ')}" for key in times]
    yield [*header, "GMACs B0", "GMACs B5", *(name.replace(" b", " B", 1) for name in named)]
    for row in sorted((r for r in rows if "agreement" in r), key=lambda r: -r["agreement"]):
        preset = row["name"] == row["merge"]
        yield [
            f"`{row['name']}`" if preset else row["name"],
            *(_figure(row.get(key)) for key in ("agreement", "lost", "pck_lost")),
            *(_figure(row.get(key)) for key in ("gmacs_b0", "gmacs_b5", *times)),
        ]


def auto(rows: list[Row]) -> Iterable[list[str]]:
    """What `auto` chose, and how many times as fast as `none` it was."""
    sizes = sorted({row["size"] for row in rows}, key=lambda size: int(size.partition("x")[0]))
    yield ["", *sizes]
    for (model, runtime), group in groupby(rows, lambda r: (r["model"], r["runtime"])):
        found = {row["size"]: row for row in group}
        yield [f"{model.upper()} {runtime}", *(_gain(found.get(size)) for size in sizes)]


def _gain(row: Row | None) -> str:
    if row is None:
        return ""
    gain = "withheld" if row["speed_up"] is None else f"{row['speed_up']:.2f}"
    return f"`{row['merge'].removeprefix('auto: ')}` {gain}"


TABLES: dict[str, Callable[[list[Row]], Iterable[list[str]]]] = {
    "auto": auto,
    "peers": peers,
    "memory": memory,
    "folder": folder,
    "label_maps": label_maps,
    "bench": bench,
    "int8": int8,
    "accuracy": accuracy,
    "trained": trained,
    "harder_images": harder_images,
    "video": video,
    "poses": poses,
    "training": training,
    "accelerated": accelerated,
    "reuse_match": reuse_match,
    "strategies": strategies,
}


def _by_setting(rows: list[Row]) -> Iterable[tuple[str, dict[str, Row]]]:
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        name = " ".join([row["model"].upper(), row["size"], row["precision"], row["runtime"]])
        found.setdefault(name, {})[row["merge"]] = row
    return found.items()


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _time(row: Row) -> str:
    return "withheld" if row["withheld"] else f"{row['median_ms']:.0f}"


def filled(text: str) -> str:
    """A page with its tables as the results have them."""

    def table(found: re.Match[str]) -> str:
        kind, name = found[1], found[2]
        path = ROOT / "benchmarks" / "results" / f"{name}.json"
        if found[3] == "" and not path.exists():  # a place for what is still to be measured
            return found[0]
        rows = json.loads(path.read_text())
        header, *lines = TABLES[kind](rows)
        drawn = [header, ["---"] * len(header), *lines]
        body = "\n".join("| " + " | ".join(line) + " |" for line in drawn)
        told = next((row for row in rows if "date" in row), rows[0])
        versions = ", ".join(f"{k} {v}" for k, v in told.get("versions", {}).items())
        machine = [told.get("processor", ""), versions, told.get("date", "")]
        where = "; ".join(filter(None, machine))
        return f"<!-- {kind} {name} -->\n{body}\n\n{where}\n<!-- end -->"

    return re.sub(r"<!-- (\w+) (\S+) -->\n(.*?)<!-- end -->", table, text, flags=re.DOTALL)


def main() -> None:
    """Write or check."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    for name in PAGES:
        path = ROOT / name
        text = path.read_text()
        if check and filled(text) != text:
            raise SystemExit(f"{name}: its tables are not those of benchmarks/results")
        path.write_text(filled(text))


if __name__ == "__main__":
    main()
