"""What a plan is made of: the strategies, what each is called, its parameters, their checks."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from typing import Any, ClassVar

from segformerpp.errors import PlanError

logger = logging.getLogger(__name__)


def _check_ratio(value: Any, key: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise PlanError(f"{key}: a merge ratio is a number from 0 to 1, not {value!r}")


def _check_stride(value: Any, key: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise PlanError(f"{key}: a stride is a whole number from 1 up, not {value!r}")


def _check_switch(value: Any, key: str) -> None:
    if not isinstance(value, bool):
        raise PlanError(f"{key}: true or false, not {value!r}")


def _check_count(value: Any, key: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise PlanError(f"{key}: a whole number from 0 up, not {value!r}")


@dataclass(frozen=True, slots=True)
class BipartiteMatching:
    """Bipartite soft matching: the `int(r * N)` most similar sources join their best destination.

    Destinations are the top-left tokens of the whole `sy` x `sx` cells of the token grid,
    sources are all other tokens (SegFormer++, section 3; ToMe for the matching itself).

    Every strategy can be `proportional`, where it merges keys/values: attention then gives a
    merged key as much weight as the tokens in it had (ToMe, section 3.2, "proportional
    attention"). And every one leaves at least `min_tokens`: of few tokens matching merges fewer or
    none, and neighbours are not merged at all where fewer would be left, without a warning. Few
    tokens cost little, and each of them matters.
    """

    mode: ClassVar[str] = "bsm"
    r: float
    sx: int
    sy: int
    proportional: bool = False
    min_tokens: int = 0

    def __post_init__(self) -> None:
        _check_ratio(self.r, "r")
        _check_stride(self.sx, "sx")
        _check_stride(self.sy, "sy")
        _check_switch(self.proportional, "proportional")
        _check_count(self.min_tokens, "min_tokens")

    def left(self, h: int, w: int) -> int:
        """How many tokens of a grid (h, w) are left; all where it has no whole cell."""
        tokens, destinations = h * w, (h // self.sy) * (w // self.sx)
        if not destinations:
            return tokens
        merged = min(int(self.r * h * w), tokens - max(destinations, self.min_tokens))
        return tokens - max(merged, 0)

    def lacks_cells(self, h: int, w: int) -> bool:
        """Whether tokens of a grid (h, w) stay as they are only as it has no whole cell."""
        return (h < self.sy or w < self.sx) and int(self.r * h * w) > 0 and h * w > self.min_tokens


@dataclass(frozen=True, slots=True)
class Neighbour1d:
    """1-D neighbour merging: `s` tokens that follow each other in row order become one."""

    mode: ClassVar[str] = "n1d"
    s: int
    proportional: bool = False
    min_tokens: int = 0

    def __post_init__(self) -> None:
        _check_stride(self.s, "s")
        _check_switch(self.proportional, "proportional")
        _check_count(self.min_tokens, "min_tokens")

    def left(self, h: int, w: int) -> int:
        """How many tokens of a grid (h, w) are left."""
        cells = -(-h * w // self.s)
        return cells if cells >= self.min_tokens else h * w


@dataclass(frozen=True, slots=True)
class Neighbour2d:
    """2-D neighbour merging: every `sy` x `sx` cell of the token grid becomes one token."""

    mode: ClassVar[str] = "n2d"
    sx: int
    sy: int
    proportional: bool = False
    min_tokens: int = 0

    def __post_init__(self) -> None:
        _check_stride(self.sx, "sx")
        _check_stride(self.sy, "sy")
        _check_switch(self.proportional, "proportional")
        _check_count(self.min_tokens, "min_tokens")

    def left(self, h: int, w: int) -> int:
        """How many tokens of a grid (h, w) are left."""
        cells = -(-h // self.sy) * -(-w // self.sx)
        return cells if cells >= self.min_tokens else h * w


Merge = BipartiteMatching | Neighbour1d | Neighbour2d
MODES: dict[str, type[Merge]] = {
    cls.mode: cls for cls in (BipartiteMatching, Neighbour1d, Neighbour2d)
}


@dataclass(frozen=True, slots=True)
class StageMerge:
    """What is merged in each block of one stage: the queries, the keys/values, both or neither.

    Args:
        q: how queries are merged.
        kv: how keys/values are merged.
        reuse: how many blocks in a row use what the first of them matched (a number above the
            stage's depth: all); 0 where each block matches by itself.

    Raises:
        PlanError: on a wrong value, or one that would do nothing.
    """

    q: Merge | None = None
    kv: Merge | None = None
    reuse: int = 0

    def __post_init__(self) -> None:
        for key, merge in (("q", self.q), ("kv", self.kv)):
            if not isinstance(merge, Merge | None):
                raise PlanError(f"{key}: a strategy such as Neighbour1d(2), or None, not {merge!r}")
        if self.q and self.q.proportional:
            raise PlanError("q.proportional: only merged keys/values (kv) have a weight to mend")
        reuse = self.reuse
        if isinstance(reuse, bool) or not isinstance(reuse, int) or reuse < 0 or reuse == 1:
            raise PlanError(f"reuse: a number of blocks from 2 up, or 0 for none, not {reuse!r}")
        if reuse and not any(isinstance(m, BipartiteMatching) for m in (self.q, self.kv)):
            raise PlanError(f"reuse: {reuse}, but nothing is matched (bsm) in this stage")


def refuse_unknown(data: Any, known: set[str], where: str, prefix: str = "") -> None:
    """Raise `PlanError` unless `data` is a mapping with none but the known keys."""
    names = ", ".join(sorted(prefix + key for key in known))
    if not isinstance(data, Mapping):
        raise PlanError(f"{where}: expected a mapping with {names}, not {data!r}")
    for key in data:
        if key not in known:
            raise PlanError(f"{where}, {prefix}{key}: unknown key (known: {names})")


def merge_from(data: Mapping[str, Any] | None, where: str, prefix: str) -> Merge | None:
    """Make one strategy from its keys; errors name `where` and the key with its prefix.

    >>> merge_from({"mode": "n1d", "s": 2}, "stage 1", "q.")
    Neighbour1d(s=2)
    """
    if data is None:
        return None
    if not isinstance(data, Mapping):
        raise PlanError(f"{where}, {prefix[:-1]}: expected a mapping with 'mode', not {data!r}")
    mode = data.get("mode")
    if not isinstance(mode, str) or mode not in MODES:
        raise PlanError(f"{where}, {prefix}mode: {mode!r} is not one of {', '.join(MODES)}")
    cls = MODES[mode]
    keys = {field.name for field in fields(cls)}
    refuse_unknown(data, keys | {"mode"}, where, prefix)
    missing = sorted(f.name for f in fields(cls) if f.default is MISSING and f.name not in data)
    if missing:
        raise PlanError(f"{where}, {prefix}{missing[0]}: missing, {mode} needs it")
    try:
        return cls(**{key: data[key] for key in keys & set(data)})
    except PlanError as error:
        raise PlanError(f"{where}, {prefix}{error}") from None


def merge_to(merge: Merge | None) -> dict[str, Any] | None:
    """The keys that `merge_from` reads, without those that say what holds anyway."""
    if merge is None:
        return None
    values = {f.name: getattr(merge, f.name) for f in fields(merge)}
    usual = {f.name: f.default for f in fields(merge)}
    return {"mode": merge.mode, **{k: v for k, v in values.items() if v != usual[k]}}


@lru_cache(maxsize=256)  # once for each grid and cell
def warn_small_grid(h: int, w: int, sy: int, sx: int) -> None:
    """Say that a token grid has no destinations, so that nothing is merged there."""
    logger.warning(
        "a token grid of %d x %d has no whole cell of %d x %d: nothing is merged there",
        *(h, w, sy, sx),
    )
