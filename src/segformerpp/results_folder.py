"""Segmenting many files into a folder, and knowing what has been done there."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segformerpp.data.behind import run_behind
from segformerpp.data.boxes import BoxesByName
from segformerpp.data.files import ImageFile, check_writable
from segformerpp.data.images import ImageSource
from segformerpp.data.outputs import check_writable_file, write_rows
from segformerpp.errors import ImageError, UsageError
from segformerpp.tasks.pose_result import PoseResult
from segformerpp.tasks.segmentation_result import OUTPUTS, SegmentationResult, output_paths

if TYPE_CHECKING:
    from segformerpp.predictor import Predictor

#: How often the report is brought up to date, so that a run that is killed loses little; a report
#: that takes long to write is written more seldom.
REPORT_SECONDS = 5.0
_REPORT_SHARE = 0.05


class ResultsFolder:
    """Writes results under the names that `find_images` gave; `write` may run in several threads.

    Args:
        folder: made if it is missing, once there is something to write.
        what: the outputs of each image, see the `save` of results.
        report: a JSON file for a list with a row for each image.
        resume: whether images whose outputs are all there count as done; if there is to be a
            report, its row for them must be there too, and be none of a failure.
        outputs: all outputs that there are for the task, and how the names of the files end.

    Raises:
        UsageError: if there is no such output, the folder or the report cannot be written, or
            the report that is there to be resumed is none.
    """

    def __init__(
        self,
        folder: str | Path,
        what: Iterable[str] = ("labels", "overlay"),
        report: str | Path | None = None,
        resume: bool = False,
        outputs: Mapping[str, str] = OUTPUTS,
    ) -> None:
        self.folder, self.what = _expand("out", folder), tuple(what)
        self._outputs = outputs
        output_paths(self.folder, "", self.what, outputs)
        self._report = None if report is None else _expand("json", report)
        self._report_due = time.monotonic() + REPORT_SECONDS
        self._resume = resume
        self._rows: dict[str, dict[str, Any]] = {}
        check_writable("out", self.folder)
        if self._report:
            check_writable_file("json", self._report)
            if resume and self._report.exists():
                self._rows = _read_rows(self._report)

    def outputs(self, stem: str) -> Iterable[Path]:
        """Where an image's outputs go, all that there are."""
        return output_paths(self.folder, stem, self._outputs, self._outputs).values()

    def missing(self, files: Iterable[ImageFile]) -> list[ImageFile]:
        """Those of the images that are not done yet; all of them unless resuming."""
        return [file for file in files if not self._is_done(file)]

    def write(
        self,
        file: ImageFile,
        result: SegmentationResult | PoseResult,
        facts: Mapping[str, Any] | None = None,
    ) -> None:
        """Write the outputs of one image, each whole or not at all, and note its row.

        Args:
            file: the image.
            result: what it shows.
            facts: what else its row is to say.

        Raises:
            OSError: if a file cannot be written.
        """
        result.save(self.folder, file.stem, self.what)
        if self._report:
            height, width = result.image.shape[:2]
            self._rows[str(file.path)] = {
                "image": str(file.path),
                "size": f"{height}x{width}",
                **(facts or {}),
                **result.row(),
            }

    def note_failure(self, file: ImageFile, error: ImageError) -> None:
        """Note in its row what is wrong with an image."""
        self._rows[str(file.path)] = {"image": str(file.path), "error": str(error)}

    def write_report(self, files: Iterable[ImageFile]) -> None:
        """Write the rows, those of the given images last and in their order.

        Raises:
            OSError: if the file cannot be written.
        """
        if self._report:
            order = {str(file.path): i for i, file in enumerate(files)}
            rows = [*self._rows.values()]  # at once, for `write` may be adding some
            rows.sort(key=lambda row: order.get(row["image"], -1))
            write_rows(self._report, rows)

    def update_report(self, files: Iterable[ImageFile]) -> None:
        """Do what `write_report` does, if that was last done a while ago."""
        if (start := time.monotonic()) >= self._report_due:
            self.write_report(files)
            end = time.monotonic()
            self._report_due = end + max(REPORT_SECONDS, (end - start) / _REPORT_SHARE)

    def _is_done(self, file: ImageFile) -> bool:
        row = self._rows.get(str(file.path))
        if not self._resume or (self._report and (row is None or "error" in row)):
            return False
        paths = output_paths(self.folder, file.stem, self.what, self._outputs).values()
        return all(os.path.isfile(path) for path in paths)  # noqa: PTH113 (names may be too long)


def segment_files(
    predictor: Predictor,
    files: Iterable[ImageFile],
    folder: ResultsFolder,
    on_error: Callable[[ImageError], None],
    boxes: BoxesByName | None = None,
) -> Iterator[SegmentationResult | PoseResult]:
    """Run over images and write what they show; reading, network and writing overlap.

    Args:
        predictor: made with `probabilities` if the folder is to hold them.
        files: the images.
        folder: gets the results.
        on_error: called with what is wrong with an image that cannot be read, is too large, or
            has a name that is too long for its outputs; it is skipped.
        boxes: for poses: the people in each image by its name, nobody in others; None for one
            person who fills each image.

    Yields:
        Each result, once it has been written.

    Raises:
        OSError: if a file cannot be written.
    """
    by_path = {file.path: file for file in files}

    def write(
        result: SegmentationResult | PoseResult,
    ) -> SegmentationResult | PoseResult | ImageError:
        assert result.path is not None
        file = by_path[result.path]
        try:
            folder.write(file, result, predictor.facts)
        except MemoryError as error:
            failure = ImageError(f"{file.path}: {str(error) or 'too large for the memory'}")
        except OSError as error:
            if error.errno != errno.ENAMETOOLONG:
                raise  # what hits one file, such as a full disk, hits them all
            failure = ImageError(f"{file.path}: the names of its outputs are too long")
        else:
            return result
        folder.note_failure(file, failure)
        return failure

    def fail(source: ImageSource, error: ImageError) -> None:
        assert isinstance(source, Path)
        folder.note_failure(by_path[source], error)
        on_error(error)

    def people(source: ImageSource) -> list[list[float]]:
        assert isinstance(source, Path)
        return (boxes or {}).get(source.name, [])

    results: Iterator[SegmentationResult] | Iterator[PoseResult]
    if boxes is None:
        results = predictor.stream(by_path, fail)
    else:
        results = predictor.stream(by_path, fail, boxes=people)
    steps = (partial(write, result) for result in results)
    with closing(run_behind(steps, workers=2, waiting=2)) as outcomes:
        for outcome in outcomes:
            folder.update_report(by_path.values())
            if isinstance(outcome, ImageError):
                on_error(outcome)
            else:
                yield outcome


def _expand(key: str, path: str | Path) -> Path:
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise UsageError(f"{key}: {path}: there is no such user") from None


def _read_rows(path: Path) -> dict[str, dict[str, Any]]:
    try:
        return {row["image"]: row for row in json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"json: {path} cannot be resumed, it is no such list: {error}") from None
