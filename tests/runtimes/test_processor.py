import os

import pytest

from segformerpp.runtimes.processor import code_version, cores


def test_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cores() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert 1 <= cores() <= (os.cpu_count() or 1)


def test_code_version_is_a_hash() -> None:
    assert len(code_version()) == 16
    assert int(code_version(), 16) > 0
