import gc
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformerpp.data.video import VideoReader
from segformerpp.errors import UsageError, VideoError
from tests.made_videos import make_video, number_of, turn


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 frames, 10 a second."""
    return make_video(tmp_path_factory.mktemp("clip") / "clip.mp4", audio="aac")


def test_every_frame_with_its_time(clip: Path) -> None:
    reader = VideoReader(clip)
    frames = list(reader)
    assert [number_of(frame.image) for frame in frames] == list(range(20))
    assert [frame.time for frame in frames] == [Fraction(i, 10) for i in range(20)]
    assert {frame.duration for frame in frames} == {Fraction(1, 10)}
    assert reader.rate == 10
    assert (reader.count, reader.broken) == (20, 0)
    assert reader.audio == str(clip)
    assert frames[0].image.shape == (48, 64, 3)


@given(
    start=st.integers(0, 19),
    length=st.integers(1, 30),
    stride=st.integers(1, 25),
    half=st.booleans(),
)
def test_selections(clip: Path, start: int, length: int, stride: int, half: bool) -> None:
    # At half a frame, begin with the next one.
    begin = Fraction(max(2 * start - half, 0), 20)
    end = Fraction(start + length, 10)
    reader = VideoReader(clip, begin, end, stride)
    frames = list(reader)
    expected = list(range(start, min(start + length, 20), stride))
    assert [number_of(frame.image) for frame in frames] == expected
    assert [frame.time for frame in frames] == [Fraction(i, 10) for i in expected]
    # Each lasts until the next one, the last one until the end.
    ends = [frame.time + frame.duration for frame in frames]
    assert ends == [*(frame.time for frame in frames[1:]), min(end, Fraction(2))]
    assert reader.rate == Fraction(10, stride)


def test_selections_that_make_no_sense(clip: Path) -> None:
    with pytest.raises(UsageError, match=r"end: later than start, which is 1\.5"):
        VideoReader(clip, Fraction(3, 2), Fraction(1))
    with pytest.raises(VideoError, match=r"clip\.mp4: ends before start, after 2 seconds"):
        VideoReader(clip, Fraction(2))


def test_a_variable_frame_rate(tmp_path: Path) -> None:
    times = [0, 1, 2, 10, 11, 30]
    path = make_video(tmp_path / "a.mkv", times, Fraction(1, 100))
    frames = list(VideoReader(path))
    assert [frame.time for frame in frames] == [Fraction(time, 100) for time in times]
    assert [frame.duration * 100 for frame in frames[:-1]] == [1, 1, 8, 1, 19]


def test_times_begin_at_zero_where_the_clock_of_the_file_does_not(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.ts")
    with av.open(str(path)) as container:
        assert container.start_time
    frames = list(VideoReader(path, Fraction(1, 2)))
    assert [number_of(frame.image) for frame in frames] == list(range(5, 20))
    assert frames[0].time == Fraction(1, 2)


def test_a_file_without_times(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.h264", range(8))
    frames = list(VideoReader(path))
    assert [number_of(frame.image) for frame in frames] == list(range(8))
    steps = {after.time - before.time for before, after in pairwise(frames)}
    assert len(steps) == 1


def test_a_clock_that_jumps_back_goes_on(tmp_path: Path) -> None:
    part = make_video(tmp_path / "a.ts").read_bytes()
    (tmp_path / "b.ts").write_bytes(part + part)
    frames = list(VideoReader(tmp_path / "b.ts"))
    assert [number_of(frame.image) for frame in frames] == 2 * list(range(20))
    times = [frame.time for frame in frames]
    assert times == sorted(set(times))
    assert abs(float(times[-1]) - 3.9) < 0.2


@pytest.mark.parametrize(
    ("matrix", "red"),
    [
        ((1, 0, 0, 1), "top right"),
        ((0, 1, -1, 0), "bottom right"),
        ((-1, 0, 0, -1), "bottom left"),
        ((0, -1, 1, 0), "top left"),
        ((-1, 0, 0, 1), "top left"),
        ((1, 0, 0, -1), "bottom right"),
        ((0, 1, 1, 0), "bottom left"),
        ((0, -1, -1, 0), "top right"),
    ],
)
def test_frames_are_upright(tmp_path: Path, matrix: tuple[int, int, int, int], red: str) -> None:
    path = make_video(tmp_path / "a.mp4", range(2), aspect=Fraction(4, 3))
    turn(path, matrix)
    frame = next(iter(VideoReader(path)))
    upright = matrix[0] != 0
    assert frame.image.shape == ((48, 64, 3) if upright else (64, 48, 3))
    assert frame.aspect == (Fraction(4, 3) if upright else Fraction(3, 4))
    height, width = frame.image.shape[:2]
    y = 3 if "top" in red else height - 4
    x = 3 if "left" in red else width - 4
    assert frame.image[y, x, 0] > 200
    assert frame.image[y, x, 1] < 20
    assert (frame.image[..., 0] > 200).mean() == pytest.approx(0.25, abs=0.05)


def test_the_colours_of_hdtv(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 720, 64, "yuv420p"
        image = np.full((720, 64, 3), (200, 40, 90), np.uint8)
        frame = av.VideoFrame.from_ndarray(image).reformat(
            format="yuv420p", dst_colorspace="ITU709", dst_color_range="MPEG"
        )
        frame.colorspace = 2  # says nothing
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    read = next(iter(VideoReader(path))).image
    assert np.abs(read.astype(int) - image).max() <= 4


def test_a_broken_packet_is_skipped_and_counted(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.avi", codec="mjpeg", pixels="yuvj420p")
    with av.open(str(path)) as container:
        packet = [packet for packet in container.demux(video=0) if packet.size][10]
        place, size = packet.pos, packet.size
    assert place is not None
    data = bytearray(path.read_bytes())
    data[place : place + size] = bytes(size)
    path.write_bytes(data)
    reader = VideoReader(path)
    frames = list(reader)
    assert [number_of(frame.image) for frame in frames] == [i for i in range(20) if i != 10]
    assert reader.broken == 1
    # The frame before stays in its place.
    assert frames[9].duration == Fraction(2, 10)


def test_a_file_that_was_cut_off_ends_early(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a.ts")
    path.write_bytes(path.read_bytes()[:-4000])
    numbers = [number_of(frame.image) for frame in VideoReader(path)]
    assert numbers == list(range(len(numbers)))
    assert 1 <= len(numbers) < 20


def test_what_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "text.mp4").write_text("text")
    with pytest.raises(VideoError, match=r"text\.mp4: not a video of a known format"):
        VideoReader(tmp_path / "text.mp4")
    with pytest.raises(VideoError, match=r"none\.mp4: no such file or directory"):
        VideoReader(tmp_path / "none.mp4")
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=48_000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
        frame.sample_rate = 48_000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with pytest.raises(VideoError, match=r"sound\.mp4: there is no video in it"):
        VideoReader(tmp_path / "sound.mp4")


def test_a_name_with_a_colon_is_no_address(tmp_path: Path) -> None:
    path = make_video(tmp_path / "a: 1.mp4", range(2))
    assert len(list(VideoReader(path))) == 2


def test_highway(shared: Path) -> None:
    reader = VideoReader(shared / "data/media/highway.mp4", end=Fraction(1, 5))
    frames = list(reader)
    assert [frame.time for frame in frames] == [Fraction(i, 25) for i in range(5)]
    assert frames[0].image.shape == (540, 960, 3)
    assert VideoReader(shared / "data/media/highway.mp4").count == 221


def test_what_a_frame_takes_goes_with_it(tmp_path: Path) -> None:
    """Its memory and that of its converter, without waiting for Python to look for circles."""
    path = make_video(tmp_path / "a.mp4", range(100))

    def alive() -> int:
        return sum(isinstance(found, av.VideoFrame) for found in gc.get_objects())

    gc.collect()
    gc.disable()
    try:
        before = alive()
        frames = iter(VideoReader(path))
        next(frames)
        threads = threads_of_the_process()
        for _ in range(80):
            next(frames)
        assert alive() - before < 10
        assert threads_of_the_process() <= threads
    finally:
        gc.enable()


def threads_of_the_process() -> int:
    """All of them, Python's and others (on Linux)."""
    folder = Path("/proc/self/task")
    return len(list(folder.iterdir())) if folder.is_dir() else 0
