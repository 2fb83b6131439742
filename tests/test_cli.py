import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import segformerpp
from segformerpp import cli, terminal
from segformerpp.plans import PRESETS, MergePlan
from segformerpp.terminal import Progress

SAMPLE = Path(__file__).parents[1] / "samples" / "highway.png"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A current folder with a small image `a.png`."""
    monkeypatch.chdir(tmp_path)
    Image.open(SAMPLE).resize((96, 54)).save("a.png")
    return tmp_path


@pytest.fixture
def predict(here: Path, random_checkpoint: Path) -> Callable[..., int]:
    def run(*arguments: str) -> int:
        command = ("predict", "--model", str(random_checkpoint), "--device", "cpu", *arguments)
        return cli.main(command)

    return run


def files_in(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


Captured = pytest.CaptureFixture[str]


# What it is started with.


def test_importing_the_package_loads_no_torch() -> None:
    code = (
        "import segformerpp, sys; assert 'torch' not in sys.modules;"
        "segformerpp.MergePlan.parse('hq'); assert 'torch' not in sys.modules;"
        "assert segformerpp.__version__"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("arguments", [["--help"], ["predict", "--help"], ["plans"], ["--version"]])
def test_what_needs_no_torch_loads_none(arguments: list[str]) -> None:
    code = (
        "import sys; from segformerpp.cli import main\n"
        "try: code = main(sys.argv[1:])\n"
        "except SystemExit as end: code = end.code\n"
        "assert 'torch' not in sys.modules; sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout


def test_everything_public_is_there() -> None:
    for name in segformerpp.__all__:
        assert getattr(segformerpp, name) is not None
    assert set(segformerpp.__all__) <= set(dir(segformerpp))
    with pytest.raises(AttributeError, match="no attribute 'foo'"):
        segformerpp.foo  # noqa: B018


@pytest.mark.parametrize("command", [function.__name__ for function in cli.COMMANDS])
def test_help_explains_every_option(command: str, capsys: Captured) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, "--help"])
    text = capsys.readouterr().out
    assert f"  segformerpp {command}" in text  # an example
    assert "Args:" not in text
    assert "null" not in text
    assert "type:" not in text


# predict


def test_predict_in_a_process_of_its_own(tmp_path: Path, random_checkpoint: Path) -> None:
    command = [sys.executable, "-m", "segformerpp", "predict", str(SAMPLE), "--threads", "1"]
    done = subprocess.run(
        [*command, "--model", str(random_checkpoint), "--merge", "fast", "--device", "cpu"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert done.stdout.count("\n") == 1
    assert "1 of 1 images done; results in segmented; the network took" in done.stdout
    assert "(merge fast, openvino f32 on cpu)" in done.stdout
    assert files_in(tmp_path) == [
        *("segmented/highway_labels.png", "segmented/highway_overlay.png")
    ]
    with Image.open(SAMPLE) as sample, Image.open(tmp_path / files_in(tmp_path)[0]) as labels:
        assert labels.size == sample.size
        assert labels.mode == "L"


def test_outputs_and_report(predict: Callable[..., int], here: Path, capsys: Captured) -> None:
    (here / "bad.jpg").write_bytes(b"")
    code = predict(".", "--save", "labels, probs,color", "--json", "r.json", "--out", "o")
    captured = capsys.readouterr()
    assert code == 1
    assert captured.err == "failed: bad.jpg: the file is empty\n"
    assert "1 of 2 images done, 1 failed; results in o;" in captured.out
    assert files_in(here / "o") == ["a_color.png", "a_labels.png", "a_probs.npz"]
    rows = json.loads((here / "r.json").read_text())
    assert [row["image"] for row in rows] == ["a.png", "bad.jpg"]
    assert rows[0]["size"] == "54x96"
    assert np.load(here / "o" / "a_probs.npz")["probabilities"].shape == (11, 54, 96)


def test_options_reach_the_network(predict: Callable[..., int], here: Path) -> None:
    options = "--merge 2x2 --runtime torch --precision bf16 --size 64x64"
    options += " --batch 2 --threads 1 --tile none"
    assert predict("a.png", "--json", "r.json", *options.split(), "--offline") == 0
    row = json.loads((here / "r.json").read_text())[0]
    assert {key: row[key] for key in ("merge", "precision", "batch", "threads")} == {
        "merge": "2x2",
        "precision": "bf16",
        "batch": 2,
        "threads": 1,
    }
    assert predict("a.png", "--tile", "32x64", "--overlap", "16") == 0
    assert predict("a.png", "--tile", "32x64", "--overlap", "0x48") == 0


def test_resume(predict: Callable[..., int], here: Path, capsys: Captured) -> None:
    Image.new("RGB", (40, 40)).save(here / "b.png")
    assert predict("a.png") == 0
    first = (here / "segmented" / "a_labels.png").stat().st_mtime_ns
    assert predict("a.png", "b.png", "--resume") == 0
    assert "1 of 2 images done, 1 done before" in capsys.readouterr().out
    assert (here / "segmented" / "a_labels.png").stat().st_mtime_ns == first
    assert predict("a.png", "b.png", "--resume") == 0
    assert "nothing to do: all 2 images are done" in capsys.readouterr().out
    assert predict("a.png") == 0
    assert (here / "segmented" / "a_labels.png").stat().st_mtime_ns != first


def test_results_are_no_sources(predict: Callable[..., int], here: Path) -> None:
    assert predict(".") == 0
    assert predict(".") == 0
    assert predict("**/*.png", "--resume") == 0
    assert files_in(here / "segmented") == ["a_labels.png", "a_overlay.png"]


def test_results_among_the_sources_are_none(predict: Callable[..., int], here: Path) -> None:
    for source in (".", ".", "*.png", "**/*.png"):
        assert predict(source, "--out", ".", "--resume", "--save", "labels,color") == 0
        assert files_in(here) == ["a.png", "a_color.png", "a_labels.png"]


def test_an_image_too_large_for_the_memory(
    predict: Callable[..., int], here: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segformerpp.models import Segformer

    Image.new("RGB", (200, 200)).save(here / "b.png")
    Image.new("RGB", (40, 40)).save(here / "c.png")
    forward = Segformer.forward

    def fail(model: Segformer, x: Any) -> Any:
        if x.shape[2] == 200:
            raise RuntimeError("can't allocate memory")
        return forward(model, x)

    monkeypatch.setattr(Segformer, "forward", fail)
    assert predict(".", "--runtime", "torch") == 1
    captured = capsys.readouterr()
    assert "2 of 3 images done, 1 failed" in captured.out
    assert captured.err.startswith("failed: b.png: 1 x 200 x 200 pixels do not fit into the memory")
    assert captured.err.count("\n") == 1


def test_quiet(predict: Callable[..., int], here: Path, capsys: Captured) -> None:
    (here / "bad.png").write_text("text")
    assert predict("a.png", "--quiet") == 0
    assert predict("a.png", "--quiet", "--resume") == 0
    assert capsys.readouterr() == ("", "")
    assert predict("bad.png", "--quiet") == 1
    assert capsys.readouterr() == ("", "failed: bad.png: not an image of a known format\n")


def test_warnings_of_ours_are_one_line(
    predict: Callable[..., int], here: Path, capsys: Captured
) -> None:
    assert predict("a.png", "--merge", "q4:mode=bsm,r=0.5,sx=7,sy=7") == 0
    err = capsys.readouterr().err
    assert err == (
        "warning: a token grid of 2 x 3 has no whole cell of 7 x 7: nothing is merged there\n"
    )


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["nope.png"], "nope.png: no such file or folder"),
        (["*.tif"], "*.tif: no image matches this pattern"),
        (["a.png", "--merge", "bad"], "merge: 'bad' is neither a preset"),
        (["a.png", "--merge", "q3:mode=bsm,r=2,sx=2,sy=2"], "stage 3, q.r: a merge ratio"),
        (["a.png", "--model", "nope"], "nope"),
        (["a.png", "--model", "a.png"], "a.png"),
        (["a.png", "--size", "12"], "size: height x width in pixels, such as 512x1024, not '12'"),
        (["a.png", "--size", "0x12"], "size: height and width in pixels, from 1 up"),
        (["a.png", "--tile", "many"], "tile: height x width"),
        (["a.png", "--overlap", "x"], "overlap: pixels, such as 256"),
        (["a.png", "--tile", "64x64", "--overlap", "64"], "overlap: less than the tile's 64x64"),
        (["a.png", "--size", "1000000x1000000"], "size: at most 1073741824 pixels"),
        (["a.png", "--threads", "9999"], "threads: a whole number from 1 to "),
        (["~no-such-user/x.png"], "~no-such-user/x.png: no such file or folder"),
        (["x" * 300], "x: File name too long"),
        (["a.png", "--out", "~no-such-user/y"], "out: ~no-such-user/y: there is no such user"),
        (["a.png", "--json", "~no-such-user/y"], "json: ~no-such-user/y: there is no such user"),
        (["a.png", "--tile", "8x8"], "tile: height and width in pixels, from 32 up"),
        (["a.png", "--threads", "x"], "--threads: 'x' is not valid here"),
        (["a.png", "--batch", "1.5"], "--batch: '1.5' is not valid here"),
        (["a.png", "--batch", "0"], "batch: a whole number from 1 up"),
        (["a.png", "--runtime", "x"], "runtime: one of auto, torch"),
        (["a.png", "--precision", "x"], "precision: one of auto, f32"),
        (["a.png", "--runtime", "torch", "--precision", "f16"], "use bf16 or f32"),
        (["a.png", "--device", "x"], "device: one of auto, cpu"),
        (["a.png", "--save", "x"], "save: any of labels, overlay, color, probs, polygons, not 'x'"),
        (["a.png", "--out", "a.png"], "out: cannot write to a.png"),
        (["a.png", "--json", "."], "json: . is a folder"),
        (["a.png", "--foo"], "unrecognized arguments: --foo"),
        (["a.png", "--mod", "x"], "unrecognized arguments: --mod x"),
        ([], "the following arguments are required: sources"),
    ],
)
def test_wrong_usage(
    predict: Callable[..., int], here: Path, capsys: Captured, arguments: list[str], reason: str
) -> None:
    assert predict(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    assert captured.err.startswith("error: ")
    assert reason in captured.err
    assert [path.name for path in here.iterdir()] == ["a.png"]


def test_no_or_wrong_command(capsys: Captured) -> None:
    assert cli.main([]) == 2
    assert cli.main(["foo"]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 2
    assert all(f"'{command.__name__}'" in err for command in cli.COMMANDS)


def test_a_full_disk(
    predict: Callable[..., int], here: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", fail)
    assert predict("a.png") == 1
    *warnings, error = capsys.readouterr().err.splitlines()
    assert error == "error: segmented/a_labels.png: No space left on device"
    assert all(line.startswith("warning: nothing can be kept in") for line in warnings)
    assert files_in(here) == ["a.png"]


def test_interrupted(
    predict: Callable[..., int], here: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    from segformerpp.models import Segformer

    for i in range(9):
        Image.new("RGB", (32, 32)).save(here / f"b{i}.png")
    forward, calls = Segformer.forward, 0

    def interrupt(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return forward(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Segformer, "forward", interrupt)
    assert predict(".", "--json", "r.json", "--runtime", "torch") == 130
    assert "of 10 images done; the same command with --resume goes on" in capsys.readouterr().err
    done = len(json.loads((here / "r.json").read_text()))
    assert done <= 5
    assert all(Image.open(path).size for path in (here / "segmented").glob("*.png"))
    assert predict(".", "--json", "r.json", "--resume") == 0
    assert f"{10 - done} of 10 images done, {done} done before" in capsys.readouterr().out
    assert len(json.loads((here / "r.json").read_text())) == 10
    assert len(files_in(here / "segmented")) == 20


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_stopped_from_outside(here: Path, random_checkpoint: Path, stop: signal.Signals) -> None:
    for i in range(200):
        Image.new("RGB", (64, 64)).save(here / f"b{i}.png")
    command = [sys.executable, "-m", "segformerpp", "predict", ".", "--threads", "1"]
    process = subprocess.Popen(
        [*command, "--model", str(random_checkpoint), "--device", "cpu"],
        stderr=subprocess.PIPE,
        text=True,
    )
    out = here / "segmented"
    while not (out.is_dir() and len(list(out.glob("*.png"))) > 3):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(stop)
    _, err = process.communicate(timeout=300)
    if stop == signal.SIGINT:
        assert process.returncode == 130
        assert err.startswith("interrupted: ")
        assert err.count("\n") == 1
        assert not list(out.glob(".*"))
    whole = [path for path in out.glob("*.png") if not path.name.startswith(".")]
    assert 3 < len(whole) < 400
    for path in whole:
        Image.open(path).load()


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
def test_a_killed_run_with_a_report_goes_on(
    predict: Callable[..., int], here: Path, random_checkpoint: Path, capsys: Captured
) -> None:
    for i in range(300):
        Image.new("RGB", (64, 64)).save(here / f"b{i}.png")
    code = (
        "import sys; from segformerpp import cli, results_folder;"
        "results_folder.REPORT_SECONDS = 0; sys.exit(cli.main(sys.argv[1:]))"
    )
    command = [sys.executable, "-c", code, "predict", ".", "--threads", "1", "--json", "r.json"]
    process = subprocess.Popen([*command, "--model", str(random_checkpoint), "--device", "cpu"])
    report = here / "r.json"
    while not (report.exists() and len(json.loads(report.read_text())) > 3):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait(300)
    done = len(json.loads(report.read_text()))
    assert 3 < done < 301
    assert predict(".", "--json", "r.json", "--resume") == 0
    assert f"{301 - done} of 301 images done, {done} done before" in capsys.readouterr().out
    assert len({row["image"] for row in json.loads(report.read_text())}) == 301


# What it prints to.


@pytest.mark.skipif(os.name == "nt", reason="a shell of POSIX")
@pytest.mark.parametrize(
    ("arguments", "sink", "code", "err"),
    [
        ("plans", "| true", 1, ""),
        ("--help", "| true", 1, ""),
        ("plans", "> /dev/full", 1, "error: No space left on device\n"),
        ("plans", ">&-", 0, ""),
    ],
)
def test_output_that_nobody_takes(arguments: str, sink: str, code: int, err: str) -> None:
    if "/dev/full" in sink and not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
    program = f"{sys.executable} -m segformerpp {arguments}"
    # The exit code goes to standard error, because that of a pipe is its last command's.
    done = subprocess.run(
        ["sh", "-c", f"( sleep 0.1; {program}; echo code $? >&2 ) {sink}"],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.stderr == f"{err}code {code}\n"


# plans, models


def test_plans(capsys: Captured, here: Path) -> None:
    assert cli.main(["plans"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["preset", *PRESETS]
    for line in lines[1:]:
        name, text = line.split(maxsplit=1)
        assert MergePlan.parse(text) == PRESETS[name]
    for name, plan in PRESETS.items():
        assert cli.main(["plans", "--merge", name]) == 0
        (here / "plan.yaml").write_text(capsys.readouterr().out)
        assert MergePlan.parse("plan.yaml") == plan
    assert cli.main(["plans", "--merge", "bad"]) == 2


def test_models(capsys: Captured) -> None:
    from segformerpp.checkpoints import bundled

    assert cli.main(["models"]) == 0
    header, *lines = capsys.readouterr().out.splitlines()
    assert header.split() == ["model", "size", "task", "classes", "merge", "licence", "folder"]
    assert [line.split()[0] for line in lines] == list(bundled())


@pytest.mark.parametrize(("shown", "on_terminal"), [(True, True), (True, False), (False, True)])
def test_progress_is_shown_on_a_terminal_only(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, shown: bool, on_terminal: bool
) -> None:
    monkeypatch.setattr(terminal, "PATIENCE_SECONDS", 0.01)
    monkeypatch.setenv("TTY_COMPATIBLE", "1" if on_terminal else "0")
    seen, until = "", time.monotonic() + (60 if shown and on_terminal else 0.1)
    with Progress(3, "testing", shown) as progress:
        while "testing" not in seen and time.monotonic() < until:
            time.sleep(0.01)
            seen += capsys.readouterr().err
        progress.advance()
    assert ("testing" in seen + capsys.readouterr().err) == (shown and on_terminal)


def test_what_is_quick_shows_no_progress(monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    with Progress(1, "testing") as progress:
        progress.advance()
    assert capsys.readouterr().err == ""
