"""Merging in the frames of a video what was matched in an earlier one."""

from __future__ import annotations

from threading import Event
from types import TracebackType
from typing import Any

import numpy as np

from segformerpp.arguments import whole_number
from segformerpp.errors import UsageError
from segformerpp.plans import BipartiteMatching, MergePlan
from segformerpp.runtimes import MatchingRuntime


class FramesNetwork:
    """A network for the frames of one source: what it matches in a frame serves the next ones too.

    Called with one frame after the other. What it does depends on their number and size alone.

    Args:
        runtime: executes the network.
        frames: in so many frames in a row the matches of the first are used; counted anew where
            the size changes.
    """

    def __init__(self, runtime: MatchingRuntime, frames: int) -> None:
        self._runtime, self._frames = runtime, frames
        self._shape: tuple[int, ...] = ()
        self._found: Any = None
        self._left = 0  # of the frames that use what was found

    def __call__(self, x: np.ndarray) -> np.ndarray:
        """Predict: a normalised frame (1, 3, H, W) float32 -> logits (1, K, h, w) float32."""
        given = self._found if self._left and x.shape == self._shape else None
        if given is None:
            # What fails leaves nothing behind: the next frame is matched anew.
            self._found, self._left, self._shape = None, self._frames, x.shape
        self._left -= 1
        logits, self._found = self._runtime.matched(x, given)
        return logits


class Turn:
    """A place in a queue. A ``with`` block around all that is done makes room for the next one.

    Args:
        before: whose turn comes first; None for the first one.
    """

    def __init__(self, before: Turn | None) -> None:
        self._before, self._over = before, Event()

    def wait(self) -> None:
        """Wait until everyone in front is done."""
        if self._before:
            self._before._over.wait()
        self._before = None  # else each would keep all that were before it

    def __enter__(self) -> Turn:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.wait()
        self._over.set()


def checked_reuse(frames: int, plan: MergePlan, batch: int, task: str, tiles: bool) -> int:
    """Take the number of frames that are merged alike.

    Args:
        frames: the number; 1 where each is matched anew.
        plan: what is merged where.
        batch: how many images go together.
        task: of the model.
        tiles: whether images are to go in tiles.

    Raises:
        UsageError: if it is none, or would do nothing or not go together with the rest.
    """
    frames = whole_number("reuse_match", frames, 1)
    if frames == 1:
        return frames
    if task != "segmentation":
        raise UsageError("reuse_match: for models that segment")
    if batch > 1:
        raise UsageError("reuse_match: with a batch of 1, as a frame uses what one before matched")
    if tiles:
        raise UsageError("reuse_match: for frames that go through the network whole, without tile")
    strategies = (merge for stage in plan.stages for merge in (stage.q, stage.kv))
    if not any(isinstance(merge, BipartiteMatching) for merge in strategies):
        raise UsageError(f"reuse_match: nothing is matched (bsm) in the plan {plan.name}")
    return frames
