"""Predictors side by side on a dataset, image by image: how good they are, and how fast."""

from __future__ import annotations

import math
import random
import statistics
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Generic, TypeVar

from PIL import Image

from segformerpp.benchmark.timing import is_meaningless
from segformerpp.data.images import write_image
from segformerpp.errors import ImageError, UsageError
from segformerpp.predictor import Predictor

S = TypeVar("S")
F = TypeVar("F")


class Score(ABC, Generic[S, F]):
    """What one predictor has got right so far.

    Attributes:
        seconds: of the network for each image, but for those for which it was compiled.
        quality: how good what was found in an image is, by its place in the dataset: the lower the
            worse; NaN where nothing counts.
    """

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.quality: dict[int, float] = {}

    @abstractmethod
    def add(self, index: int, sample: S, found: F, first: F) -> None:
        """Count an image.

        Args:
            index: its place in the dataset.
            sample: the image and what is true of it.
            found: what the predictor found.
            first: what the first predictor found.
        """

    @abstractmethod
    def figures(self) -> dict[str, Any]:
        """How good it is, in percent; None where there is no figure."""

    def row(self, first: Score[S, F]) -> dict[str, Any]:
        """The figures, in percent and milliseconds, with the keys of all our JSON files.

        A time or a speed-up over `first` whose median may be off by more than 5 % (see
        `benchmark.timing`) is None; `withheld` is whether that is so of either.
        """
        # Image by image: what disturbs the machine for a while disturbs both.
        gains = [a / b for a, b in zip(first.seconds, self.seconds, strict=False)]
        seconds, gain = _median(self.seconds), _median(gains)
        return {
            **self.figures(),
            "median_ms": None if seconds is None else round(1000 * seconds, 2),
            "speed_up": None if gain is None else round(gain, 3),
            "withheld": seconds is None or gain is None,
            "images": len(self.quality),
        }


class Evaluation(ABC, Generic[S, F]):
    """A dataset, and what it says of predictors.

    Attributes:
        columns: what sums a row up: its keys, and headings for people.
        details: the key of a row with a figure for each class or keypoint, and a heading.
    """

    columns: ClassVar[Mapping[str, str]]
    details: ClassVar[tuple[str, str]]

    @abstractmethod
    def __len__(self) -> int:
        """How many images there are."""

    @abstractmethod
    def check(self, predictor: Predictor) -> None:
        """Refuse a model that the dataset cannot judge.

        Raises:
            UsageError: saying why.
        """

    @abstractmethod
    def score(self) -> Score[S, F]:
        """A score in which nothing has been counted."""

    @abstractmethod
    def file(self, index: int) -> Path:
        """The file of an image."""

    @abstractmethod
    def read(self, index: int) -> S:
        """An image and what is true of it.

        Raises:
            ImageError: if it cannot be read.
        """

    @abstractmethod
    def predict(self, predictor: Predictor, sample: S) -> tuple[F, float]:
        """What is found in an image, and the seconds that the network took.

        Raises:
            ImageError, MemoryError, UsageError: if the image is too large.
        """

    @abstractmethod
    def form(self, sample: S) -> Hashable:
        """What a network may have to be compiled for."""

    @abstractmethod
    def picture(self, predictor: Predictor, index: int, quality: float) -> Image.Image:
        """What is wrong with what is found in an image, for people to see.

        Raises:
            ImageError: if it cannot be read or predicted any more.
        """


def evaluate(
    predictors: Sequence[Predictor],
    evaluation: Evaluation[S, F],
    scores: Sequence[Score[S, F]],
    on_error: Callable[[ImageError], None],
    advance: Callable[[], None],
) -> None:
    """Predict every image with every predictor, in turns, in another order for each image.

    Nothing is read meanwhile, which would take processor time from the network.

    Args:
        predictors: to compare; agreement is with the first.
        evaluation: the images.
        scores: of each predictor, added to image by image: they hold what is known when the user
            interrupts.
        on_error: called with what is wrong with an image, which names it; it counts for no
            predictor.
        advance: called after each image.
    """
    seen: set[Hashable] = set()
    order, shuffle = list(range(len(predictors))), random.Random(0).shuffle
    for index in range(len(evaluation)):
        try:
            sample = evaluation.read(index)
            shuffle(order)
            found = {i: _predict(evaluation, predictors[i], sample, index) for i in order}
        except ImageError as error:
            on_error(error)
            advance()
            continue
        form = evaluation.form(sample)
        timed = form in seen  # the first time, it compiles
        seen.add(form)
        for i, score in enumerate(scores):
            one, seconds = found[i]
            score.add(index, sample, one, found[0][0])
            score.seconds += [seconds] * timed
        advance()


def save_worst(
    predictor: Predictor,
    evaluation: Evaluation[S, F],
    score: Score[S, F],
    folder: Path,
    count: int,
) -> list[Path]:
    """Write a picture of each of the images that came out worst, the worst one as ``01_...``.

    They are predicted again, because nobody knows before the end which ones to keep.

    Args:
        predictor: what predicts them.
        evaluation: where they are from.
        score: what the predictor got right there.
        folder: made if it is missing.
        count: how many at most.

    Returns:
        The files.

    Raises:
        ImageError: if an image cannot be read or predicted any more.
        OSError: if a file cannot be written.
    """
    known = {index: value for index, value in score.quality.items() if not math.isnan(value)}
    files = []
    for place, index in enumerate(sorted(known, key=lambda i: known[i])[:count], 1):
        picture = evaluation.picture(predictor, index, known[index])
        files.append(folder / f"{place:02}_{evaluation.file(index).stem}.png")
        write_image(files[-1], picture)
    return files


def rounded(value: float) -> float | None:
    """A figure as JSON has it; None for one that there is not."""
    return None if math.isnan(value) else round(float(value), 2)


def _predict(
    evaluation: Evaluation[S, F], predictor: Predictor, sample: S, index: int
) -> tuple[F, float]:
    """Errors name the file."""
    try:
        return evaluation.predict(predictor, sample)
    except (ImageError, MemoryError, UsageError) as error:  # the last: a view is too large
        reason = str(error).removeprefix("image: ") or "too large for the memory"
        raise ImageError(f"{evaluation.file(index)}: {reason}") from None


def _median(values: Sequence[float]) -> float | None:
    return None if is_meaningless(values) else statistics.median(values)
