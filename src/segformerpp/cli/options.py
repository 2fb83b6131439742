"""What the options of commands have in common: exit codes, notations, talking."""

from __future__ import annotations

import re

from segformerpp.errors import UsageError

SUCCESS, SOME_FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


def parse_size(key: str, text: str) -> tuple[int, int]:
    """Read height x width, such as ``512x1024``; `key` names the option in errors."""
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip().lower())
    if not match:
        raise UsageError(f"{key}: height x width in pixels, such as 512x1024, not {text!r}")
    return int(match[1]), int(match[2])


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
