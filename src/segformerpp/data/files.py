"""Finding the images that a person means, naming their outputs, and writing files whole."""

from __future__ import annotations

import glob
import itertools
import os
import secrets
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import BinaryIO

from segformerpp.errors import UsageError

#: What counts as an image when a folder or a pattern is searched.
IMAGE_EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *("avif", "bmp", "dib", "gif", "jfif", "jp2", "jpe", "jpeg", "jpg", "pbm", "pgm", "png"),
        *("pnm", "ppm", "tga", "tif", "tiff", "webp"),
    )
)


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image to work on, and what its outputs are called.

    Args:
        path: where it is.
        stem: the relative path, with ``/`` and without extension, that its outputs start with;
            unique among the images found together, also where case does not count.
    """

    path: Path
    stem: str


def find_images(
    sources: Iterable[str | Path],
    skip: Path | None = None,
    outputs: Callable[[str], Iterable[Path]] | None = None,
) -> list[ImageFile]:
    """Find images, each once, in the order of the sources.

    Args:
        sources: any mix of image files, folders (searched with all their subfolders, in
            alphabetical order; hidden ones and links to folders are left out), patterns such as
            ``"scans/*.png"`` or ``"scans/**/left.png"``, and ``.txt`` files with one path per
            line (relative to the list's folder, else to the current one; blank lines and ``#``
            comments are skipped).
        skip: a folder that is left out where it lies in a source folder, or below the fixed part
            of a pattern: the one for outputs.
        outputs: where the outputs of an image with such a stem go. A file that is an output of
            another one found is left out: where outputs lie among the images, they are none.
            One that was named itself, or in a list, is never left out.

    Returns:
        The files with the names of their outputs: the path below the source folder, or below
        the fixed part of the pattern, without extension; for single files their name. Where two
        would get the same name, both keep their extension, and if need be the folders above.
        Whether a file is a readable image is not checked.

    Raises:
        UsageError: if a source does not exist or gives no image, or one that was named is where
            another's outputs go.
    """
    found: dict[str, tuple[Path, PurePath]] = {}
    named: set[str] = set()
    for source in sources:
        try:
            results = {_identity(path): (path, name) for path, name in _search(str(source), skip)}
            found |= {key: value for key, value in results.items() if key not in found}
            if expand_user(source).is_file():
                named |= results.keys()
        except OSError as error:  # such as a name that is too long
            raise UsageError(f"{source}: {error.strerror or error}") from None
    while True:
        stems = unique_stems(list(found.values()))
        made = {_identity(path) for stem in stems for path in outputs(stem)} if outputs else set()
        if clash := sorted(made & named & found.keys()):
            raise UsageError(
                f"{found[clash[0]][0]}: results of another image may go there; choose another "
                f"folder for them"
            )
        if made.isdisjoint(found):
            break
        # Again, because what is left may have got shorter names.
        found = {key: value for key, value in found.items() if key not in made}
    return [ImageFile(path, stem) for (path, _), stem in zip(found.values(), stems, strict=True)]


def expand_user(path: str | Path) -> Path:
    """Put the home folder in the place of a leading ``~``, unless there is a file of that name."""
    return Path(path if os.path.lexists(path) else os.path.expanduser(path))  # noqa: PTH111 (it never raises)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Give a name to write to; what is there when the block ends gets the name `path`.

    Missing folders are made. If the block raises, nothing stays behind; if the process is killed
    in it, a hidden file with a random name does.

    Raises:
        OSError: if it cannot be written; the file name is that of `path`.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        temporary.replace(path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from error
        raise


@contextmanager
def write_whole(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that appears under its name only once it is complete.

    Raises:
        OSError: if it cannot be written; the file name is that of `path`. See `whole_file`.
    """
    with whole_file(path) as temporary, temporary.open("xb") as file:
        yield file


def check_writable(key: str, folder: Path) -> None:
    """Try to write to a folder, or to where it would be made, and leave no trace.

    Raises:
        UsageError: which begins with `key`, if that does not work.
    """
    try:
        there = next(parent for parent in (folder, *folder.parents) if parent.exists())
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"{key}: cannot write to {folder}: {reason}") from None


def _search(source: str, skip: Path | None) -> list[tuple[Path, PurePath]]:
    """The images of one source, each with its path relative to where the search began."""
    path = expand_user(source)
    found: list[tuple[Path, PurePath]]
    if path.is_dir():
        found = [(file, file.relative_to(path)) for file in _walk(path, skip)]
        if not found:
            raise UsageError(f"{source}: no image in this folder")
        return found
    if path.suffix.lower() == ".txt" and path.is_file():
        return _read_list(path)
    if path.exists():
        return [(path, PurePath(path.name))]
    if not glob.has_magic(source):
        raise UsageError(f"{source}: no such file or folder")
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)
    base = Path(*fixed)
    hidden = _skipped_below(base, skip)
    matches = map(Path, sorted(glob.glob(str(path), recursive=True)))  # noqa: PTH207 (absolute ones too)
    found = [
        (file, _below(base, file))
        for file in matches
        if _looks_like_image(file) and not (hidden and file.parent.resolve().is_relative_to(hidden))
    ]
    if not found:
        raise UsageError(f"{source}: no image matches this pattern")
    return found


def _identity(path: Path) -> str:
    """Equal for paths of the same file."""
    return os.path.normcase(_absolute(path))


def _absolute(path: Path) -> str:
    return os.path.abspath(path)  # noqa: PTH100 (links are files of their own)


def _below(base: Path, file: Path) -> PurePath:
    name = file.relative_to(base)
    return PurePath(file.name) if ".." in name.parts else name


def _skipped_below(base: Path, skip: Path | None) -> Path | None:
    """The folder to skip, resolved, if it lies below where a search begins."""
    skip, base = skip and skip.resolve(), base.resolve()
    return skip if skip and skip != base and skip.is_relative_to(base) else None


def _looks_like_image(path: Path) -> bool:
    return (
        path.suffix.lower() in IMAGE_EXTENSIONS
        and not path.name.startswith(".")
        and not path.is_dir()
    )


def _walk(folder: Path, skip: Path | None) -> list[Path]:
    skip = _skipped_below(folder, skip)

    def refuse(error: OSError) -> None:
        raise UsageError(f"{error.filename}: cannot be searched: {error.strerror}")

    found: list[Path] = []
    for root, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [
            name
            for name in folders
            if not name.startswith(".") and not (skip and Path(root, name).resolve() == skip)
        ]
        found += filter(_looks_like_image, (Path(root, name) for name in names))
    return sorted(found)


def _read_list(path: Path) -> list[tuple[Path, PurePath]]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: cannot be read as a list of paths: {error}") from None
    found = []
    for line in lines:
        if line and not line.startswith("#"):
            places = (path.parent / line, Path(line), expand_user(line))
            file = next((place for place in places if os.path.lexists(place)), places[0])
            found.append((file, PurePath(file.name)))
    if not found:
        raise UsageError(f"{path}: no path in this list")
    return found


def unique_stems(found: list[tuple[Path, PurePath]]) -> list[str]:
    """The shortest names that tell all files apart; those of equal names get longer together."""
    # Together, and not the later one only: so names do not depend on the order of the files.
    longer = [_names(path, name, i) for i, (path, name) in enumerate(found)]
    stems = [next(names) for names in longer]
    while True:
        counts = Counter(stem.casefold() for stem in stems)
        clashes = [i for i, stem in enumerate(stems) if counts[stem.casefold()] > 1]
        if not clashes:
            return stems
        for i in clashes:
            stems[i] = next(longer[i])


def _names(path: Path, name: PurePath, number: int) -> Iterator[str]:
    """Names for a file, each longer than the one before."""
    yield name.with_suffix("").as_posix()
    yield name.as_posix()
    parts = Path(_absolute(path)).parts[1:]
    for count in range(len(name.parts) + 1, len(parts) + 1):
        yield "/".join(parts[-count:])
    # Only paths that differ in nothing but case come as far as this.
    for suffix in itertools.count(number):
        yield f"{'/'.join(parts)}-{suffix}"
