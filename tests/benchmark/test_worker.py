import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from segformerpp.benchmark.worker import TURN_SECONDS, Worker, peak_memory_mb
from segformerpp.errors import UsageError

MODULE = """
import os, time
from segformerpp.errors import UsageError

def sleeper(seconds):
    print("chatter on standard output")
    return lambda: time.sleep(seconds), {"pid": os.getpid()}

def ticker(seconds):
    print("chatter on standard output")
    now = [0.0]  # a clock that no other process disturbs

    def tick():
        now[0] += seconds

    time.perf_counter = lambda: now[0]
    return tick, {"pid": os.getpid()}

def eater(megabytes):
    kept = b"x" * int(1e6) * megabytes
    return lambda: None, {"kept": len(kept)}

def forking():
    child = os.fork()
    if not child:
        time.sleep(600)
    return lambda: None, {"child": child}

def broken():
    raise UsageError("precision: not here")

def dying():
    os._exit(3)
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "made_up.py").write_text(MODULE)
    return tmp_path


def test_runs_in_a_process_of_its_own(folder):
    with Worker("made_up:ticker", {"seconds": 0.07}, [folder]) as worker:
        assert worker.facts["pid"] != os.getpid()
        # As often as it takes to fill a turn.
        assert worker() == pytest.approx([0.07] * math.ceil(TURN_SECONDS / 0.07))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_what_a_worker_has_started_ends_with_it(folder):
    with Worker("made_up:forking", {}, [folder]) as worker:
        child = worker.facts["child"]
    # Nobody waits for the child's output; whose child it is now takes it away.
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not _is_dead(child):
        time.sleep(0.05)
    assert _is_dead(child)


def _is_dead(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except OSError:
        return True


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs /proc")
def test_a_worker_ends_with_its_parent_in_the_middle_of_a_run(folder):
    parent = f"""
from segformerpp.benchmark.worker import Worker
worker = Worker("made_up:sleeper", {{"seconds": 600}}, [{str(folder)!r}], warm_up=0)
print(worker.facts["pid"], flush=True)
worker()
"""
    command = [sys.executable, "-c", parent]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    for _ in range(600):
        if not Path("/proc", str(pid)).exists():
            return
        time.sleep(0.1)
    os.kill(pid, signal.SIGKILL)
    pytest.fail("still running a minute after its parent")


@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell")
def test_memory_is_that_of_the_process(folder):
    with (
        Worker("made_up:eater", {"megabytes": 1}, [folder]) as small,
        Worker("made_up:eater", {"megabytes": 200}, [folder]) as large,
    ):
        difference = large.facts["peak_memory_mb"] - small.facts["peak_memory_mb"]
        assert 180 < difference < 220
    assert (peak_memory_mb() or 0) > 10


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("made_up:broken", "precision: not here"),
        ("made_up:dying", "ended with code 3"),
        ("no_such_module:f", "no_such_module"),
    ],
)
def test_what_cannot_be_prepared_says_why(folder, target, words):
    with pytest.raises(UsageError, match=words):
        Worker(target, {}, [folder])
