import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformerpp.plans import PRESETS, MergePlan
from segformerpp.tuning.kinds import Keypoints, Labels
from segformerpp.tuning.space import choices, neighbour, presets, suggest

SCALES = Labels.scales


class Drawing:
    """Makes every choice as hypothesis has it, and notes it."""

    def __init__(self, data: st.DataObject) -> None:
        self.data, self.made = data, dict[str, Any]()

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        assert name not in self.made
        self.made[name] = self.data.draw(st.sampled_from(choices))
        return self.made[name]

    def suggest_float(self, name: str, low: float, high: float, *, step: float) -> float:
        steps = self.data.draw(st.integers(0, round((high - low) / step)))
        self.made[name] = low + steps * step
        return self.made[name]


@given(st.data())
def test_whatever_is_chosen_is_a_plan(data: st.DataObject) -> None:
    ask = Drawing(data)
    plan = suggest(ask, SCALES)
    assert MergePlan.from_dict(plan.to_dict()) == plan
    assert MergePlan.parse(plan.name) == plan
    told = choices(plan, SCALES)
    assert told is not None
    assert told == pytest.approx(ask.made)


@given(st.sampled_from([*PRESETS.values()]), st.integers(0, 10**6))
def test_neighbours_differ_in_one_thing(plan: MergePlan, seed: int) -> None:
    other = neighbour(plan, random.Random(seed), SCALES)
    assert choices(other, SCALES) is not None
    pairs = zip(plan.stages, other.stages, strict=True)
    changed = [(a.q != b.q) + (a.kv != b.kv) for a, b in pairs]
    assert sum(changed) + (plan.input_scale != other.input_scale) <= 1


def test_the_space_has_all_presets() -> None:
    assert presets(SCALES) == [*PRESETS.values()]
    assert presets(Keypoints.scales) == [p for p in PRESETS.values() if p.input_scale == 1]


@pytest.mark.parametrize("text", ["q1:mode=n1d,s=2", "q1:mode=n2d,sx=3,sy=3", "input_scale=0.9"])
def test_and_not_everything(text: str) -> None:
    assert choices(MergePlan.parse(text), SCALES) is None
