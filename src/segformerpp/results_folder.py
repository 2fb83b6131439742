"""Segmenting many files into a folder, and knowing what has been done there."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segformerpp.data.behind import run_behind
from segformerpp.data.files import ImageFile, write_whole
from segformerpp.data.images import ImageSource
from segformerpp.errors import ImageError, UsageError
from segformerpp.tasks.segmentation_result import SegmentationResult, output_paths

if TYPE_CHECKING:
    from segformerpp.predictor import Predictor


class ResultsFolder:
    """Writes results under the names that `find_images` gave; `write` may run in several threads.

    Args:
        folder: made if it is missing.
        what: the outputs of each image, see `SegmentationResult.save`.
        report: a JSON file for a list with a row for each image.
        resume: whether images whose outputs are all there, and whose row is in the report if
            there is to be one, count as done.

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
    ) -> None:
        self.folder, self.what = Path(folder).expanduser(), tuple(what)
        output_paths(self.folder, "", self.what)
        self._report = None if report is None else Path(report).expanduser()
        self._resume = resume
        self._rows: dict[str, dict[str, Any]] = {}
        _check_writable("out", self.folder)
        if self._report:
            if self._report.is_dir():
                raise UsageError(f"json: {self._report} is a folder, not a file")
            _check_writable("json", self._report.parent)
            if resume and self._report.exists():
                self._rows = _read_rows(self._report)

    def missing(self, files: Iterable[ImageFile]) -> list[ImageFile]:
        """Those of the images that are not done yet; all of them unless resuming."""
        return [file for file in files if not self._is_done(file)]

    def write(
        self, file: ImageFile, result: SegmentationResult, facts: Mapping[str, Any] | None = None
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
            shares = {
                label: round(float(share), 6)
                for label, share in zip(result.labels, result.shares, strict=True)
                if share
            }
            height, width = result.label_map.shape
            self._rows[str(file.path)] = {
                "image": str(file.path),
                "size": f"{height}x{width}",
                **(facts or {}),
                "network_ms": round(1000 * result.network_seconds, 3),
                "shares": shares,
            }

    def note_failure(self, file: ImageFile, error: ImageError) -> None:
        """Note an image that could not be read in its row."""
        self._rows[str(file.path)] = {"image": str(file.path), "error": str(error)}

    def write_report(self, files: Iterable[ImageFile]) -> None:
        """Write the rows, those of the given images last and in their order.

        Raises:
            OSError: if the file cannot be written.
        """
        if self._report:
            order = {str(file.path): i for i, file in enumerate(files)}
            rows = sorted(self._rows.values(), key=lambda row: order.get(row["image"], -1))
            with write_whole(self._report) as out:
                out.write(json.dumps(rows, indent=1).encode() + b"\n")

    def _is_done(self, file: ImageFile) -> bool:
        if not self._resume or (self._report and str(file.path) not in self._rows):
            return False
        paths = output_paths(self.folder, file.stem, self.what).values()
        return all(path.is_file() for path in paths)


def segment_files(
    predictor: Predictor,
    files: Iterable[ImageFile],
    folder: ResultsFolder,
    on_error: Callable[[ImageError], None],
) -> Iterator[SegmentationResult]:
    """Segment images and write what they show; reading, network and writing overlap.

    Args:
        predictor: made with `probabilities` if the folder is to hold them.
        files: the images.
        folder: gets the results.
        on_error: called with what is wrong with an image that cannot be read; it is skipped.

    Yields:
        Each result, once it has been written.

    Raises:
        OSError: if a file cannot be written.
    """
    by_path = {file.path: file for file in files}

    def write(result: SegmentationResult) -> SegmentationResult:
        assert result.path is not None
        folder.write(by_path[result.path], result, predictor.facts)
        return result

    def fail(source: ImageSource, error: ImageError) -> None:
        assert isinstance(source, Path)
        folder.note_failure(by_path[source], error)
        on_error(error)

    results = predictor.stream(by_path, fail)
    yield from run_behind((partial(write, result) for result in results), workers=2, waiting=2)


def _check_writable(key: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        reason = error.strerror or str(error)
        raise UsageError(f"{key}: cannot write to {folder}: {reason}") from None


def _read_rows(path: Path) -> dict[str, dict[str, Any]]:
    try:
        return {row["image"]: row for row in json.loads(path.read_text(encoding="utf-8"))}
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise UsageError(f"json: {path} cannot be resumed, it is no such list: {error}") from None
