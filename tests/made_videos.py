"""Small videos made on the spot, and servers on loopback that misbehave on request."""

import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

SIZE = (48, 64)


def picture(number: int, size: tuple[int, int] = SIZE) -> np.ndarray:
    """A frame whose left half is as bright as its number says; the top right corner is red."""
    image = np.full((*size, 3), 20 + 10 * number % 200, np.uint8)
    image[:, size[1] // 2 :] = 0
    image[: size[0] // 2, size[1] // 2 :] = (255, 0, 0)
    return image


def number_of(image: np.ndarray) -> int:
    """The number of a frame that `picture` made, up to 19."""
    height, width = image.shape[:2]
    return round((float(image[:height, : width // 4].mean()) - 20) / 10)


def make_video(
    path: Path,
    times: Sequence[int] = tuple(range(20)),
    time_base: Fraction = Fraction(1, 10),
    sizes: Sequence[tuple[int, int]] = (SIZE,),
    codec: str = "libx264",
    audio: str | None = None,
    aspect: Fraction = Fraction(1),
    pixels: str = "yuv420p",
) -> Path:
    """Write frames 0, 1, 2, ... shown at `times` (in units of the time base), and a tone."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=Fraction(10))
        assert isinstance(stream, av.VideoStream)
        stream.height, stream.width = sizes[0]
        stream.pix_fmt = pixels
        stream.codec_context.time_base = time_base
        stream.codec_context.sample_aspect_ratio = aspect
        stream.codec_context.gop_size = 5
        sound: av.AudioStream | None = None
        if audio:
            added = container.add_stream(audio, rate=48_000)
            assert isinstance(added, av.AudioStream)
            sound = added
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number, sizes[0])).reformat(format=pixels)
            frame.pts, frame.time_base = time, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if sound:
            seconds = (times[-1] + 1) * time_base
            total = int(seconds * 48_000)
            step = sound.codec_context.frame_size or 1024
            wave = np.sin(np.arange(total) / 20).astype(np.float32) * 0.3
            for start in range(0, total, step):
                part = av.AudioFrame.from_ndarray(wave[None, start : start + step], "fltp", "mono")
                part.sample_rate, part.pts = 48_000, start
                part.time_base = Fraction(1, 48_000)
                container.mux(sound.encode(part))
            container.mux(sound.encode(None))
    return path


def turn(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Give an MP4 file the display matrix (a, b, c, d), each -1, 0 or 1."""
    data = bytearray(path.read_bytes())
    place = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value * 0x10000 for value in matrix)
    words = (a, b, 0, c, d, 0, 0, 0, 0x40000000)
    data[place : place + 36] = b"".join(w.to_bytes(4, "big", signed=True) for w in words)
    path.write_bytes(data)


Answer = Callable[[int, socket.socket], None]


@contextmanager
def serve(answer: Answer) -> Iterator[str]:
    """A server on loopback: `answer(n, connection)` is called for the n-th one.

    Yields:
        "127.0.0.1:<port>".
    """
    server = socket.create_server(("127.0.0.1", 0))
    closed = threading.Event()

    def one(number: int, connection: socket.socket) -> None:
        with connection:
            try:
                answer(number, connection)
            except OSError:
                return

    def listen() -> None:
        number = 0
        while not closed.is_set():
            try:
                connection, _ = server.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(number, connection), daemon=True).start()
            number += 1

    threading.Thread(target=listen, daemon=True).start()
    try:
        yield f"127.0.0.1:{server.getsockname()[1]}"
    finally:
        closed.set()
        server.close()


def http_head(connection: socket.socket, kind: str = "video/mp2t") -> None:
    """Read a request, and begin an answer that goes on until the connection ends."""
    request = b""
    while b"\r\n\r\n" not in request:
        request += connection.recv(4096)
    connection.sendall(
        f"HTTP/1.1 200 OK\r\nContent-Type: {kind}\r\nConnection: close\r\n\r\n".encode()
    )


def rtsp_answer(connection: socket.socket, stream: Callable[[], Iterator[bytes]]) -> None:
    """Speak RTSP: send an MPEG transport stream in RTP packets over the same connection."""
    rest = b""
    while True:
        while b"\r\n\r\n" not in rest:
            if not (more := connection.recv(4096)):
                return
            rest += more
        request, _, rest = rest.partition(b"\r\n\r\n")
        lines = request.decode().split("\r\n")
        method = lines[0].split()[0]
        sequence = next(line for line in lines if line.lower().startswith("cseq"))
        head, body = [sequence], ""
        if method == "OPTIONS":
            head.append("Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN")
        elif method == "DESCRIBE":
            body = "v=0\r\no=- 0 0 IN IP4 127.0.0.1\r\ns=x\r\nt=0 0\r\n"
            body += "m=video 0 RTP/AVP 33\r\na=control:track\r\n"
            head += ["Content-Type: application/sdp", f"Content-Length: {len(body)}"]
        elif method == "SETUP":
            head += ["Transport: RTP/AVP/TCP;unicast;interleaved=0-1", "Session: 1"]
        else:
            head.append("Session: 1")
        connection.sendall("\r\n".join(["RTSP/1.0 200 OK", *head, "", body]).encode())
        if method == "PLAY":
            break
    for number, payload in enumerate(stream()):
        packet = bytes([0x80, 33]) + number.to_bytes(2, "big") + (9000 * number).to_bytes(4, "big")
        packet += bytes(4) + payload
        connection.sendall(b"$\0" + len(packet).to_bytes(2, "big") + packet)
