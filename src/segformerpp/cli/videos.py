"""What `segformerpp predict` does with videos, streams and cameras."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING

from segformerpp.cli.options import INTERRUPTED, SOME_FAILED, SUCCESS, say
from segformerpp.errors import VideoError
from segformerpp.terminal import Progress, asked_to_stop, complain

if TYPE_CHECKING:
    from threading import Event

    from segformerpp.data.video_sources import VideoSource
    from segformerpp.predictor import Predictor
    from segformerpp.videos_folder import Selection, VideosFolder

_RECENT = 30  # frames that the figures beside the bar are of


def predict_videos(
    predictor: Predictor,
    videos: Sequence[VideoSource],
    folder: VideosFolder,
    selection: Selection,
    quiet: bool,
) -> int:
    """Segment videos one after the other; Ctrl-C finishes the one under way and ends.

    Returns:
        The exit code.
    """
    code = SUCCESS
    with folder, asked_to_stop() as stop:
        for video in videos:
            try:
                code = max(code, _one(predictor, video, folder, selection, stop, quiet))
            except VideoError as error:
                complain(f"failed: {error}")
                folder.note_failure(video.name, error)
                code = max(code, SOME_FAILED)
            if stop.is_set():
                break
    return code


def _one(
    predictor: Predictor,
    video: VideoSource,
    folder: VideosFolder,
    selection: Selection,
    stop: Event,
    quiet: bool,
) -> int:
    from segformerpp.videos_folder import open_reader

    reader = open_reader(video, selection)
    seconds: list[float] = []
    recent: deque[tuple[float, float]] = deque(maxlen=_RECENT)
    begin = time.monotonic()
    with (
        closing(reader),
        Progress(reader.count, video.stem, shown=not quiet) as progress,
        closing(folder.process(predictor, video, reader, stop)) as steps,
    ):
        for step in steps:
            seconds.append(step.network_seconds)
            recent.append((time.monotonic(), step.latency_seconds))
            passed = recent[-1][0] - recent[0][0]
            rate = (len(recent) - 1) / passed if passed else 0.0
            latency = statistics.median(latency for _, latency in recent)
            progress.advance(f"{rate:.1f} fps, {1000 * latency:.0f} ms latency")
    passed = time.monotonic() - begin
    used = predictor.facts
    report = f"{reader.name}: {len(seconds)} frames done, {len(seconds) / passed:.1f} per second"
    if reader.dropped:
        report += f", {reader.dropped} dropped as newer ones had come"
    if reader.broken:
        report += f", {reader.broken} broken packets skipped"
    report += (
        f"; results in {folder.folder}; the network took "
        f"{1000 * statistics.median(seconds):.0f} ms per frame (merge {used['merge']}, "
        f"{used['runtime']} {used['precision']} on {used['device']})"
    )
    say(report, quiet)
    if reader.lost:
        complain(f"failed: {reader.name}: {reader.lost}; what came before is finished")
        return SOME_FAILED
    if stop.is_set() and not reader.live:
        complain(f"interrupted: {reader.name}: {float(step.time):.1f} seconds are finished")
        return INTERRUPTED
    return SUCCESS
