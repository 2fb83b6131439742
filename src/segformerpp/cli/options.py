"""What the options of commands have in common: exit codes, notations, talking."""

from __future__ import annotations

from segformerpp.arguments import parse_size
from segformerpp.errors import UsageError

SUCCESS, SOME_FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


def parse_overlap(text: str) -> int | tuple[int, int]:
    """Read one number, or height x width."""
    try:
        return int(text) if text.strip().isdecimal() else parse_size("overlap", text)
    except UsageError:
        raise UsageError(f"overlap: pixels, such as 256, or height x width, not {text!r}") from None


def say(text: str, quiet: bool) -> None:
    """Print unless the user wants silence."""
    if not quiet:
        print(text)
