"""What a search found, for people: a page of Markdown, a picture, and rows of figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from segformerpp.benchmark.gains import Gain
from segformerpp.merging import PRESETS, MergePlan
from segformerpp.tuning.assess import Judged
from segformerpp.tuning.quality import Budget, Quality
from segformerpp.tuning.search import leaders

_SHOWN = 8
_OUTCOMES = {
    "within": "within the budget",
    "slower": "within the budget, and surely slower than the best one by then",
    "over": "over the budget",
    "arithmetic": "not run: no less arithmetic than none",
    "refused": "do not run here",
}


@dataclass(frozen=True, slots=True)
class Checked:
    """A plan on the images that the search has not seen."""

    plan: MergePlan
    quality: Quality
    gain: Gain


@dataclass(frozen=True, slots=True)
class Outcome:
    """Everything about a search.

    Args:
        chosen: the plan.
        judged: all plans that were tried.
        budget: what a plan may cost.
        checked: the chosen plan and the best preset on held-out images; empty if interrupted.
        facts: model, data, runtime and the like, and the machine, versions and date.
    """

    chosen: MergePlan
    judged: Sequence[Judged]
    budget: Budget
    checked: Sequence[Checked]
    facts: Mapping[str, Any]

    @property
    def keeps_budget(self) -> bool:
        """Whether the chosen plan is within the budget on held-out images, or that is unknown."""
        return not self.checked or self.budget.overshoot(self.checked[0].quality, 0) <= 0

    def verdict(self) -> str:
        """What the plan is worth, in a line."""
        if not self.checked:
            return "interrupted before it was checked on held-out images"
        found = self.checked[0]
        text = f"on {found.quality.images} held-out images {_quality(found.quality)}, "
        text += f"{found.gain} times as fast as none"
        return text if self.keeps_budget else text + "; that is OVER the budget"


def plan_file(outcome: Outcome) -> str:
    """The plan as YAML, with what it is for as comments."""
    facts = outcome.facts
    lines = [
        f"segformerpp tune: for {facts['model']}, {facts['data']}, size {facts['size']},",
        f"{facts['runtime']} {facts['precision']} on {facts['processor']}; {facts['date']}",
        f"budget: {outcome.budget}",
        outcome.verdict(),
    ]
    return "".join(f"# {line}\n" for line in lines) + outcome.chosen.to_yaml()


def rows(outcome: Outcome) -> list[dict[str, Any]]:
    """A row for each plan that was tried, then one for each that was checked."""
    found = [
        _row(j.plan, j.quality, j.gain) | {"images_of": "search", "outcome": j.outcome}
        for j in outcome.judged
    ]
    found += [
        _row(c.plan, c.quality, c.gain) | {"images_of": "check", "outcome": "checked"}
        for c in outcome.checked
    ]
    return [
        {**outcome.facts, **row, "chosen": row["merge"] == outcome.chosen.name} for row in found
    ]


def _row(plan: MergePlan, quality: Quality | None, gain: Gain | None) -> dict[str, Any]:
    row: dict[str, Any] = {"merge": plan.name}
    if quality:
        row |= {k: v if v is None else round(v, 3) for k, v in quality.to_dict().items()}
    row["speed_up"] = gain and round(gain.value, 3)
    row["uncertainty"] = gain and round(gain.uncertainty, 3)
    return row


def markdown(outcome: Outcome, picture: str | None) -> str:
    """The report.

    Args:
        outcome: of the search.
        picture: the file of `plot`, relative to the report; None without one.
    """
    facts, plan = outcome.facts, outcome.chosen
    counts = Counter(j.outcome for j in outcome.judged)
    parts = [
        f"# A merge plan for {facts['model']} on {facts['data']}",
        f"Budget: {outcome.budget}. Chosen: `{plan.name}`",
        f"In short: {outcome.verdict()}.",
        f"```yaml\n{plan.to_yaml()}```",
        "## On images that the search has not seen",
        _table(
            [
                (c.plan, c.quality, c.gain, "chosen" if c.plan == plan else "the best preset")
                for c in outcome.checked
            ]
        )
        if outcome.checked
        else "Not checked: the search was interrupted.",
        "## In the search",
        f"{len(outcome.judged)} plans were tried: "
        + "; ".join(f"{counts[key]} {text}" for key, text in _OUTCOMES.items() if counts[key])
        + ". A plan counts as within the budget with a margin of one standard error. The fastest "
        "ones within, and all presets:",
        _table([(j.plan, j.quality, j.gain, _OUTCOMES[j.outcome]) for j in _shown(outcome)]),
    ]
    if picture:
        parts.append(f"![what each plan costs and gains]({picture})")
    parts += [
        "Speed-ups are over `none`, in turns in the same process, of the network alone; ± is how "
        "far the median may be off. Qualities are over the images in brackets: fewer where a plan "
        "was given up early; ± is a standard error.",
        "## Made with",
        "\n".join(f"- {key}: {value}" for key, value in facts.items() if key != "versions"),
        ", ".join(f"{name} {version}" for name, version in facts["versions"].items()),
    ]
    return "\n\n".join(parts) + "\n"


def _shown(outcome: Outcome) -> list[Judged]:
    first = leaders(outcome.judged, _SHOWN)
    presets = set(PRESETS.values())
    return first + [j for j in outcome.judged if j.plan in presets and j not in first]


def _table(found: Sequence[tuple[MergePlan, Quality | None, Gain | None, str]]) -> str:
    lines = ["| plan | cost | times as fast as `none` | |", "| --- | --- | --- | --- |"]
    for plan, quality, gain, note in found:
        cost = f"{_quality(quality)} ({quality.images})" if quality else ""
        lines.append(f"| `{plan.name}` | {cost} | {gain or ''} | {note} |")
    return "\n".join(lines)


def _quality(found: Quality) -> str:
    text = f"{found.agreement:.2f} ± {found.agreement_error:.2f} % of the labels kept"
    if found.drop is not None:
        text += f", {found.drop:.2f} ± {found.drop_error:.2f} points of mIoU lost"
    return text


def plot(outcome: Outcome, file: BinaryIO, form: str) -> None:
    """Draw speed-up over cost for every plan that was timed, the budget, and the front.

    Args:
        outcome: of the search.
        file: where to.
        form: such as ``png``.
    """
    from matplotlib.figure import Figure

    by_drop = outcome.budget.max_drop is not None
    limit = outcome.budget.max_drop if by_drop else 100 - (outcome.budget.min_agreement or 0)

    def cost(found: Quality) -> float:
        return (found.drop or 0.0) if by_drop else 100 - found.agreement

    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    timed = [(cost(j.quality), j.gain.value, j) for j in outcome.judged if j.quality and j.gain]
    names = {plan: name for name, plan in PRESETS.items()}
    for x, y, j in timed:
        preset = j.plan in names
        axis.plot(x, y, "o", color="tab:red" if preset else "tab:blue", alpha=0.7, zorder=2)
        if preset and j.plan != outcome.chosen:
            axis.annotate(
                *(names[j.plan], (x, y), (5, -10)),
                textcoords="offset points",
                fontsize=9,
                color="tab:red",
            )
        if j.plan == outcome.chosen:
            axis.plot(x, y, "*", color="tab:green", markersize=18, zorder=3)
            axis.annotate(
                *("chosen", (x, y), (8, 6)),
                textcoords="offset points",
                fontsize=11,
                color="tab:green",
                weight="bold",
            )
    front, fastest = [], 0.0
    for x, y, _ in sorted(timed, key=lambda point: (point[0], -point[1])):
        if y > fastest:
            front.append((x, y))
            fastest = y
    line = [x for x, _ in front], [y for _, y in front]
    axis.plot(*line, "-", color="0.75", zorder=1, label="best for its cost")
    axis.axvline(limit or 0, color="0.3", linestyle="--", label="budget")
    axis.plot([], [], "o", color="tab:red", label="presets")
    axis.plot([], [], "o", color="tab:blue", label="plans that were searched")
    axis.legend(fontsize=9)
    axis.set_xlabel("points of mIoU lost" if by_drop else "labels that change, %")
    axis.set_ylabel("times as fast as none")
    facts = outcome.facts
    title = f"{facts['model']} on {facts['data']}: {facts['runtime']} {facts['precision']}"
    axis.set_title(f"{title}, {facts['date']}", fontsize=10)
    axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, format=form, dpi=130)


def default_picture(report: Path) -> Path | None:
    """Where the picture of a report goes; None where matplotlib is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return None
    return report.with_suffix(".png")
