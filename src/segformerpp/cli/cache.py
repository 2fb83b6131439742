"""`segformerpp cache`."""

from __future__ import annotations

import time
from contextlib import suppress

from segformerpp.cli.options import SUCCESS
from segformerpp.errors import PlanError
from segformerpp.terminal import print_table


def cache(clear: bool = False, json: str | None = None) -> int:
    """Show what is kept to start faster: compiled networks, and what is known of checkpoints.

    A network is compiled once for each model, merge plan, image size and precision; it can be
    thrown away at any time. The folder is $SEGFORMERPP_CACHE, or the system's place for such
    things; SEGFORMERPP_CACHE=off keeps nothing. When all takes more than $SEGFORMERPP_CACHE_LIMIT
    (such as 500M or 2G, else 4G), what was not used for the longest time goes.

    Examples:
      segformerpp cache
      segformerpp cache --clear

    Args:
        clear: remove everything
        json: file for the list
    """
    from segformerpp import cache as kept
    from segformerpp.data.outputs import write_rows
    from segformerpp.plans import MergePlan

    where = kept.folder()
    if where is None:
        print(f"nothing is kept: {kept.FOLDER} is off, or there is no home folder")
        return SUCCESS
    if clear:
        print(f"{_megabytes(kept.clear())} MB removed from {where}")
        return SUCCESS
    entries = kept.entries()
    rows, table = [], []
    for entry in entries:
        key, shape = entry.key, entry.key.get("shape")
        size = f"{shape[2]}x{shape[3]}" if shape else ""
        plan = ""
        with suppress(PlanError):  # of another version of this package
            plan = MergePlan.from_dict(key["merge"]).name if "merge" in key else ""
        row = {
            "kind": entry.kind,
            "model": key.get("model", ""),
            "merge": plan,
            "size": size,
            "batch": shape[0] if shape else None,
            "runtime": key.get("runtime", ""),
            "precision": key.get("precision", ""),
            "megabytes": _megabytes(entry.nbytes),
            "used": time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.used)),
        }
        rows.append(row)
        table.append(["" if value is None else str(value) for value in row.values()])
    if json:
        write_rows(json, rows)
    if rows:
        print_table(list(rows[0]), table)
    total = _megabytes(sum(entry.nbytes for entry in entries))
    print(f"{len(entries)} entries, {total} MB of at most {_megabytes(kept.limit())}, in {where}")
    return SUCCESS


def _megabytes(nbytes: int) -> float:
    return round(nbytes / 1e6, 1)
