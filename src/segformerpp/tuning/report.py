"""What a search found, for people: a page of Markdown, a picture, and rows of figures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from segformerpp.benchmark.gains import Gain
from segformerpp.plans import PRESETS, MergePlan
from segformerpp.tuning.assess import Judged
from segformerpp.tuning.quality import Budget, Quality, Words
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
    """A plan on the images that the search has not seen.

    Args:
        plan: the plan.
        precision: that it computed in; `none`, which it is compared to, in that of the search.
        quality: what it costs; None where it does not run.
        gain: times as fast as `none`; None where it does not run.
        refused: why it does not run.
    """

    plan: MergePlan
    precision: str
    quality: Quality | None = None
    gain: Gain | None = None
    refused: str = ""


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything about a search.

    Args:
        chosen: the plan.
        judged: all plans that were tried.
        budget: what a plan may cost.
        checked: on held-out images, the chosen plan and the best preset, and the chosen plan in
            other precisions.
        unchecked: why that is missing, if it is.
        facts: model, data, runtime and the like, and the machine, versions and date.
    """

    chosen: MergePlan
    judged: Sequence[Judged]
    budget: Budget
    checked: Sequence[Checked]
    unchecked: str
    facts: Mapping[str, Any]

    @property
    def winner(self) -> Checked | None:
        """The chosen plan in the precision that is the fastest within the budget."""
        own = [c for c in self.checked if c.plan == self.chosen and c.gain]
        within = [c for c in own if self._within(c)]
        return max(
            within, key=lambda c: c.gain.value if c.gain else 0, default=own[0] if own else None
        )

    @property
    def precision(self) -> str:
        """That the chosen plan is best used in."""
        return self.winner.precision if self.winner else str(self.facts["precision"])

    @property
    def keeps_budget(self) -> bool:
        """Whether the chosen plan is within the budget on held-out images, or that is unknown."""
        return self.winner is None or self._within(self.winner)

    def _within(self, checked: Checked) -> bool:
        return checked.quality is not None and self.budget.overshoot(checked.quality, 0) <= 0

    def verdict(self) -> str:
        """What the plan is worth, in a line."""
        found = self.winner
        if found is None or found.quality is None:
            return self.unchecked
        words = self.budget.words
        text = f"on {found.quality.images} held-out images {_quality(found.quality, words)}, "
        text += f"{found.gain} times as fast as none"
        if found.precision != self.facts["precision"]:
            text += f" in {self.facts['precision']}"
        return text if self.keeps_budget else text + "; that is OVER the budget"


def plan_file(findings: Findings) -> str:
    """The plan as YAML, with what it is for as comments."""
    facts = findings.facts
    lines = [
        f"segformerpp tune: for {facts['model']}, {facts['data']}, size {facts['size']},",
        f"--runtime {facts['runtime']} --precision {findings.precision}",
        f"on {facts['processor']}; {facts['date']}",
        f"budget: {findings.budget}"
        + (f", with noise of {facts['noise']:g}" if facts["noise"] else ""),
        findings.verdict(),
    ]
    return "".join(f"# {line}\n" for line in lines) + findings.chosen.to_yaml()


def rows(findings: Findings) -> list[dict[str, Any]]:
    """A row for each plan that was tried, then one for each that was checked."""
    key, searched_in = findings.budget.words.key, findings.facts["precision"]
    found = [
        _row(j.plan, j.quality, j.gain, key)
        | {"images_of": "search", "outcome": j.outcome, "precision": searched_in}
        for j in findings.judged
    ]
    found += [
        _row(c.plan, c.quality, c.gain, key)
        | {
            "images_of": "check",
            "outcome": "refused" if c.refused else "checked",
            "precision": c.precision,
        }
        for c in findings.checked
    ]
    return [
        {**findings.facts, **row, "chosen": row["merge"] == findings.chosen.name} for row in found
    ]


def _row(plan: MergePlan, quality: Quality | None, gain: Gain | None, key: str) -> dict[str, Any]:
    row: dict[str, Any] = {"merge": plan.name, "images": 0}
    if quality:
        row |= {k: v if v is None else round(v, 3) for k, v in quality.to_dict().items()}
        row[key] = row.pop("score")
    row["speed_up"] = gain and round(gain.value, 3)
    row["uncertainty"] = gain and round(gain.uncertainty, 3)
    return row


def markdown(findings: Findings, picture: str | None) -> str:
    """The report.

    Args:
        findings: of the search.
        picture: the file of `plot`, relative to the report; None without one.
    """
    facts, plan, words = findings.facts, findings.chosen, findings.budget.words
    counts = Counter(j.outcome for j in findings.judged)
    parts = [
        f"# A merge plan for {facts['model']} on {facts['data']}",
        f"Budget: {findings.budget}. Chosen: `{plan.name}`, precision {findings.precision}",
        f"In short: {findings.verdict()}.",
        f"```yaml\n{plan.to_yaml()}```",
        "## On images that the search has not seen",
        _table(
            [(c.plan, c.quality, c.gain, _note(c, findings)) for c in findings.checked],
            words,
        )
        if findings.checked
        else f"{findings.unchecked[:1].upper()}{findings.unchecked[1:]}.",
        "## In the search",
        (
            f"On images with noise, of a spread of {facts['noise']:g} of 255. "
            if facts["noise"]
            else ""
        )
        + f"{len(findings.judged)} plans were tried: "
        + "; ".join(f"{counts[key]} {text}" for key, text in _OUTCOMES.items() if counts[key])
        + ". A plan counts as within the budget with a margin of one standard error. The fastest "
        "ones within, and all presets:",
        _table(
            [(j.plan, j.quality, j.gain, _OUTCOMES[j.outcome]) for j in _shown(findings)], words
        ),
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


def _shown(findings: Findings) -> list[Judged]:
    first = leaders(findings.judged, _SHOWN)
    presets = set(PRESETS.values())
    return first + [j for j in findings.judged if j.plan in presets and j not in first]


def _note(checked: Checked, findings: Findings) -> str:
    if checked.plan != findings.chosen:
        return "the best preset"
    if checked.refused:
        return f"in {checked.precision}: {checked.refused}"
    return f"in {checked.precision}" + (", chosen" if checked == findings.winner else "")


def _table(
    found: Sequence[tuple[MergePlan, Quality | None, Gain | None, str]], words: Words
) -> str:
    lines = ["| plan | cost | times as fast as `none` | |", "| --- | --- | --- | --- |"]
    for plan, quality, gain, note in found:
        cost = f"{_quality(quality, words)} ({quality.images})" if quality else ""
        lines.append(f"| `{plan.name}` | {cost} | {gain or ''} | {note} |")
    return "\n".join(lines)


def _quality(found: Quality, words: Words) -> str:
    text = f"{found.agreement:.2f} ± {found.agreement_error:.2f} % of the {words.things} kept"
    if found.drop is not None:
        text += f", {found.drop:.2f} ± {found.drop_error:.2f} points of {words.score} lost"
    return text


def plot(findings: Findings, file: BinaryIO, form: str) -> None:
    """Draw speed-up over cost for every plan that was timed, the budget, and the front.

    Args:
        findings: of the search.
        file: where to.
        form: such as ``png``.
    """
    from matplotlib.figure import Figure

    by_drop = findings.budget.max_drop is not None
    limit = findings.budget.max_drop if by_drop else 100 - (findings.budget.min_agreement or 0)

    def cost(found: Quality) -> float:
        return (found.drop or 0.0) if by_drop else 100 - found.agreement

    figure = Figure(figsize=(8, 5), layout="constrained")
    axis = figure.subplots()
    timed = [(cost(j.quality), j.gain.value, j) for j in findings.judged if j.quality and j.gain]
    names = {plan: name for name, plan in PRESETS.items()}
    for x, y, j in timed:
        preset = j.plan in names
        axis.plot(x, y, "o", color="tab:red" if preset else "tab:blue", alpha=0.7, zorder=2)
        if preset and j.plan != findings.chosen:
            axis.annotate(
                *(names[j.plan], (x, y), (5, -10)),
                textcoords="offset points",
                fontsize=9,
                color="tab:red",
            )
        if j.plan == findings.chosen:
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
    words = findings.budget.words
    axis.set_xlabel(
        f"points of {words.score} lost" if by_drop else f"{words.things} that change, %"
    )
    axis.set_ylabel("times as fast as none")
    facts = findings.facts
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
