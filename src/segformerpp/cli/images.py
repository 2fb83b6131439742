"""What `segformerpp predict` does with images."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import TYPE_CHECKING

from segformerpp.cli.options import INTERRUPTED, SOME_FAILED, SUCCESS, say
from segformerpp.errors import ImageError, UsageError
from segformerpp.terminal import Progress, complain

if TYPE_CHECKING:
    from segformerpp.data.boxes import BoxesByName
    from segformerpp.predictor import Predictor
    from segformerpp.results_folder import ResultsFolder


def predict_images(
    make_predictor: Callable[[], Predictor],
    sources: list[str],
    folder: ResultsFolder,
    people: BoxesByName | None,
    quiet: bool,
) -> int:
    """Predict images into a folder; Ctrl-C ends it, with what is done by then.

    Returns:
        The exit code.

    Raises:
        UsageError: if there are no images, or the people's boxes are of none of them.
    """
    from segformerpp.data.files import find_images
    from segformerpp.results_folder import segment_files

    files = find_images(sources, skip=folder.folder, outputs=folder.outputs)
    if people is not None and not any(file.path.name in people for file in files):
        raise UsageError(f"boxes: of none of the {len(files)} images, such as {files[0].path.name}")
    todo = folder.missing(files)
    if not todo:
        say(f"nothing to do: all {len(files)} images are done; results in {folder.folder}", quiet)
        return SUCCESS
    with Progress(len(todo), "predicting", shown=not quiet) as progress:
        predictor = make_predictor()
        seconds: list[float] = []
        failures = 0

        def fail(error: ImageError) -> None:
            nonlocal failures
            failures += 1
            complain(f"failed: {error}")
            progress.advance()

        try:
            for result in segment_files(predictor, todo, folder, fail, people):
                seconds.append(result.network_seconds)
                progress.advance()
        except KeyboardInterrupt:
            complain(
                f"interrupted: {len(seconds)} of {len(todo)} images done; the same command with "
                f"--resume goes on from there"
            )
            return INTERRUPTED
        finally:
            folder.write_report(files)

    used = predictor.facts
    report = f"{len(seconds)} of {len(files)} images done"
    if skipped := len(files) - len(todo):
        report += f", {skipped} done before"
    if failures:
        report += f", {failures} failed"
    report += f"; results in {folder.folder}"
    if seconds:
        report += (
            f"; the network took {1000 * statistics.median(seconds):.0f} ms per image (merge "
            f"{used['merge']}, {used['runtime']} {used['precision']} on {used['device']})"
        )
    say(report, quiet)
    return SOME_FAILED if failures else SUCCESS
