"""What the command line shows: messages, tables, and a progress bar where one is wanted."""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress as Bar

#: A bar appears only on what takes longer than this.
PATIENCE_SECONDS = 2.0


def complain(text: str) -> None:
    """Write one line on standard error."""
    print(" ".join(text.split("\n")), file=sys.stderr, flush=True)


def print_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print columns, each as wide as its widest cell, whatever the terminal's width."""
    lines = [header, *rows]
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        print("  ".join(cells).rstrip())


def show_choices(shown: bool) -> None:
    """Whether `messages` also says which merge plan was chosen, and why."""
    logger = logging.getLogger("segformerpp.auto_plan")
    logger.setLevel(logging.INFO if shown else logging.NOTSET)


class _OneLine(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        complain(f"{record.levelname.lower()}: {record.getMessage()}")


@contextmanager
def messages() -> Iterator[None]:
    """Show our own warnings in one line each, and nobody else's; for more see `show_choices`."""
    logger, handler = logging.getLogger("segformerpp"), _OneLine(logging.INFO)
    logger.addHandler(handler)
    with warnings.catch_warnings():
        if not sys.warnoptions:
            warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logger.removeHandler(handler)


def _is_terminal() -> bool:
    """Whether there is a terminal behind standard error, or the user says so, as rich asks."""
    stated = os.environ.get("TTY_COMPATIBLE")
    if sys.stderr is None:  # closed by who started us
        return False
    return sys.stderr.isatty() if stated not in ("0", "1") else stated == "1"


class Progress:
    """A progress bar on standard error, if that is a terminal and the work takes a while.

    Args:
        total: how many steps there are; None if that is unknown.
        what: what is being done, in a word.
        shown: False to never show it.
    """

    def __init__(self, total: int | None, what: str, shown: bool = True) -> None:
        self._bar: Bar | None = None
        if not shown or not _is_terminal():  # rich takes a while to import
            return
        from rich.console import Console
        from rich.progress import MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = [TextColumn("{task.description}"), *Progress.get_default_columns()[1:2]]
        columns += [MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[note]}")]
        self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
        self._task = self._bar.add_task(what, total=total, note="")
        self._timer = threading.Timer(PATIENCE_SECONDS, self._bar.start)
        self._timer.daemon = True

    def advance(self, note: str = "") -> None:
        """Count one step as done, and show a note beside the bar."""
        if self._bar:
            self._bar.update(self._task, advance=1, note=note)

    def note(self, text: str) -> None:
        """Show a note beside the bar."""
        if self._bar:
            self._bar.update(self._task, note=text)

    def __enter__(self) -> Progress:
        if self._bar:
            self._timer.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self._bar:
            self._timer.cancel()
            self._timer.join()
            self._bar.stop()


@contextmanager
def asked_to_stop() -> Iterator[threading.Event]:
    """Give an event that Ctrl-C, or the signal to terminate, sets once; the next one interrupts.

    Outside the main thread, which alone gets signals, nothing sets it.
    """
    stop = threading.Event()

    def handle(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    if threading.current_thread() is not threading.main_thread():
        yield stop
        return
    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
