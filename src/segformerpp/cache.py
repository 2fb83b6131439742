"""Things that take long to make, kept on disk: compiled networks and what is known of checkpoints.

An entry is one file: a line of JSON (what it is of, how long it is, its checksum), then its bytes.
Its name is a hash of what it is of. Files appear whole or not at all, a broken one is made again,
and of several processes that need the same one makes it while the others wait.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import secrets
import sys
import time
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segformerpp.errors import UsageError

logger = logging.getLogger(__name__)

FOLDER, LIMIT = "SEGFORMERPP_CACHE", "SEGFORMERPP_CACHE_LIMIT"  # environment variables
_DEFAULT_LIMIT = "4G"
_SUFFIX = ".entry"
#: Longer than it takes to compile the largest network; then everyone makes their own.
_PATIENCE_SECONDS = 120.0
#: No file is written for longer than this.
_STALE_SECONDS = 24 * 3600.0


@dataclass(frozen=True, slots=True)
class Entry:
    """What is kept.

    Attributes:
        path: of the file.
        kind: such as ``network`` or ``checkpoint``.
        key: what it is of.
        nbytes: how large the file is.
        used: when it was last used, in seconds since 1970.
    """

    path: Path
    kind: str
    key: Mapping[str, Any]
    nbytes: int
    used: float


def folder() -> Path | None:
    """Where entries are: ``$SEGFORMERPP_CACHE``, else the system's place for such things.

    None if that variable is ``off``, or nobody knows the user's home (in some containers).

    Raises:
        UsageError: if the variable names the home of a user that there is not.
    """
    if chosen := os.environ.get(FOLDER):
        try:
            return None if chosen == "off" else Path(chosen).expanduser()
        except RuntimeError:
            raise UsageError(f"{FOLDER}: {chosen}: there is no such user") from None
    if sys.platform == "darwin":
        root = "~/Library/Caches"
    elif sys.platform == "win32":
        root = os.environ.get("LOCALAPPDATA", "~/AppData/Local")
    else:
        root = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(root, "segformerpp").expanduser()
    except RuntimeError:
        return None


def limit() -> int:
    """How many bytes all entries may take: ``$SEGFORMERPP_CACHE_LIMIT``, else 4 GiB.

    Raises:
        UsageError: if the variable is not a size such as ``500M`` or ``2G``.
    """
    text = os.environ.get(LIMIT) or _DEFAULT_LIMIT
    number, unit = text[:-1], {"M": 2**20, "G": 2**30}.get(text[-1].upper())
    if unit is None or not number.isdecimal():
        raise UsageError(f"{LIMIT}: a size such as 500M or 2G, not {text!r}")
    return int(number) * unit


def fetch(
    kind: str,
    key: Mapping[str, Any],
    make: Callable[[], bytes],
    usable: Callable[[bytes], Any] = bytes,
    patience: float = _PATIENCE_SECONDS,
) -> Any:
    """Take an entry from the cache, or make it and keep it.

    Args:
        kind: what sort of thing it is.
        key: everything that it depends on, as plain values.
        make: makes its bytes.
        usable: what is wanted of the bytes. Where it raises an error for kept ones, they are made
            anew.
        patience: seconds to wait for another process that makes the same.

    Returns:
        What `usable` returns.

    Raises:
        UsageError: see `folder` and `limit`.
    """
    where = folder()
    if where is None:
        return usable(make())
    limit()  # said before the work, not after it
    path = where / (_digest(kind, key) + _SUFFIX)
    with suppress(_MissingError):
        return _kept(path, usable)
    try:
        where.mkdir(parents=True, exist_ok=True)
        from filelock import FileLock, Timeout
    except OSError as error:
        _warn(where, error)
        return usable(make())
    lock = FileLock(path.with_suffix(".lock"), timeout=patience)
    try:
        lock.acquire()
    except Timeout:
        logger.warning("another process has been making the same for long; it is made here too")
        return usable(make())
    except (OSError, NotImplementedError) as error:  # on disks that know no locks
        _warn(where, error)
        return usable(make())
    try:
        with suppress(_MissingError):
            return _kept(path, usable)
        data = make()
        try:
            _write(path, kind, key, data)
            _shrink(where, path)
        except OSError as error:
            _warn(where, error)
        return usable(data)
    finally:
        lock.release()


@functools.cache
def code_version(package: str) -> str:
    """A hash of the code in one of our packages and all below it, such as ``runtimes``.

    What it made before a change may be of no use after it.
    """
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.joinpath(package).rglob("*")):
        if path.suffix in (".py", ".cpp", ".hpp"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def entries() -> list[Entry]:
    """What is kept, the most recently used first."""
    where, found = folder(), []
    for path in where.glob(f"*{_SUFFIX}") if where else ():
        with suppress(OSError, ValueError, KeyError, TypeError), path.open("rb") as file:
            head = json.loads(file.readline())
            status, key = path.stat(), dict(head["key"])
            found.append(Entry(path, head["kind"], key, status.st_size, status.st_mtime))
    return sorted(found, key=lambda entry: -entry.used)


def clear() -> int:
    """Remove everything; returns how many bytes that were.

    Raises:
        OSError: if something cannot be removed.
    """
    where, freed = folder(), 0
    if where and where.is_dir():
        for path in where.iterdir():
            if path.suffix in (_SUFFIX, ".lock", ".tmp"):
                with suppress(FileNotFoundError):  # others may clear, too
                    freed += path.stat().st_size
                    path.unlink()
    return freed


class _MissingError(Exception):
    pass


def _digest(kind: str, key: Mapping[str, Any]) -> str:
    text = json.dumps([kind, key], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _kept(path: Path, usable: Callable[[bytes], Any]) -> Any:
    """Use an entry.

    Raises:
        _MissingError: if there is none, or a broken one, which is removed.
    """
    try:
        with path.open("rb") as file:
            head = json.loads(file.readline())
            data = file.read()
        if len(data) != head["length"] or zlib.crc32(data) != head["crc32"]:
            raise ValueError("broken")
        result = usable(data)
    except (OSError, MemoryError):
        raise _MissingError from None
    except Exception as error:  # whatever the bytes are used for may refuse them in its own way
        logger.info("%s in the cache cannot be used, and is made again: %s", path.name, error)
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise _MissingError from None
    with suppress(OSError):
        os.utime(path)
    return result


def _write(path: Path, kind: str, key: Mapping[str, Any], data: bytes) -> None:
    head = {"kind": kind, "key": key, "length": len(data), "crc32": zlib.crc32(data)}
    temporary = path.with_name(f"{secrets.token_hex(8)}.tmp")
    try:
        with temporary.open("xb") as file:
            file.write(json.dumps(head).encode() + b"\n")
            file.write(data)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _shrink(where: Path, newest: Path) -> None:
    """Remove what was not used for the longest time, until all is within the limit."""
    total, most = 0, limit()
    for entry in entries():
        total += entry.nbytes
        if total > most and entry.path != newest:
            entry.path.unlink(missing_ok=True)
    for path in where.glob("*.tmp"):  # of processes that were killed
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _STALE_SECONDS:
                path.unlink()


_warned: set[Path] = set()


def _warn(where: Path, error: Exception) -> None:
    if where not in _warned:
        _warned.add(where)
        logger.warning(
            "nothing can be kept in %s (%s): set %s to another folder, or to off",
            *(where, " ".join(str(error).split()), FOLDER),
        )
