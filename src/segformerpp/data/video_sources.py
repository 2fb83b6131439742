"""Telling videos, streams and cameras from images among the sources that a person names."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath

from segformerpp.data.files import expand_user, unique_stems
from segformerpp.errors import UsageError

#: What counts as a video.
VIDEO_EXTENSIONS = frozenset(
    f".{name}"
    for name in (
        *("264", "265", "3g2", "3gp", "asf", "avi", "dv", "flv", "h264", "h265", "hevc", "m2ts"),
        *("m4v", "mjpeg", "mjpg", "mkv", "mov", "mp4", "mpeg", "mpg", "mts", "mxf", "ogv", "ts"),
        *("vob", "webm", "wmv", "y4m"),
    )
)
#: Sources of these kinds never end; those of HTTP may.
LIVE_PROTOCOLS = ("rtmp", "rtmps", "rtp", "rtsp", "rtsps", "srt", "tcp", "udp")


@dataclass(frozen=True, slots=True)
class VideoSource:
    """A video, stream or camera to work on, and what its outputs are called.

    Args:
        source: a path, an address, or the number of a camera.
        stem: what the names of its outputs start with, without a folder.
    """

    source: Path | str | int
    stem: str

    @property
    def name(self) -> str:
        """What people call it, without a password."""
        if isinstance(self.source, int):
            return f"camera {self.source}"
        return without_password(str(self.source))

    @property
    def is_file(self) -> bool:
        """Whether it is a file."""
        return isinstance(self.source, Path)


def split_sources(
    sources: Iterable[str], outputs: Callable[[str], Iterable[Path]]
) -> tuple[list[str], list[VideoSource]]:
    """Tell videos from images.

    Videos are files with an extension of `VIDEO_EXTENSIONS`, patterns that end in one, addresses
    such as ``rtsp://...`` or ``http://...``, whole numbers (of cameras) and devices such as
    ``/dev/video0``. All else is left to `find_images`.

    Args:
        sources: as a person names them.
        outputs: where the outputs of a video with such a stem go. A video that matches a pattern
            and is an output of another one is left out.

    Returns:
        The sources that are left, and the videos, each once.

    Raises:
        UsageError: if no video matches a pattern, a protocol is unknown, or a video that was
            named is where another's outputs go.
    """
    left: list[str] = []
    found: dict[str, tuple[Path | str | int, PurePath]] = {}
    named: set[str] = set()
    for source in sources:
        path = expand_user(source)
        protocol = re.match(r"([a-z0-9+]+)://", source)
        if protocol:
            if protocol[1] not in (*LIVE_PROTOCOLS, "http", "https"):
                known = ", ".join(sorted((*LIVE_PROTOCOLS, "http", "https")))
                raise UsageError(f"{source}: an address begins with one of {known}")
            found[source] = source, PurePath(_address_name(source))
        elif source.isdecimal() and not os.path.exists(path):  # noqa: PTH110 (like _is_device)
            found[source] = int(source), PurePath(f"camera-{int(source)}")
        elif _is_device(path):
            found[source] = str(path), PurePath(path.name)
        elif path.suffix.lower() in VIDEO_EXTENSIONS and os.path.isfile(path):  # noqa: PTH113
            named.add(_identity(path))
            found[_identity(path)] = path, PurePath(path.name)
        elif path.suffix.lower() in VIDEO_EXTENSIONS and glob.has_magic(source):
            matches = sorted(map(Path, glob.glob(str(path), recursive=True)))  # noqa: PTH207 (absolute ones too)
            if not matches:
                raise UsageError(f"{source}: no video matches this pattern")
            found |= {_identity(match): (match, PurePath(match.name)) for match in matches}
        else:
            left.append(source)
    while True:
        entries = list(found.values())
        stems = unique_stems([(Path(str(source)), name) for source, name in entries])
        stems = [stem.replace("/", "_") for stem in stems]
        made = {_identity(path) for stem in stems for path in outputs(stem)}
        if clash := sorted(made & named):
            raise UsageError(
                f"{found[clash[0]][0]}: results of another video may go there; choose another "
                f"folder for them"
            )
        if made.isdisjoint(found):
            break
        found = {key: value for key, value in found.items() if key not in made}
    return left, [VideoSource(e[0], stem) for e, stem in zip(entries, stems, strict=True)]


def without_password(source: str) -> str:
    """An address without user and password."""
    return re.sub(r"^([a-z0-9+]+://)[^/]*@", r"\1", source)


def _is_device(path: Path) -> bool:
    try:
        return path.is_char_device()
    except OSError:  # such as a name that is too long, of which pathlib does not say False
        return False


def _identity(path: Path) -> str:
    return os.path.normcase(os.path.abspath(path))  # noqa: PTH100 (links are files of their own)


def _address_name(address: str) -> str:
    """The address as the name of a file, without user, password and query."""
    rest = re.sub(r"^[a-z0-9+]+://([^/]*@)?", "", address)
    path = PurePath(re.split(r"[?#]", rest)[0])
    if path.suffix.lower() in VIDEO_EXTENSIONS:
        path = path.with_suffix("")
    # No dots: what follows the last one would be taken for an extension.
    return re.sub(r"[^\w-]+", "_", str(path).replace(".", "-")).strip("_") or "stream"
