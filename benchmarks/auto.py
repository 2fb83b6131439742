"""Whether `--merge auto` is ever slower than `none`, which it must not be by more than 2 %.

    python benchmarks/auto.py
    python benchmarks/auto.py --models b0 --runtimes openvino --sizes 256,1024

Both take turns in `segformerpp bench`, each in a process of its own, with random weights in f32.
What `auto` chooses is measured first, by itself, and kept in the cache, as for any user. Rows of
other models, runtimes and sizes stay in the file. Exit code 1 if it is slower somewhere; where the
machine was too busy to tell, the row is withheld.
"""

from __future__ import annotations

import argparse
import json
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from segformerpp import cli
from segformerpp.data.outputs import write_rows
from segformerpp.terminal import print_table

RESULTS = Path(__file__).parent / "results" / "auto.json"
#: Times as fast as `none`, at least.
LEAST = 0.98


def measure(model: str, runtime: str, side: int, rounds: int) -> dict[str, Any]:
    """The row of `auto` for squares of one size; `speed_up` is over `none`."""
    with TemporaryDirectory() as folder:
        part = Path(folder, "rows.json")
        words = ["bench", "--model", model, "--size", f"{side}x{side}", "--merge", "none,auto"]
        words += ["--runtime", runtime, "--precision", "f32", "--device", "cpu"]
        if cli.main([*words, "--rounds", str(rounds), "--json", str(part)]) != 0:
            raise SystemExit(1)
        rows: list[dict[str, Any]] = json.loads(part.read_text())
    return rows[1]


def main() -> None:
    """Measure, write the rows after each, say where it is slower."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", default="b0,b2")
    parser.add_argument("--runtimes", default="openvino,onnxruntime,torch")
    parser.add_argument("--sizes", default="256,512,1024,1536,2048", help="sides of squares")
    parser.add_argument("--rounds", type=int, default=15, help="turns of each plan")
    parser.add_argument("--json", type=Path, default=RESULTS)
    args = parser.parse_args()
    models, runtimes = args.models.split(","), args.runtimes.split(",")
    sides = [int(side) for side in args.sizes.split(",")]
    rows = json.loads(args.json.read_text()) if args.json.exists() else []
    found = {(row["model"], row["runtime"], row["size"]): row for row in rows}
    measured = []
    for model, runtime, side in product(models, runtimes, sides):
        measured.append(row := measure(model, runtime, side, args.rounds))
        found[row["model"], row["runtime"], row["size"]] = row
        write_rows(args.json, [found[key] for key in sorted(found, key=_order)])
    keys = ("model", "runtime", "size", "merge", "speed_up")
    shown = [[str(row[key] or "withheld") for key in keys] for row in measured]
    print_table(["model", "runtime", "size", "merge", "times as fast as none"], shown)
    if any(row["speed_up"] and row["speed_up"] < LEAST for row in measured):
        raise SystemExit(1)


def _order(key: tuple[str, str, str]) -> tuple[str, str, int]:
    model, runtime, size = key
    return model, runtime, int(size.partition("x")[0])


if __name__ == "__main__":
    main()
