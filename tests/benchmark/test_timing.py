import pytest

from segformerpp.benchmark.timing import Interrupted, Timing, interleave


def test_median_and_p95_of_known_rounds():
    timing = Timing(((1.0, 3.0, 2.0), (4.0, 4.0, 4.0), (3.0, 3.0, 9.0)))
    assert timing.median == 3.0  # of 2, 4 and 3
    assert timing.p95 == pytest.approx(7.0, abs=0.1)


def test_what_is_uncertain_is_meaningless():
    steady = Timing(tuple((1 + 0.001 * i,) for i in range(9)))
    wild = Timing(tuple((1 + 0.1 * i,) for i in range(9)))
    assert not steady.meaningless
    assert wild.uncertainty == pytest.approx(1.57 * 0.4 / 3 / 1.4)
    assert wild.meaningless


def test_two_rounds_say_nothing():
    assert Timing(((1.0,), (1.0,))).meaningless


def test_each_round_gives_everyone_a_turn_in_changing_order():
    turns: list[str] = []

    def candidate(name):
        def run():
            turns.append(name)
            return [1.0]

        return run

    timings = interleave({name: candidate(name) for name in "abc"}, rounds=6)
    rounds = ["".join(turns[i : i + 3]) for i in range(0, 18, 3)]
    assert all(sorted(turn) == ["a", "b", "c"] for turn in rounds)
    assert len(set(rounds)) > 1
    assert list(timings) == ["a", "b", "c"]
    assert timings["a"].rounds == ((1.0,),) * 6


def test_interrupt_keeps_the_whole_rounds():
    left = iter([[1.0]] * 3)

    def impatient():
        for seconds in left:
            return seconds
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as caught:
        interleave({"a": lambda: [2.0], "b": impatient}, rounds=9)
    assert isinstance(caught.value, Interrupted)
    assert caught.value.timings["a"].rounds == ((2.0,),) * 3
    with pytest.raises(Interrupted) as caught:
        interleave({"b": impatient}, rounds=9)
    assert caught.value.timings == {}
