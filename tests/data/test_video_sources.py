from collections.abc import Callable
from pathlib import Path

import pytest

from segformerpp.data.video_sources import split_sources, without_password
from segformerpp.errors import UsageError

Split = Callable[..., tuple[list[str], list[tuple[str, str]]]]


@pytest.fixture
def split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Split:
    """`split_sources` in a folder with a few empty files; sources and stems of the videos."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sub").mkdir()
    for name in ("a.mp4", "b.MKV", "sub/a.mov", "c.jpg", "7", "list.txt"):
        (tmp_path / name).touch()

    def run(*sources: str, out: str = "out") -> tuple[list[str], list[tuple[str, str]]]:
        left, videos = split_sources(sources, lambda stem: [Path(out, f"{stem}_overlay.mp4")])
        return left, [(str(video.source), video.stem) for video in videos]

    return run


def test_kinds_of_sources(split: Split) -> None:
    left, videos = split(
        "c.jpg", "a.mp4", "b.MKV", "sub", "list.txt", "7", "0", "none.mp4", "*.png"
    )
    assert left == ["c.jpg", "sub", "list.txt", "7", "none.mp4", "*.png"]
    assert videos == [("a.mp4", "a"), ("b.MKV", "b"), ("0", "camera-0")]


@pytest.mark.parametrize(
    ("address", "stem"),
    [
        ("rtsp://me:secret@192.168.1.5:554/live/1", "192-168-1-5_554_live_1"),
        ("http://host.local/a.b.mp4?token=x", "host-local_a-b"),
        ("https://host/", "host"),
        ("udp://@:5000", "5000"),
    ],
)
def test_addresses(split: Split, address: str, stem: str) -> None:
    assert split(address) == ([], [(address, stem)])


def test_passwords_are_not_shown() -> None:
    assert without_password("rtsp://me:p@ss@host/a") == "rtsp://host/a"
    assert without_password("http://host/a@b") == "http://host/a@b"


def test_a_protocol_that_is_unknown(split: Split) -> None:
    with pytest.raises(UsageError, match=r"ftp://host/a\.mp4: an address begins with one of http"):
        split("ftp://host/a.mp4")


def test_patterns(split: Split) -> None:
    assert split("*.mp4") == ([], [("a.mp4", "a")])
    assert split("**/*.mov") == ([], [("sub/a.mov", "a")])
    with pytest.raises(UsageError, match=r"\*\.webm: no video matches this pattern"):
        split("*.webm")


def test_equal_names_are_told_apart(split: Split) -> None:
    assert split("a.mp4", "sub/a.mov", "a.mp4")[1] == [("a.mp4", "a.mp4"), ("sub/a.mov", "a.mov")]
    Path("sub/a.mp4").touch()
    stems = [stem for _, stem in split("a.mp4", "sub/a.mp4")[1]]
    assert len(set(stems)) == 2
    assert not any("/" in stem for stem in stems)


def test_results_are_no_sources(split: Split) -> None:
    Path("a_overlay.mp4").touch()
    assert split("*.mp4", out=".")[1] == [("a.mp4", "a")]
    assert len(split("*.mp4")[1]) == 2
    with pytest.raises(UsageError, match=r"a_overlay\.mp4: results of another video may go there"):
        split("a.mp4", "a_overlay.mp4", out=".")
