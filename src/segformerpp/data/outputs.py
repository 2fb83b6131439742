"""Files that a command is to write: whether they can be written, and rows of figures as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from segformerpp.data.files import check_writable, expand_user, write_whole
from segformerpp.errors import UsageError


def check_writable_file(key: str, path: str | Path) -> None:
    """See whether `write_rows` could write a file, which may exist already; leave no trace.

    Raises:
        UsageError: which begins with `key`, if it is a folder, or its own cannot be written to.
    """
    path = expand_user(path)
    if path.is_dir():
        raise UsageError(f"{key}: {path} is a folder, not a file")
    check_writable(key, path.parent)


def write_rows(path: str | Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Write rows of plain values as a JSON list; the file appears whole or not at all.

    A leading ``~`` is the home folder: shells leave it in ``--json=~/rows.json``.

    Raises:
        OSError: if it cannot be written.
    """
    with write_whole(expand_user(path)) as file:
        file.write(json.dumps(rows, indent=1).encode() + b"\n")
