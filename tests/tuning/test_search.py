"""The search with an evaluator that knows all plans: what it costs and gains is arithmetic."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from segformerpp.benchmark.gains import Gain
from segformerpp.errors import ImageError, UsageError
from segformerpp.plans import PRESETS, MergePlan
from segformerpp.plans.documented import AGREEMENT
from segformerpp.tuning.assess import Judged, judge
from segformerpp.tuning.kinds import Labels
from segformerpp.tuning.quality import Budget, Quality
from segformerpp.tuning.search import best, best_preset, judged, leaders, open_study, search

BUDGET = Budget(min_agreement=98)
NONE = MergePlan()


class Fake:
    """Plans that keep `kept` % of the labels, surely, and are so many times as fast."""

    def __init__(self, images: int = 20, error: float = 0.0) -> None:
        self.images, self.error = images, error
        self.scales: tuple[float, ...] = Labels.scales
        self.opened: list[MergePlan] = []
        self.scored: dict[MergePlan, int] = {}
        self.kept, self.speed = dict[MergePlan, float](), dict[MergePlan, float]()

    def macs(self, plan: MergePlan) -> int:
        return 100 - sum(bool(s.q) + bool(s.kv) for s in plan.stages) - (plan.input_scale < 1)

    def open(self, plan: MergePlan) -> "FakeOpened":
        self.opened.append(plan)
        return FakeOpened(self, plan)


class FakeOpened:
    def __init__(self, fake: Fake, plan: MergePlan) -> None:
        self.fake, self.plan = fake, plan

    def score(self, images: int) -> Quality:
        self.fake.scored[self.plan] = images
        name = self.plan.name
        kept = self.fake.kept.get(self.plan, AGREEMENT.get(name, 99.0))
        return Quality(images, kept, self.fake.error)

    def gain(self, decided: Callable[[Gain], bool]) -> Gain:
        speed = self.fake.speed.get(self.plan, 1 + (100 - self.fake.macs(self.plan)) / 10)
        return Gain((speed,) * 5)


def plan(text: str) -> MergePlan:
    return MergePlan.parse(text)


def test_what_is_clearly_over_is_given_up_early() -> None:
    fake = Fake()
    found = judge(fake, PRESETS["fast"], BUDGET, 0)
    assert (found.outcome, fake.scored[PRESETS["fast"]]) == ("over", 10)
    assert found.value == pytest.approx(-(100 - AGREEMENT["fast"] - 2) / 2)
    # What may be within is looked at to the end, and then must be within with a margin.
    fake = Fake(error=0.4)
    fake.kept[PRESETS["hq"]] = 98.2
    found = judge(fake, PRESETS["hq"], BUDGET, 0)
    assert (found.outcome, fake.scored[PRESETS["hq"]]) == ("over", 20)
    assert found.overshoot == pytest.approx(0.1)


def test_within_slower_and_not_even_run() -> None:
    fake = Fake()
    balanced = PRESETS["balanced"]
    within = judge(fake, balanced, BUDGET, 1.2)
    assert within.outcome == "within"
    assert within.value == pytest.approx(1.6)
    assert judge(fake, balanced, BUDGET, 2).outcome == "slower"
    fake.macs = lambda plan: 5  # type: ignore[method-assign]
    fake.opened.clear()
    assert judge(fake, balanced, BUDGET, 0) == Judged(balanced, "arithmetic")
    assert not fake.opened
    assert judge(fake, NONE, BUDGET, 0).outcome == "within"


def test_what_does_not_run_is_no_end_of_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Fake()

    def fail(self: FakeOpened, images: int) -> Quality:
        raise ImageError("too large for the memory")

    monkeypatch.setattr(FakeOpened, "score", fail)
    found = judge(fake, PRESETS["hq"], BUDGET, 0)
    assert (found.outcome, found.value) == ("refused", None)


def test_few_images() -> None:
    assert judge(Fake(images=3), PRESETS["fast"], BUDGET, 0).outcome == "over"
    assert judge(Fake(images=3), PRESETS["balanced"], BUDGET, 0).outcome == "within"


def test_what_is_known_of_a_plan_is_kept() -> None:
    found = judge(Fake(), PRESETS["balanced"], BUDGET, 0)
    for one in (found, Judged(NONE, "refused")):
        assert Judged.from_dict(json.loads(json.dumps(one.to_dict()))) == one


def test_search_and_going_on(tmp_path: Path) -> None:
    file, settings = tmp_path / "x.study", {"model": "m", "images": ["a"]}
    fake, seen = Fake(), list[tuple[Judged, Judged | None]]()

    def go_on(trials: int) -> None:
        study = open_study(file, settings)
        search(study, fake, BUDGET, trials, math.inf, lambda *both: seen.append(both))

    def interrupt(*both: object) -> None:
        if len(fake.opened) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(open_study(file, settings), fake, BUDGET, 9, math.inf, interrupt)
    go_on(len(PRESETS))
    tried = [j.plan for j in judged(open_study(file, settings))]
    assert set(tried) == set(PRESETS.values())
    go_on(20)
    found = judged(open_study(file, settings))
    assert len(found) == len({j.plan for j in found}) == 20
    # Only what was under way when it was interrupted is judged again.
    assert len(fake.opened) <= 21
    winner, preset = best(found), best_preset(found)
    assert winner is not None
    assert preset is not None
    assert winner.gain is not None
    assert preset.gain is not None
    assert preset.plan.name in ("balanced", "turbo")
    assert winner.gain.value >= preset.gain.value
    assert seen[-1][1] == winner == leaders(found, 3)[0]
    with pytest.raises(UsageError, match=r"images was \['a'\], and is \['b'\] now"):
        open_study(file, {**settings, "images": ["b"]})


def test_time_ends_it_after_the_presets(tmp_path: Path) -> None:
    study = open_study(tmp_path / "x.study", {})
    search(study, Fake(), BUDGET, None, 0, lambda *both: None)
    assert len(judged(study)) == len(PRESETS)


def test_no_study(tmp_path: Path) -> None:
    file = tmp_path / "x.study"
    for text in ("no study\n", "[]\n", '{"a": 1}\n', "7"):
        file.write_text(text)
        with pytest.raises(UsageError, match="is no study of merge plans"):
            open_study(file, {})
        assert file.read_text() == text


def test_a_folder_for_studies_is_made(tmp_path: Path) -> None:
    file = tmp_path / "new" / "x.study"
    open_study(file, {})
    assert file.is_file()
    file.write_text("")
    open_study(file, {})
