import json
from pathlib import Path
from typing import Any

import pytest

from segformerpp.data.outputs import check_writable_file, write_rows
from segformerpp.errors import UsageError


def test_whether_a_file_can_be_written(tmp_path: Path) -> None:
    (tmp_path / "a-file").write_text("kept")
    check_writable_file("json", tmp_path / "new" / "x.json")
    check_writable_file("json", tmp_path / "a-file")
    assert [path.name for path in tmp_path.iterdir()] == ["a-file"]
    assert (tmp_path / "a-file").read_text() == "kept"
    with pytest.raises(UsageError, match=r"^json: .* is a folder, not a file$"):
        check_writable_file("json", tmp_path)
    with pytest.raises(UsageError, match=r"^json: cannot write to .*a-file: Not a directory$"):
        check_writable_file("json", tmp_path / "a-file" / "x.json")


def test_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Shells leave it as it is in ``--json=~/x.json``."""
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("USERPROFILE", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=r"^json: .*home is a folder, not a file$"):
        check_writable_file("json", "~")
    write_rows("~/x.json", [{"miou": 1}])
    assert [path.name for path in tmp_path.rglob("*")] == ["home", "x.json"]


def test_rows(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "x.json"
    rows: list[dict[str, Any]] = [{"miou": 1.5, "name": "ä"}, {"miou": None}]
    write_rows(path, rows)
    assert json.loads(path.read_text()) == rows
    with pytest.raises(TypeError):
        write_rows(path, [{"set": {1}}])
    assert json.loads(path.read_text()) == rows
    assert list(path.parent.iterdir()) == [path]
