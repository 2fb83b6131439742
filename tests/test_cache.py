import json
import logging
import multiprocessing
import os
import time
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from segformerpp import cache, cli
from segformerpp.errors import UsageError


@pytest.fixture(autouse=True)
def where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SEGFORMERPP_CACHE", str(tmp_path / "kept"))
    monkeypatch.setattr(cache, "_warned", set())
    return tmp_path / "kept"


class Maker:
    """Makes bytes and counts how often."""

    def __init__(self, data: bytes = b"data") -> None:
        self.data, self.calls = data, 0

    def __call__(self) -> bytes:
        self.calls += 1
        return self.data


def test_made_once_for_each_key() -> None:
    make = Maker()
    assert [cache.fetch("thing", {"a": 1}, make) for _ in range(3)] == [b"data"] * 3
    assert make.calls == 1
    cache.fetch("thing", {"a": 2}, make)
    cache.fetch("other", {"a": 1}, make)
    assert make.calls == 3
    assert sorted((e.kind, e.key["a"]) for e in cache.entries()) == [
        *(("other", 1), ("thing", 1), ("thing", 2))
    ]


@pytest.mark.parametrize("damage", [b"", b"{", b"garbage\n", b"[]\n", b'{"key": 1}\n', None])
def test_a_broken_entry_is_made_again(where: Path, damage: bytes | None) -> None:
    make = Maker(b"x" * 100)
    cache.fetch("thing", {}, make)
    (entry,) = where.glob("*.entry")
    whole = entry.read_bytes()
    entry.write_bytes(whole[:-7] + b"flipped" if damage is None else damage)
    assert len(cache.entries()) == (damage is None)
    assert cache.fetch("thing", {}, make) == b"x" * 100
    assert make.calls == 2
    assert entry.read_bytes() == whole


def test_an_entry_that_cannot_be_used_is_made_again() -> None:
    cache.fetch("thing", {}, Maker(b"one"))

    def usable(data: bytes) -> str:
        if data == b"one":
            raise RuntimeError("of another version")
        return data.decode()

    assert cache.fetch("thing", {}, Maker(b"two"), usable) == "two"
    assert cache.fetch("thing", {}, Maker(b"three"), usable) == "two"


def test_an_error_while_making_leaves_nothing(where: Path) -> None:
    def fail() -> bytes:
        raise UsageError("no")

    with pytest.raises(UsageError, match="no"):
        cache.fetch("thing", {}, fail)
    assert list(where.glob("*.entry")) == []
    assert cache.fetch("thing", {}, Maker()) == b"data"


def _fetch_together(log: str, here: Any) -> None:
    def make() -> bytes:
        with Path(log).open("a") as file:
            file.write("made\n")
        time.sleep(0.3)  # the others ask meanwhile
        return b"data"

    here.wait()
    assert cache.fetch("thing", {}, make) == b"data"


def test_of_several_processes_one_makes_it(tmp_path: Path) -> None:
    context, log = multiprocessing.get_context("spawn"), str(tmp_path / "log")
    here = context.Barrier(3)
    processes = [context.Process(target=_fetch_together, args=(log, here)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert Path(log).read_text() == "made\n"


def test_waiting_for_too_long(where: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache.fetch("thing", {}, Maker())
    (path,) = where.glob("*.entry")
    path.unlink()
    with (
        FileLock(path.with_suffix(".lock"), thread_local=False),
        caplog.at_level(logging.WARNING, "segformerpp"),
    ):
        assert cache.fetch("thing", {}, Maker(), patience=0.05) == b"data"
    assert "another process has been making the same for long" in caplog.text
    assert list(where.glob("*.entry")) == []


def test_a_disk_that_knows_no_locks(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Older versions of filelock say so in this way."""

    def acquire(self: FileLock) -> None:
        raise NotImplementedError("FileSystem does not appear to support flock")

    monkeypatch.setattr(FileLock, "acquire", acquire)
    with caplog.at_level(logging.WARNING, "segformerpp"):
        assert cache.fetch("thing", {}, Maker()) == b"data"
    assert "nothing can be kept in" in caplog.text


def test_a_bad_limit_is_said_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGFORMERPP_CACHE_LIMIT", "lots")
    make = Maker()
    with pytest.raises(UsageError, match="SEGFORMERPP_CACHE_LIMIT"):
        cache.fetch("thing", {}, make)
    assert make.calls == 0


def test_what_killed_processes_left_goes_after_a_day(where: Path) -> None:
    where.mkdir(parents=True, exist_ok=True)
    old, new = where / "old.tmp", where / "new.tmp"
    for path in (old, new):
        path.write_bytes(b"x")
    os.utime(old, (1000, 1000))
    cache.fetch("thing", {}, Maker())
    assert not old.exists()
    assert new.exists()


def test_code_version_is_a_hash() -> None:
    versions = {cache.code_version(name) for name in ("runtimes/graph", "checkpoints")}
    assert len(versions) == 2
    assert all(len(version) == 16 and int(version, 16) > 0 for version in versions)


def test_code_version_changes_with_all_code_below(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "cache.py"))
    found = set()
    for text in ("a", "b"):
        (tmp_path / "room" / "below").mkdir(parents=True, exist_ok=True)
        (tmp_path / "room" / "below" / "code.py").write_text(text)
        found.add(cache.code_version.__wrapped__("room"))
    assert len(found) == 2


def test_without_a_home(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unknown(*_: object) -> None:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("SEGFORMERPP_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "expanduser", unknown)
    assert cache.folder() is None
    assert cache.fetch("thing", {}, Maker()) == b"data"
    assert cli.main(["cache"]) == 0
    assert "there is no home folder" in capsys.readouterr().out


def test_the_home_of_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGFORMERPP_CACHE", "~no-such-user/kept")
    with pytest.raises(UsageError, match="SEGFORMERPP_CACHE: ~no-such-user/kept: there is no"):
        cache.folder()


def test_plans_of_another_version_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    stage = {"q": {"mode": "of-the-future"}, "kv": None}
    cache.fetch("network", {"model": "mine", "merge": {"stages": [stage] * 4}}, Maker())
    assert cli.main(["cache"]) == 0
    out = capsys.readouterr().out
    assert "mine" in out
    assert "1 entries" in out


def test_what_was_not_used_for_long_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGFORMERPP_CACHE_LIMIT", "1M")
    third = Maker(b"x" * 400_000)
    for age, name in enumerate(("a", "b")):
        cache.fetch("thing", {"name": name}, third)
        (path,) = [e.path for e in cache.entries() if e.key["name"] == name]
        os.utime(path, (1000 + age, 1000 + age))
    cache.fetch("thing", {"name": "a"}, third)  # used again
    cache.fetch("thing", {"name": "c"}, third)
    assert {e.key["name"] for e in cache.entries()} == {"a", "c"}
    # What is larger than everything allowed is still kept until something newer comes.
    cache.fetch("thing", {"name": "huge"}, Maker(b"x" * 2_000_000))
    assert {e.key["name"] for e in cache.entries()} == {"huge"}


@pytest.mark.parametrize("text", ["5", "G", "x2G", "-1M", "1.5G"])
def test_a_limit_that_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGFORMERPP_CACHE_LIMIT", text)
    with pytest.raises(UsageError, match="SEGFORMERPP_CACHE_LIMIT: a size such as 500M"):
        cache.limit()


def test_off_keeps_nothing(where: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGFORMERPP_CACHE", "off")
    make = Maker()
    assert [cache.fetch("thing", {}, make) for _ in range(2)] == [b"data"] * 2
    assert make.calls == 2
    assert cache.entries() == []
    assert cache.clear() == 0
    assert not where.exists()


def test_a_folder_that_cannot_be_written_is_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("SEGFORMERPP_CACHE", str(tmp_path / "file" / "below"))
    with caplog.at_level(logging.WARNING, "segformerpp"):
        assert [cache.fetch("thing", {}, Maker()) for _ in range(3)] == [b"data"] * 3
    assert len(caplog.records) == 1
    assert "set SEGFORMERPP_CACHE to another folder, or to off" in caplog.text


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    merge = {"version": 1, "stages": [None] * 4}
    key = {"model": "m", "shape": [1, 3, 64, 96], "merge": merge, "runtime": "openvino"}
    cache.fetch("network", {**key, "precision": "f32"}, Maker(b"x" * 2_000_000))
    report = tmp_path / "report.json"
    assert cli.main(["cache", "--json", str(report)]) == 0
    said = capsys.readouterr().out
    assert "64x96" in said
    assert "1 entries, 2.0 MB of at most 4295.0" in said
    (row,) = json.loads(report.read_text())
    assert (row["model"], row["merge"], row["size"]) == ("m", "none", "64x96")
    assert cli.main(["cache", "--clear"]) == 0
    assert "2.0 MB removed" in capsys.readouterr().out
    assert cache.entries() == []
