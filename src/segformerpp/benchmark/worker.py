"""A candidate in a process of its own: its memory is its own, and so are its threads.

Runtimes that share a process disturb each other's threads. The parent says when to run; between
its runs a worker sleeps.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, Self

from segformerpp.errors import SegformerppError, UsageError

#: A network that is quicker than this runs more than once in its turn.
TURN_SECONDS = 0.2


class Worker:
    """A fresh process that prepares a candidate and then runs it on demand.

    Args:
        target: ``module:function``. The function takes `arguments` and returns what is to be
            timed, a callable without arguments, and a dictionary of facts about it.
        arguments: plain values.
        path: folders to import the module from, besides the usual ones.
        warm_up: runs before the first that counts.

    Attributes:
        facts: what the function said, and `peak_memory_mb` of the process after warming up
            (None where the system does not tell).

    Raises:
        UsageError: with the candidate's own words, if it cannot be prepared.
    """

    def __init__(
        self,
        target: str,
        arguments: Mapping[str, Any],
        path: Sequence[str | Path] = (),
        warm_up: int = 2,
    ) -> None:
        paths = [str(Path(folder).resolve()) for folder in path]
        if before := os.environ.get("PYTHONPATH"):
            paths.append(before)
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
            # So that Ctrl-C reaches the parent alone, which then ends its workers.
            start_new_session=True,
        )
        try:
            self.facts = self._ask(
                {"target": target, "arguments": dict(arguments), "warm_up": warm_up}
            )
        except BaseException:
            self.close()
            raise

    def __call__(self) -> list[float]:
        """Run, several times if that takes less than `TURN_SECONDS`; the seconds of each run.

        Raises:
            UsageError: if the process has ended.
        """
        seconds: list[float] = self._ask("run")["seconds"]
        return seconds

    def _ask(self, message: Any) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(message) + "\n")
            self._process.stdin.flush()
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise UsageError(f"a benchmark process ended with code {self._process.wait()}")
        answer = json.loads(line)
        if "error" in answer:
            raise UsageError(answer["error"])
        return answer

    def close(self) -> None:
        """End the process, and what it has started, which may hold its output open."""
        if self._process.poll() is None and hasattr(os, "killpg"):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.kill()
        for stream in (self._process.stdin, self._process.stdout):
            if stream:
                with suppress(OSError):  # what was not sent is lost
                    stream.close()
        self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def peak_memory_mb() -> float | None:
    """The most resident memory that this process has had so far, in MB (10^6 bytes)."""
    status = Path("/proc/self/status")
    if status.exists():  # what `resource` says on Linux includes the parent's, from before exec
        peak = re.search(r"VmHWM:\s*(\d+) kB", status.read_text())
        return peak and round(int(peak[1]) * 1024 / 1e6, 1)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 1)


def _serve() -> None:
    # Libraries print; what they say must not get between the answers.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def answer(value: Mapping[str, Any]) -> None:
        print(json.dumps(value), file=answers, flush=True)

    messages: SimpleQueue[str] = SimpleQueue()
    threading.Thread(target=_listen, args=(messages,), daemon=True).start()
    job = json.loads(messages.get())
    module, _, function = job["target"].partition(":")
    try:
        run, facts = getattr(importlib.import_module(module), function)(**job["arguments"])
        for _ in range(job["warm_up"]):
            run()
    except Exception as error:  # the parent says in one line what is wrong with a candidate
        name = "" if isinstance(error, SegformerppError) else f"{type(error).__name__}: "
        answer({"error": name + str(error).partition("\n")[0]})
        return
    answer({**facts, "peak_memory_mb": peak_memory_mb()})
    once = _time(run)
    while messages.get():
        if once < TURN_SECONDS:
            run()  # the turns of the others have emptied the caches
        seconds = [_time(run) for _ in range(math.ceil(TURN_SECONDS / once))]
        answer({"seconds": seconds})


def _listen(messages: SimpleQueue[str]) -> None:
    """Pass on what the parent says; end with it, even in the middle of a run."""
    for line in sys.stdin:
        messages.put(line)
    os._exit(0)


def _time(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    _serve()
