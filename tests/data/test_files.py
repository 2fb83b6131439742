import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from segformerpp.data.files import find_images, write_whole
from segformerpp.errors import UsageError


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes empty files below a fresh folder, which is the current one."""
    monkeypatch.chdir(tmp_path)

    def make(*names: str) -> Path:
        for name in names:
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
        return tmp_path

    return make


def stems(*sources: str | Path, **options: Any) -> list[str]:
    return [file.stem for file in find_images(sources, **options)]


def test_a_folder_with_all_below_it(tree: Callable[..., Path]) -> None:
    tree("in/b.png", "in/a.JPG", "in/sub/deep/c.tiff", "in/notes.txt", "in/.hidden.png")
    tree("in/.git/x.png", "in/no_extension")
    files = find_images(["in"])
    assert [str(file.path) for file in files] == ["in/a.JPG", "in/b.png", "in/sub/deep/c.tiff"]
    assert [file.stem for file in files] == ["a", "b", "sub/deep/c"]


def test_files_keep_their_order_and_come_once(tree: Callable[..., Path]) -> None:
    root = tree("b.png", "a.png", "in/c.png")
    assert stems("b.png", "a.png", root / "b.png", "in", "./in/../a.png", "in/*.png") == [
        *("b", "a", "c")
    ]


def test_links_are_files_of_their_own(tree: Callable[..., Path]) -> None:
    root = tree("a.png")
    (root / "b.png").symlink_to(root / "a.png")
    assert stems(root) == ["a", "b"]


def test_patterns(tree: Callable[..., Path]) -> None:
    tree("runs/1/left.png", "runs/2/left.png", "runs/2/right.png", "runs/2/left.txt", "runs/x.png")
    assert stems("runs/*/left.*") == ["1/left", "2/left"]
    assert stems("runs/**/*.png") == ["1/left", "2/left", "2/right", "x"]
    assert stems("runs/*") == ["x"]
    assert stems("*/../runs/x.png") == ["x"]


def test_a_name_that_looks_like_a_pattern(tree: Callable[..., Path]) -> None:
    tree("a[1].png", "a1.png")
    assert stems("a[1].png") == ["a[1]"]


def test_lists(tree: Callable[..., Path]) -> None:
    root = tree("in/a.png", "b.png")
    (root / "in" / "list.txt").write_text("# comment\n\na.png\nb.png\nmissing.png\n")
    files = find_images(["in/list.txt"])
    assert [str(file.path) for file in files] == ["in/a.png", "b.png", "in/missing.png"]
    assert [file.stem for file in files] == ["a", "b", "missing"]


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["a.png", "a.jpg"], ["a.jpg", "a.png"]),
        (["a.png", "A.png"], None),
        (["a.png", "a.jpg", "a.jpg.png"], None),
        (["s/a.png", "t/a.png"], ["s/a", "t/a"]),
        (["a.b.png", "a.c.png"], ["a.b", "a.c"]),
    ],
)
def test_names_in_a_folder_are_unique(
    tree: Callable[..., Path], names: list[str], expected: list[str] | None
) -> None:
    found = stems(tree(*names))
    assert len({stem.casefold() for stem in found}) == len(names)
    assert expected is None or found == expected


def test_names_of_single_files_are_unique(tree: Callable[..., Path]) -> None:
    tree("s/x/a.png", "t/x/a.png", "s/b.png", "t/b.png", "c.png")
    assert stems("s/x/a.png", "t/x/a.png", "s/b.png", "t/b.png", "c.png") == [
        *("s/x/a.png", "t/x/a.png", "s/b.png", "t/b.png", "c")
    ]
    assert stems("s", "t") == ["s/b.png", "s/x/a.png", "t/b.png", "t/x/a.png"]


def test_paths_that_differ_in_case_only(tree: Callable[..., Path]) -> None:
    root = tree("d/a.png", "D/A.png")
    if len(list(root.iterdir())) == 1:
        pytest.skip("case does not count in this file system")
    found = stems("d/a.png", "D/A.png")
    assert len({stem.casefold() for stem in found}) == 2


def test_the_folder_for_outputs_is_no_input(tree: Callable[..., Path]) -> None:
    root = tree("a.png", "out/a_overlay.png", "in/b.png")
    assert stems(".", skip=Path("out")) == ["a", "in/b"]
    assert stems("out", skip=root / "out") == ["a_overlay"]
    assert stems("**/*.png", "*/*.png", skip=Path("out")) == ["a", "in/b"]
    assert stems("out/*.png", "in/../out/a*.png", skip=root / "out") == ["a_overlay"]


def test_outputs_among_the_images_are_no_inputs(tree: Callable[..., Path]) -> None:
    def outputs(stem: str) -> list[Path]:
        return [Path("in", f"{stem}_{end}.png") for end in ("labels", "overlay")]

    root = tree("in/a.jpg", "in/sub/b.png", "in/other_labels.png")
    for _ in range(3):
        for source in ("in", "in/**/*", root / "in"):
            files = find_images([source], outputs=outputs)
            assert [file.stem for file in files] == ["a", "other_labels", "sub/b"]
        for file in files:
            tree(*map(str, outputs(file.stem)))
    with pytest.raises(UsageError, match=r"a_labels\.png: results of another image may go there"):
        find_images(["in/a.jpg", "in/a_labels.png"], outputs=outputs)
    assert stems("in/a_labels.png", outputs=outputs) == ["a_labels"]

    tree("in/a_labels.jpg")  # has the name that an output of another image has but for its ending
    for _ in range(3):
        files = find_images(["in"], outputs=outputs)
        assert [file.stem for file in files] == ["a", "a_labels", "other_labels", "sub/b"]
        for file in files:
            tree(*map(str, outputs(file.stem)))


def test_home_folders(tree: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree("home/a.png", "~b.png", "~/c.png")
    monkeypatch.setenv("HOME", str(root / "home"))
    monkeypatch.setenv("USERPROFILE", str(root / "home"))
    assert [file.path for file in find_images(["~/a.png", "~b.png", "~/c.png"])] == [
        *(root / "home" / "a.png", Path("~b.png"), Path("~/c.png"))
    ]
    (root / "list.txt").write_text("~/a.png\n~b.png\n~no-such-user/x.png\n")
    assert [file.path for file in find_images([root / "list.txt"])] == [
        *(root / "home" / "a.png", root / "~b.png", root / "~no-such-user/x.png")
    ]


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("nope.png", "no such file"),
        ("empty", "no image in this folder"),
        ("nope/*.png", "no image matches"),
        ("empty.txt", "no path in this list"),
        ("binary.txt", "cannot be read as a list"),
        ("~no-such-user/x.png", "no such file"),
        ("x" * 300 + ".png", "name too long"),
        ("x" * 300 + "*.png", "no image matches|name too long"),
    ],
)
def test_sources_that_give_nothing(tree: Callable[..., Path], source: str, reason: str) -> None:
    root = tree("empty/readme.md", "empty.txt")
    (root / "binary.txt").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(UsageError, match=reason) as caught:
        find_images([source])
    assert source in str(caught.value)


def test_a_folder_that_cannot_be_searched(
    tree: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tree("in/sub/a.png")
    scandir = os.scandir

    def refuse(path: str) -> object:
        if str(path).endswith("sub"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(UsageError, match="sub: cannot be searched: Permission denied"):
        find_images([root])


def test_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.bin"
    with write_whole(path) as file:
        file.write(b"first")
        assert not path.exists()
    for error in (ValueError, KeyboardInterrupt):
        with suppress(error), write_whole(path) as file:
            file.write(b"second")
            raise error
    assert path.read_bytes() == b"first"
    assert list(path.parent.iterdir()) == [path]
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
