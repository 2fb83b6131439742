import os

import pytest

from segformerpp.runtimes.processor import cores


def test_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert cores() == 3
    monkeypatch.setenv("OMP_NUM_THREADS", "many")
    assert 1 <= cores() <= (os.cpu_count() or 1)
