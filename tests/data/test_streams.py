import itertools
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np
import pytest

from segformerpp.data import containers, streams
from segformerpp.data.streams import LiveReader
from segformerpp.errors import VideoError
from tests.made_videos import http_head, make_video, number_of, picture, rtsp_answer, serve


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Timeouts that tests can wait for."""
    monkeypatch.setattr(containers, "TIMEOUT_SECONDS", 3.0)
    monkeypatch.setattr(streams, "_PAUSES", (0.05, 0.2))


@pytest.fixture(scope="module")
def transport(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A transport stream of 20 frames."""
    return make_video(tmp_path_factory.mktemp("live") / "a.ts").read_bytes()


@contextmanager
def reading(source: str | int, **options: float) -> Iterator[LiveReader]:
    reader = LiveReader(source, **options)  # type: ignore[arg-type]
    try:
        yield reader
    finally:
        reader.close()


def send(connection: socket.socket, data: bytes, seconds: float = 0.5) -> None:
    """Send as slowly as a camera would."""
    step = max(len(data) // 20, 1)
    for place in range(0, len(data), step):
        connection.sendall(data[place : place + step])
        time.sleep(seconds / 20)


def http(
    answer: Callable[[int, socket.socket], None],
) -> Callable[[int, socket.socket], None]:
    def with_head(number: int, connection: socket.socket) -> None:
        http_head(connection)
        answer(number, connection)

    return with_head


def test_a_stream_that_ends_is_looked_for_again(
    transport: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    def answer(number: int, connection: socket.socket) -> None:
        if number < 2:
            http_head(connection)
            send(connection, transport)

    with (
        caplog.at_level(logging.WARNING),
        serve(answer) as address,
        reading(f"http://u:secret@{address}/", patience=3) as reader,
    ):
        frames = list(reader)
    numbers = [number_of(frame.image) for frame in frames]
    # Twice from 0 up, with some missing where the reader was faster than the eye.
    assert sum(after < before for before, after in itertools.pairwise(numbers)) == 1
    assert len(frames) + reader.dropped == 40
    assert reader.lost
    assert "; connecting again" in caplog.text
    assert "secret" not in caplog.text + reader.name
    times = [frame.time for frame in frames]
    assert times[0] == 0
    assert times == sorted(set(times))


def test_a_stream_that_stalls_is_looked_for_again(
    transport: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    held, woken = threading.Event(), []

    def answer(number: int, connection: socket.socket) -> None:
        if number == 0:
            send(connection, transport[: len(transport) // 2])
            held.wait(60)
            woken.append(number)
        send(connection, transport)

    with (
        caplog.at_level(logging.WARNING),
        serve(http(answer)) as address,
        reading(f"http://{address}/", patience=10) as reader,
    ):
        frames = iter(reader)
        while number_of(next(frames).image) < 15:
            pass
        assert not woken
    held.set()
    assert "nothing came for 3 seconds; connecting again" in caplog.text


def test_a_change_of_size(tmp_path: Path) -> None:
    parts = [
        make_video(tmp_path / f"{width}.ts", sizes=[(48, width)]).read_bytes() for width in (64, 96)
    ]

    def answer(number: int, connection: socket.socket) -> None:
        for part in parts:
            send(connection, part, 1)

    with serve(http(answer)) as address, reading(f"http://{address}/", patience=0) as reader:
        widths = [frame.image.shape[1] for frame in reader]
    assert [width for width, _ in itertools.groupby(widths)] == [64, 96]


def test_broken_packets(tmp_path: Path) -> None:
    encoded = cv2.imencode(".jpg", picture(5))[1].tobytes()

    def answer(number: int, connection: socket.socket) -> None:
        http_head(connection, "multipart/x-mixed-replace; boundary=x")
        for i in range(20):
            body = bytes(len(encoded)) if i == 10 else encoded
            head = f"--x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(body)}\r\n\r\n"
            connection.sendall(head.encode() + body + b"\r\n")
            time.sleep(0.03)

    with serve(answer) as address, reading(f"http://{address}/", patience=0) as reader:
        frames = list(reader)
    assert reader.broken == 1
    assert len(frames) + reader.dropped == 19
    assert {number_of(frame.image) for frame in frames} == {5}


def test_rtsp(transport: bytes) -> None:
    def packets() -> Iterator[bytes]:
        for place in range(0, len(transport), 188):
            time.sleep(0.01)
            yield transport[place : place + 188]

    def answer(number: int, connection: socket.socket) -> None:
        rtsp_answer(connection, packets)

    with serve(answer) as address, reading(f"rtsp://{address}/x", patience=0) as reader:
        numbers = [number_of(frame.image) for frame in reader]
    assert len(numbers) + reader.dropped >= 15
    assert numbers == sorted(numbers)


def test_who_is_slow_gets_the_newest(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed, asked = threading.Semaphore(1), [0]

    class Waiting(Camera):
        def read(self) -> tuple[bool, np.ndarray | None]:
            asked[0] += 1
            allowed.acquire()
            return True, picture(asked[0] - 1)

    monkeypatch.setattr(cv2, "VideoCapture", Waiting)
    monkeypatch.setattr(Camera, "opened", 0)
    with reading(0) as reader:
        frames = iter(reader)
        assert number_of(next(frames).image) == 0
        for before, newest in ((0, 5), (5, 9)):
            allowed.release(newest - before)
            while asked[0] < newest + 2:  # the newest is ready once the one behind it is asked for
                time.sleep(0.01)
            assert number_of(next(frames).image) == newest
        assert reader.dropped == 4 + 3
        reader.close()
        allowed.release()


def test_what_cannot_be_opened() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(VideoError, match=rf"http://127.0.0.1:{port}/a: connection refused"):
        LiveReader(f"http://127.0.0.1:{port}/a")
    with pytest.raises(VideoError, match="camera 97: there is no such camera, or it is in use"):
        LiveReader(97)

    held = threading.Event()

    def answer(number: int, connection: socket.socket) -> None:
        held.wait(60)

    with (
        serve(http(answer)) as address,
        pytest.raises(VideoError, match=r"nothing came for 3 seconds"),
    ):
        LiveReader(f"http://{address}/")
    held.set()


class Camera:
    """A camera of 50 blue pictures a second, which is unplugged now and then."""

    opened = 0

    def __init__(self, number: int) -> None:
        Camera.opened += 1
        self.left = 10 if Camera.opened < 3 else 0

    def isOpened(self) -> bool:  # noqa: N802 (OpenCV's name)
        return Camera.opened < 3

    def get(self, what: int) -> float:
        return 50.0

    def read(self) -> tuple[bool, np.ndarray | None]:
        time.sleep(0.02)
        self.left -= 1
        return (
            (True, np.full((48, 64, 3), (255, 0, 0), np.uint8)) if self.left >= 0 else (False, None)
        )

    def release(self) -> None:
        with suppress(AttributeError):
            del self.left


def test_a_camera(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr(Camera, "opened", 0)
    with reading(0, patience=3) as reader:
        frames = list(reader)
    assert reader.name == "camera 0"
    assert reader.rate == 50
    assert len(frames) + reader.dropped == 20
    assert frames[0].image[0, 0].tolist() == [0, 0, 255]
    assert reader.lost == "there is no such camera, or it is in use"


def test_an_end_and_a_stride(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr(Camera, "opened", 0)
    with reading(0, end=Fraction(1, 10), stride=2) as reader:  # type: ignore[arg-type]
        frames = list(reader)
    assert 1 <= len(frames) <= 3
    assert frames[-1].time < Fraction(1, 10)
    assert reader.lost is None


def test_a_camera_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    held, woken = threading.Event(), []

    class Hanging(Camera):
        def read(self) -> tuple[bool, np.ndarray | None]:
            if self.left < 8:
                held.wait(60)
                woken.append(self.left)
            return super().read()

    monkeypatch.setattr(cv2, "VideoCapture", Hanging)
    monkeypatch.setattr(Camera, "opened", 0)
    monkeypatch.setattr(streams, "TIMEOUT_SECONDS", 1.0)
    with reading(0, patience=0.2) as reader:
        assert len(list(reader)) >= 1
    assert not woken
    held.set()
    assert reader.lost == "no picture comes"
