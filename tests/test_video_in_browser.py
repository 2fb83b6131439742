"""What we write plays to its end in a real browser."""

import json
import re
import shutil
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from segformerpp.data.video import VideoReader
from segformerpp.video import process_video
from tests.made_videos import make_video
from tests.test_video import Inverted, Inverter

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs Chromium")

PAGE = b"""<!doctype html><video id=v muted src="/video.mp4"></video><script>
const video = document.getElementById("v");
function report(what) {
  const quality = video.getVideoPlaybackQuality();
  fetch("/report", {method: "POST", body: JSON.stringify({what, duration: video.duration,
    time: video.currentTime, width: video.videoWidth, height: video.videoHeight,
    frames: quality.totalVideoFrames, sound: video.webkitAudioDecodedByteCount})});
}
video.onended = () => report("ended");
video.onerror = () => report("error: " + video.error.message);
video.onloadedmetadata = () => { video.playbackRate = 16; video.play(); };
</script>"""


@contextmanager
def page_with(video: Path) -> Iterator[tuple[str, Callable[[], dict[str, Any] | None]]]:
    """Serve a page that plays a video, with parts of the file on request as browsers want it."""
    reported = threading.Event()
    report: dict[str, Any] = {}

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path != "/video.mp4":
                return self.answer(200, PAGE if self.path == "/" else b"", "text/html")
            data = video.read_bytes()
            found = re.match(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if not found:
                return self.answer(200, data, "video/mp4")
            first, last = int(found[1]), int(found[2] or len(data) - 1)
            span = f"bytes {first}-{last}/{len(data)}"
            return self.answer(206, data[first : last + 1], "video/mp4", span)

        def do_POST(self) -> None:
            report.update(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.answer(204, b"", "text/plain")
            reported.set()

        def answer(self, code: int, body: bytes, kind: str, span: str = "") -> None:
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Accept-Ranges", "bytes")
            if span:
                self.send_header("Content-Range", span)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *arguments: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield (
            f"http://127.0.0.1:{server.server_port}/",
            lambda: report if reported.wait(90) else None,
        )
    finally:
        server.shutdown()
        server.server_close()


def play(video: Path, profile: Path) -> dict[str, Any]:
    """What Chromium reports once it has played a video, or failed to."""
    assert BROWSER
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync"]
    command += ["--autoplay-policy=no-user-gesture-required", f"--user-data-dir={profile}"]
    with page_with(video) as (address, wait):
        browser = subprocess.Popen(
            [*command, address], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            report = wait()
        finally:
            browser.terminate()
            browser.wait(30)
    assert report, "the browser did not get to the end"
    return report


def plot(result: Inverted) -> Image.Image:
    return result.plot()


def test_a_small_video_of_odd_size_and_variable_rate(tmp_path: Path) -> None:
    source = make_video(
        tmp_path / "a.mkv", (0, 100, 150, 600, 700, 1400), Fraction(1, 1000), audio="aac"
    )

    class Odd(Inverted):
        def plot(self) -> Image.Image:
            return Image.fromarray(np.ascontiguousarray(255 - self.image[:-1, :-1]))

    class OddInverter(Inverter):
        def __call__(self, image: np.ndarray) -> Inverted:
            return Odd(image)

    out = tmp_path / "out.mp4"
    list(process_video(OddInverter(), VideoReader(source), {out: plot}))
    report = play(out, tmp_path / "profile")
    assert report["what"] == "ended"
    assert (report["height"], report["width"]) == (48, 64)
    assert report["duration"] == pytest.approx(1.5, abs=0.1)


@pytest.mark.parametrize(
    ("name", "frames", "seconds", "sound"),
    [
        ("highway", 221, 8.84, True),
        pytest.param("person_walking", 1394, 139.4, False, marks=pytest.mark.slow),
    ],
)
def test_the_videos_of_the_project(
    shared: Path, tmp_path: Path, name: str, frames: int, seconds: float, sound: bool
) -> None:
    out = tmp_path / "out.mp4"
    reader = VideoReader(shared / f"data/media/{name}.mp4")
    steps = list(process_video(Inverter(), reader, {out: plot}))
    assert len(steps) == frames
    report = play(out, tmp_path / "profile")
    assert report["what"] == "ended"
    assert report["duration"] == pytest.approx(seconds, abs=0.001)
    assert report["time"] == pytest.approx(seconds, abs=0.001)
    assert bool(report["sound"]) == sound
    assert len(list(VideoReader(out))) == frames
