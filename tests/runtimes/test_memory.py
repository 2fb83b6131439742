import pytest

from segformerpp.runtimes import memory
from segformerpp.runtimes.memory import KeptNetworks


def test_networks_are_kept_while_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "_KEPT_BYTES", 10 * 100)
    monkeypatch.setattr(memory, "_KEPT", 4)
    made = []

    def make(shape: tuple[int, ...], kind: str = "f32") -> str:
        made.append((shape[3], kind))
        return f"{shape[3]} {kind}"

    kept = KeptNetworks(make, bytes_each=10)

    def ask(width: int, *more: str) -> list[tuple[int, str]]:
        made.clear()
        expected = f"{width} {' '.join(more) or 'f32'}"
        assert kept((1, 3, 1, width), *more) == expected
        return list(made)

    assert ask(30) == [(30, "f32")]
    assert ask(30) == []
    assert ask(30, "bf16") == [(30, "bf16")]
    assert ask(40) == [(40, "f32")]  # 100 pixels in all
    assert ask(30) == []
    assert ask(20) == [(20, "f32")]  # instead of bf16, whose last use is longest ago
    assert (ask(30), ask(40), ask(20)) == ([], [], [])
    assert ask(30, "bf16") == [(30, "bf16")]  # instead of 30
    assert ask(500) == [(500, "f32")]  # alone
    assert ask(500) == []
    assert [ask(n) for n in (1, 2, 3, 4)] == [[(n, "f32")] for n in (1, 2, 3, 4)]
    assert ask(5) == [(5, "f32")]  # the fifth, instead of the first
    assert (ask(2), ask(1)) == ([], [(1, "f32")])
    kept.clear()
    assert ask(2) == [(2, "f32")]
