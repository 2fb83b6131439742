import socket
import threading
import time
from fractions import Fraction
from pathlib import Path

import pytest

from segformerpp.data import containers
from segformerpp.data.streams import LiveReader
from segformerpp.data.video import VideoReader
from segformerpp.data.video_sources import VideoSource
from segformerpp.data.video_writer import VideoWriter
from segformerpp.errors import UsageError, VideoError
from segformerpp.videos_folder import Selection, VideosFolder, open_reader
from tests.made_videos import http_head, make_video, number_of, serve


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """A video with its index in front, as servers have them."""
    reader = VideoReader(make_video(tmp_path / "clip.mp4"))
    path = tmp_path / "front.mp4"
    with VideoWriter(path, reader.rate, reader.time_base) as writer:
        for frame in reader:
            writer.write(frame.image, frame)
    return path


def send(connection: socket.socket, data: bytes, stated: int) -> None:
    request = b""
    while b"\r\n\r\n" not in request:
        request += connection.recv(4096)
    head = f"HTTP/1.1 200 OK\r\nContent-Type: video/mp4\r\nContent-Length: {stated}\r\n"
    connection.sendall(f"{head}Connection: close\r\n\r\n".encode() + data)


def test_a_video_on_a_server_is_read_like_a_file(clip: Path) -> None:
    data = clip.read_bytes()
    with serve(lambda number, connection: send(connection, data, len(data))) as address:
        source = VideoSource(f"http://{address}/a.mp4", "a")
        reader = open_reader(source, Selection(stride=2))
        assert isinstance(reader, VideoReader)
        assert [number_of(frame.image) for frame in reader] == list(range(0, 20, 2))


def test_a_video_on_a_server_that_breaks_off_has_failed(clip: Path) -> None:
    data = clip.read_bytes()
    half = data[: data.index(b"mdat") + 400]

    with serve(lambda number, connection: send(connection, half, len(data))) as address:
        reader = open_reader(VideoSource(f"http://{address}/a.mp4", "a"), Selection())
        with pytest.raises(VideoError, match=f"http://{address}/a.mp4: "):
            list(reader)


def test_a_video_on_a_server_that_stalls_has_failed(
    clip: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "TIMEOUT_SECONDS", 3.0)
    data, held = clip.read_bytes(), threading.Event()

    def answer(number: int, connection: socket.socket) -> None:
        if number == 0:
            send(connection, data, len(data))
        else:
            send(connection, data[: data.index(b"mdat") + 400], len(data))
            held.wait(60)

    with serve(answer) as address:
        source = VideoSource(f"http://{address}/a.mp4", "a")
        with pytest.raises(VideoError, match=r"nothing came for 3 seconds"):
            list(open_reader(source, Selection()))
    held.set()


def test_what_states_no_duration_is_live(tmp_path: Path) -> None:
    data = make_video(tmp_path / "a.ts").read_bytes()

    def answer(number: int, connection: socket.socket) -> None:
        http_head(connection)
        for place in range(0, len(data), 1000):
            connection.sendall(data[place : place + 1000])
            time.sleep(0.02)

    with serve(answer) as address:
        source = VideoSource(f"http://{address}/", "a")
        with pytest.raises(VideoError, match="start is only for videos with an end"):
            open_reader(source, Selection(start=Fraction(1)))
        reader = open_reader(source, Selection(patience=0))
        assert isinstance(reader, LiveReader)
        reader.close()


def test_selections() -> None:
    with pytest.raises(UsageError, match="end: later than start, which is 2"):
        Selection(start=Fraction(2), end=Fraction(2))
    with pytest.raises(UsageError, match="stride: a whole number from 1 up, not 0"):
        Selection(stride=0)
    for wrong in (-1.0, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="reconnect: seconds, from 0 up"):
            Selection(patience=wrong)


def test_what_is_done(tmp_path: Path) -> None:
    folder = VideosFolder(tmp_path, ("overlay", "labels"))
    clip = VideoSource(tmp_path / "clip.mp4", "clip")
    assert not folder.is_done(clip)
    (tmp_path / "clip_overlay.mp4").touch()
    assert folder.is_done(clip)
    assert not folder.is_done(VideoSource("rtsp://x/clip", "clip"))
    assert not VideosFolder(tmp_path, ("labels",), tmp_path / "r.jsonl").is_done(clip)
