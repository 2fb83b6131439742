import logging
from collections.abc import Iterable, Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformerpp.data.video import Frame, VideoReader
from segformerpp.data.video_writer import VideoWriter
from tests.made_videos import make_video, number_of, picture


def frame_at(time: Fraction, image: np.ndarray, duration: Fraction = Fraction(1, 10)) -> Frame:
    return Frame(image, time, duration, Fraction(1), 0.0)


def write(path: Path, frames: Iterable[Frame], time_base: Fraction = Fraction(1, 10)) -> Path:
    with VideoWriter(path, Fraction(10), time_base) as writer:
        for frame in frames:
            writer.write(frame.image, frame)
    return path


def copy(source: Path, path: Path, **selection: Fraction) -> Path:
    reader = VideoReader(source, **selection)  # type: ignore[arg-type]
    shift = selection.get("start", Fraction(0))
    with VideoWriter(path, reader.rate, reader.time_base, reader.audio, shift) as writer:
        for frame in reader:
            writer.write(frame.image, frame)
        writer.cut_audio = "end" in selection
    return path


def test_what_browsers_play(tmp_path: Path) -> None:
    path = copy(make_video(tmp_path / "a.mp4"), tmp_path / "deep" / "b.mp4")
    data = path.read_bytes()
    assert data.index(b"moov") < data.index(b"mdat")
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.pix_fmt == "yuv420p"
        assert (stream.frames, container.duration) == (20, 2_000_000)
        assert stream.average_rate == 10
    assert [number_of(frame.image) for frame in VideoReader(path)] == list(range(20))


@given(times=st.lists(st.integers(0, 10_000), min_size=1, max_size=12, unique=True))
def test_times_are_kept(tmp_path_factory: pytest.TempPathFactory, times: list[int]) -> None:
    times.sort()
    base = Fraction(1, 1000)
    last = Fraction(77, 1000)
    frames = [frame_at(time * base, picture(i), last) for i, time in enumerate(times)]
    path = write(tmp_path_factory.mktemp("times") / "a.mp4", frames, base)
    read = list(VideoReader(path))
    # Relative to the first: players, and so the reader, begin with it.
    assert [frame.time for frame in read] == [(time - times[0]) * base for time in times]
    assert read[-1].duration == last


@pytest.mark.parametrize(
    "base", [Fraction(1, 200_000), Fraction(1001, 30_000), Fraction(1, 1_200_000)]
)
def test_time_bases(tmp_path: Path, base: Fraction) -> None:
    frames = [frame_at(i * 1200 * base, picture(i), 1200 * base) for i in range(4)]
    read = list(VideoReader(write(tmp_path / "a.mp4", frames, base)))
    assert [frame.time for frame in read] == [frame.time for frame in frames]
    assert read[-1].duration == 1200 * base


def test_odd_sizes_grow_by_a_pixel(tmp_path: Path) -> None:
    image = np.zeros((47, 63, 3), np.uint8)
    image[:, -8:] = 200
    path = write(tmp_path / "a.mp4", [frame_at(Fraction(0), image)])
    read = next(iter(VideoReader(path))).image
    assert read.shape == (48, 64, 3)
    assert read[20, -1].min() > 180


def test_a_change_of_size_is_fitted_in(tmp_path: Path) -> None:
    white = np.full((48, 96, 3), 255, np.uint8)
    frames = [frame_at(Fraction(0), picture(3)), frame_at(Fraction(1, 10), white)]
    path = write(tmp_path / "a.mp4", frames)
    read = [frame.image for frame in VideoReader(path)]
    assert read[0].shape == read[1].shape == (48, 64, 3)
    bright = read[1].mean(axis=(1, 2))  # of each row
    assert (bright[:6] < 20).all()
    assert (bright[-6:] < 20).all()
    assert (bright[10:38] > 235).all()


def test_pixels_that_are_not_square(tmp_path: Path) -> None:
    path = copy(make_video(tmp_path / "a.mp4", range(2), aspect=Fraction(4, 3)), tmp_path / "b.mp4")
    assert next(iter(VideoReader(path))).aspect == Fraction(4, 3)


def test_colours(tmp_path: Path) -> None:
    image = np.full((48, 64, 3), (200, 40, 90), np.uint8)
    path = write(tmp_path / "a.mp4", [frame_at(Fraction(0), image)])
    read = next(iter(VideoReader(path))).image
    assert np.abs(read.astype(int) - image).max() <= 4
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.colorspace, context.color_range) == (1, 1)


def packets(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(audio=0) if packet.size]


@pytest.mark.parametrize(("extension", "codec"), [("mp4", "aac"), ("mkv", "aac"), ("ts", "mp2")])
def test_sound_is_copied(tmp_path: Path, extension: str, codec: str) -> None:
    source = make_video(tmp_path / f"a.{extension}", audio=codec)
    path = copy(source, tmp_path / "b.mp4")
    before, after = packets(source), packets(path)
    # Of AAC, what comes before the beginning is left out.
    assert 0 <= len(before) - len(after) <= 2
    assert after == before[len(before) - len(after) :]
    with av.open(str(path)) as container:
        assert container.duration is not None
        assert container.duration / 1e6 == pytest.approx(2, abs=0.03)


def test_sound_of_a_part(tmp_path: Path) -> None:
    source = make_video(tmp_path / "a.mp4", audio="aac")
    path = copy(source, tmp_path / "b.mp4", start=Fraction(1, 2), end=Fraction(3, 2))
    with av.open(str(path)) as container:
        assert container.duration is not None
        assert container.duration / 1e6 == pytest.approx(1, abs=0.03)
    before, after = packets(source), packets(path)
    place = before.index(after[0])
    assert after == before[place : place + len(after)]
    assert place == pytest.approx(0.5 * 48_000 / 1024, abs=3)


def test_sound_that_mp4_cannot_hold(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = make_video(tmp_path / "a.mkv", audio="wavpack")
    with caplog.at_level(logging.WARNING):
        path = copy(source, tmp_path / "b.mp4")
    assert "MP4 cannot hold its sound (wavpack): left out" in caplog.text
    with av.open(str(path)) as container:
        assert not container.streams.audio
        assert container.streams.video[0].frames == 20


def test_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_text("before")

    def fail() -> Iterator[Frame]:
        yield frame_at(Fraction(0), picture(0))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write(path, fail())
    assert path.read_text() == "before"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(FileExistsError) as caught:
        write(tmp_path / "file" / "a.mp4", [])
    assert caught.value.filename == str(tmp_path / "file" / "a.mp4")
