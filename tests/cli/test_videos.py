import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from segformerpp import cli
from segformerpp.data import streams
from segformerpp.data.video import VideoReader
from segformerpp.terminal import asked_to_stop
from tests.made_videos import make_video

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a small video and a small image."""
    monkeypatch.chdir(tmp_path)
    make_video(tmp_path / "clip.mp4")
    Image.new("RGB", (64, 48)).save("a.png")
    return tmp_path


@pytest.fixture
def predict(here: Path, random_checkpoint: Path) -> Callable[..., int]:
    def run(*arguments: str) -> int:
        command = ("predict", "--model", str(random_checkpoint), "--device", "cpu", *arguments)
        return cli.main(command)

    return run


def files_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def test_a_video(predict: Callable[..., int], here: Path, capsys: Captured) -> None:
    assert predict("clip.mp4", "--json", "frames.jsonl") == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    assert captured.out.startswith("clip.mp4: 20 frames done, ")
    assert "; results in segmented; the network took" in captured.out
    assert files_in(here / "segmented") == ["clip_overlay.mp4"]
    frames = list(VideoReader(here / "segmented" / "clip_overlay.mp4"))
    assert len(frames) == 20
    assert frames[0].image.shape == (48, 64, 3)
    rows = [json.loads(line) for line in (here / "frames.jsonl").read_text().splitlines()]
    assert [row["frame"] for row in rows] == list(range(20))
    assert [row["time"] for row in rows] == [i / 10 for i in range(20)]
    for row in rows:
        assert row["video"] == "clip.mp4"
        assert sum(row["shares"].values()) == pytest.approx(1, abs=1e-4)
        assert 0 < row["network_ms"] < row["latency_ms"]


def test_options_of_videos(predict: Callable[..., int], here: Path) -> None:
    options = "--start 0:00.5 --end 1.5 --stride 3 --save color,overlay --out o --quiet"
    assert predict("*.mp4", *options.split()) == 0
    assert files_in(here / "o") == ["clip_color.mp4", "clip_overlay.mp4"]
    frames = list(VideoReader(here / "o" / "clip_color.mp4"))
    assert [float(frame.time) for frame in frames] == pytest.approx([0, 0.3, 0.6, 0.9])
    assert float(frames[-1].time + frames[-1].duration) == pytest.approx(1)


def test_reusing_matches(predict: Callable[..., int], here: Path) -> None:
    rows = {}
    for frames in (1, 3):
        options = f"--merge fast --end 0.7 --reuse-match {frames} --save labels --json r.jsonl"
        assert predict("clip.mp4", *options.split()) == 0
        lines = (here / "r.jsonl").read_text().splitlines()
        rows[frames] = [json.loads(line)["shares"] for line in lines]
    assert len(rows[3]) == 7
    assert rows[3][::3] == rows[1][::3]


def test_videos_beside_images(predict: Callable[..., int], here: Path, capsys: Captured) -> None:
    assert predict("a.png", "clip.mp4", "--end", "0.2") == 0
    outputs = ["a_labels.png", "a_overlay.png", "clip_overlay.mp4"]
    assert files_in(here / "segmented") == outputs
    out = capsys.readouterr().out
    assert "1 of 1 images done" in out
    assert "clip.mp4: 2 frames done" in out
    assert predict("a.png", "clip.mp4", "--resume") == 0
    out = capsys.readouterr().out
    assert "nothing to do: all 1 images are done" in out
    assert "nothing to do: all 1 videos are done" in out
    assert predict("a.png", "clip.mp4", "--json", "r.json") == 2
    assert "json: for images or for videos, not both" in capsys.readouterr().err


def test_numbers_without_a_video(predict: Callable[..., int], here: Path) -> None:
    assert predict("clip.mp4", "--save", "labels", "--json", "r.jsonl", "--end", "0.3") == 0
    assert not (here / "segmented").exists()
    assert len((here / "r.jsonl").read_text().splitlines()) == 3


def test_what_cannot_be_read_is_named(
    predict: Callable[..., int], here: Path, capsys: Captured
) -> None:
    (here / "bad.mp4").write_text("text")
    assert predict("bad.mp4", "clip.mp4", "--json", "r.jsonl") == 1
    captured = capsys.readouterr()
    assert captured.err == "failed: bad.mp4: not a video of a known format\n"
    assert "clip.mp4: 20 frames done" in captured.out
    rows = [json.loads(line) for line in (here / "r.jsonl").read_text().splitlines()]
    assert rows[0] == {"video": "bad.mp4", "error": "bad.mp4: not a video of a known format"}
    assert len(rows) == 21


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("clip.mp4 --save labels", "save: for videos overlay or color, or use --json"),
        (
            "clip.mp4 --save nothing",
            "save: any of labels, overlay, color, probs, polygons, not 'nothing'",
        ),
        ("clip.mp4 --start 2 --end 1", "end: later than start, which is 2"),
        ("clip.mp4 --start soon", "start: seconds, such as 12.5, or H:MM:SS, not 'soon'"),
        ("clip.mp4 --stride 0", "stride: a whole number from 1 up, not 0"),
        ("clip.mp4 --reconnect -1", "reconnect: seconds, from 0 up, not -1.0"),
        ("ftp://x/a.mp4", "ftp://x/a.mp4: an address begins with one of http, https, rtmp"),
        ("clip.mp4 a.png --reuse-match 2", "reuse_match: for videos; images are matched one by"),
        ("clip.mp4 --reuse-match 2", "reuse_match: nothing is matched (bsm) in the plan none"),
        ("clip.mp4 --json .", "json: . is a folder, not a file"),
    ],
)
def test_wrong_usage(
    predict: Callable[..., int], capsys: Captured, options: str, said: str
) -> None:
    assert predict(*options.split()) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"error: {said}")
    assert err.count("\n") == 1


class Camera:
    """A camera of 30 frames a second; after 15 it is unplugged for good."""

    there = True

    def __init__(self, number: int) -> None:
        self.left = 15

    def isOpened(self) -> bool:  # noqa: N802 (OpenCV's name)
        return Camera.there

    def get(self, what: int) -> float:
        return 30.0

    def read(self) -> tuple[bool, np.ndarray | None]:
        time.sleep(0.03)
        self.left -= 1
        if self.left < 0:
            Camera.there = False
            return False, None
        return True, np.zeros((48, 64, 3), np.uint8)

    def release(self) -> None:
        pass


def test_a_camera_that_is_lost(
    predict: Callable[..., int], here: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr(Camera, "there", True)
    monkeypatch.setattr(streams, "_PAUSES", (0.05, 0.1))
    assert predict("0", "--reconnect", "0.2") == 1
    err = capsys.readouterr().err.splitlines()
    assert err[0] == "warning: camera 0: no picture comes; connecting again"
    assert err[-1].startswith("failed: camera 0: there is no such camera, or it is in use; what")
    assert list(VideoReader(here / "segmented" / "camera-0_overlay.mp4"))


def test_a_camera_for_a_while(
    predict: Callable[..., int], here: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cv2, "VideoCapture", Camera)
    monkeypatch.setattr(Camera, "there", True)
    assert predict("0", "--start", "1") == 1
    assert "failed: camera 0: start is only for videos with an end" in capsys.readouterr().err
    assert predict("0", "--end", "0.2") == 0
    frames = list(VideoReader(here / "segmented" / "camera-0_overlay.mp4"))
    assert frames[-1].time < 0.2


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_finishes_the_file(
    here: Path, random_checkpoint: Path, number: signal.Signals
) -> None:
    make_video(here / "long.mp4", range(5000))
    command = [sys.executable, "-m", "segformerpp", "predict", "long.mp4", "--threads", "1"]
    process = subprocess.Popen(
        [*command, "--model", str(random_checkpoint), "--device", "cpu", "--json", "r.jsonl"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    out = here / "segmented"
    while not (out.is_dir() and any(out.iterdir())):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(number)
    said, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert err.startswith("interrupted: long.mp4: ")
    assert err.count("\n") == 1
    assert "frames done" in said
    assert files_in(out) == ["long_overlay.mp4"]
    frames = len(list(VideoReader(out / "long_overlay.mp4")))
    assert 1 <= frames < 5000
    assert len((here / "r.jsonl").read_text().splitlines()) == frames


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_asking_twice_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)

    def ask(stop: threading.Event) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(0.01)  # where signals are handled
        assert stop.is_set()
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    with asked_to_stop() as stop, pytest.raises(KeyboardInterrupt):
        ask(stop)
    assert signal.getsignal(signal.SIGINT) is before


def test_in_other_threads_nothing_asks() -> None:
    asked: list[bool] = []

    def run() -> None:
        with asked_to_stop() as stop:
            asked.append(stop.is_set())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert asked == [False]
