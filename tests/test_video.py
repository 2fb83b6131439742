import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import segformerpp as sfpp
from segformerpp.data.video import Frame, VideoReader
from segformerpp.errors import ImageError, VideoError
from segformerpp.models import Segformer
from segformerpp.video import process_video
from segformerpp.videos_folder import VIDEO_OUTPUTS
from tests.made_videos import make_video, number_of, picture


@dataclass
class Inverted:
    """A result that is the frame with its colours inverted."""

    image: np.ndarray
    network_seconds: float = 0.0

    def row(self) -> dict[str, Any]:
        return {"number": number_of(self.image)}

    def plot(self) -> Image.Image:
        return Image.fromarray(255 - self.image)


class Inverter:
    """Knows nothing of segmentation; takes its time for each frame."""

    def __init__(self, seconds: float = 0.0) -> None:
        self._seconds, self._lock = seconds, threading.Lock()
        self.count = 0

    def __call__(self, image: np.ndarray) -> Inverted:
        with self._lock:
            time.sleep(self._seconds)
            self.count += 1
            return Inverted(image)

    def calls(self, images: Iterable[np.ndarray]) -> Iterator[Callable[[], Inverted]]:
        return (partial(self, image) for image in images)

    def stream(self, images: Iterable[np.ndarray]) -> Iterator[Inverted]:
        return map(self, images)


class Camera:
    """A live source of 100 frames a second."""

    name, live = "camera", True
    audio: str | None = None
    end: Fraction | None = None
    rate, time_base, start = Fraction(100), Fraction(1, 1000), Fraction(0)

    def __init__(self, frames: int = 10_000) -> None:
        self.taken = 0
        self._frames = frames

    def __iter__(self) -> Iterator[Frame]:
        begin = time.monotonic()
        for _ in range(self._frames):
            time.sleep(0.01)
            self.taken += 1
            now = time.monotonic()
            when = Fraction(round(1000 * (now - begin)), 1000)
            yield Frame(picture(3), when, 1 / self.rate, Fraction(1), now)


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    return make_video(tmp_path / "clip.mp4", audio="aac")


def plot(result: Inverted) -> Image.Image:
    return result.plot()


def test_every_frame_in_order(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    steps = list(process_video(Inverter(), VideoReader(clip), {out: plot}, rows=True))
    assert [step.number for step in steps] == list(range(20))
    assert [step.time for step in steps] == [i / 10 for i in range(20)]
    assert [step.row for step in steps] == [{"number": i} for i in range(20)]
    assert all(0 < step.latency_seconds < 60 for step in steps)
    written = list(VideoReader(out))
    assert [number_of(255 - frame.image) for frame in written] == list(range(20))
    assert VideoReader(out).audio


def test_several_outputs_or_none(clip: Path, tmp_path: Path) -> None:
    outputs = {tmp_path / "a.mp4": plot, tmp_path / "b.mp4": plot}
    assert len(list(process_video(Inverter(), VideoReader(clip), outputs))) == 20
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    before = sorted(tmp_path.iterdir())
    assert len(list(process_video(Inverter(), VideoReader(clip), {}, rows=True))) == 20
    assert sorted(tmp_path.iterdir()) == before


def test_drawing_does_not_hold_the_network_up(clip: Path, tmp_path: Path) -> None:
    """Each frame is drawn only once the network has been at the next one: at the same time."""
    predictor = Inverter()

    def draw(result: Inverted) -> Image.Image:
        wanted = min(number_of(result.image) + 2, 20)
        until = time.monotonic() + 30
        while predictor.count < wanted:
            assert time.monotonic() < until
            time.sleep(0.001)
        return result.plot()

    assert len(list(process_video(predictor, VideoReader(clip), {tmp_path / "a.mp4": draw}))) == 20


def test_few_frames_wait(clip: Path, tmp_path: Path) -> None:
    predictor = Inverter()
    waited = threading.Event()

    def wait(result: Inverted) -> Image.Image:
        waited.wait(60)
        return result.plot()

    def run() -> int:
        return len(list(process_video(predictor, VideoReader(clip), {tmp_path / "a.mp4": wait})))

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(run)
        time.sleep(0.5)
        assert predictor.count <= 6
        waited.set()
        assert future.result() == 20


def test_stopping_finishes_the_file(clip: Path, tmp_path: Path) -> None:
    stop, out = threading.Event(), tmp_path / "out.mp4"
    count = 0
    for step in process_video(Inverter(0.02), VideoReader(clip), {out: plot}, stop):
        count += 1
        if step.number == 3:
            stop.set()
    assert 4 <= count < 15
    written = list(VideoReader(out))
    assert [number_of(255 - frame.image) for frame in written] == list(range(count))
    import av

    with av.open(str(out)) as container:
        assert container.duration is not None
        assert container.duration / 1e6 == pytest.approx(count / 10, abs=0.03)


def test_closing_or_failing_leaves_nothing(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.mp4"
    with closing(process_video(Inverter(), VideoReader(clip), {out: plot})) as steps:
        next(steps)

    class Failing(Inverter):
        def __call__(self, image: np.ndarray) -> Inverted:
            if self.count == 5:
                raise ImageError("image: too large for the memory")
            return super().__call__(image)

    with pytest.raises(VideoError, match=r"clip\.mp4: image: too large for the memory"):
        list(process_video(Failing(), VideoReader(clip), {out: plot}))

    def fail(result: Inverted) -> Image.Image:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        list(process_video(Inverter(), VideoReader(clip), {out: fail}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clip.mp4"]


def test_a_live_source_is_read_no_faster_than_it_is_worked_on(tmp_path: Path) -> None:
    camera, stop, out = Camera(), threading.Event(), tmp_path / "out.mp4"
    steps = []
    for step in process_video(Inverter(0.1), camera, {out: plot}, stop):
        steps.append(step)
        if len(steps) == 5:
            stop.set()
    assert camera.taken <= len(steps) + 4
    written = list(VideoReader(out))
    assert len(written) == len(steps)
    gaps = np.diff([step.time for step in steps])
    assert np.diff([float(frame.time) for frame in written]) == pytest.approx(gaps, abs=0.002)


def test_stopping_before_the_first_frame(tmp_path: Path) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(VideoError, match="camera: there was no frame before it was stopped"):
        list(process_video(Inverter(), Camera(), {tmp_path / "out.mp4": plot}, stop))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("batch", [1, 3])
def test_segmentation_of_a_video_equals_that_of_its_frames(
    random_model: Segformer, clip: Path, tmp_path: Path, batch: int
) -> None:
    predictor = sfpp.Predictor(random_model, device="cpu", batch=batch)
    out = tmp_path / "out.mp4"
    outputs = {out: VIDEO_OUTPUTS["color"]}
    steps = list(process_video(predictor, VideoReader(clip), outputs, rows=True))
    for step, frame in zip(steps, VideoReader(clip), strict=True):
        assert step.row is not None
        assert step.row["shares"] == predictor(frame.image).row()["shares"]
    last = predictor(frame.image)
    written = [frame.image for frame in VideoReader(out)][-1]
    assert np.abs(written.astype(int) - np.asarray(last.color_map())).mean() < 25


def test_highway(random_model: Segformer, shared: Path, tmp_path: Path) -> None:
    predictor = sfpp.Predictor(random_model, device="cpu", size=(64, 96))
    reader = VideoReader(shared / "data/media/highway.mp4", end=Fraction(1, 5))
    out = tmp_path / "out.mp4"
    assert len(list(process_video(predictor, reader, {out: VIDEO_OUTPUTS["overlay"]}))) == 5
    written = list(VideoReader(out))
    assert [frame.time for frame in written] == [Fraction(i, 25) for i in range(5)]
    assert written[0].image.shape == (540, 960, 3)
    assert VideoReader(out).audio
