"""What the options of commands have in common: exit codes, notations, talking."""

from __future__ import annotations

from typing import Literal

from segformerpp.arguments import parse_size
from segformerpp.errors import UsageError

SUCCESS, SOME_FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130

#: The bundled model of each task.
DEFAULT_MODELS = {"segmentation": "camvid-b0", "pose": "lsp-b0"}


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


def parse_tile(text: str) -> tuple[int, int] | Literal["auto"] | None:
    """Read ``auto``, ``none``, or height x width."""
    if text == "auto":
        return "auto"
    return None if text == "none" else parse_size("tile", text)


def parse_items(key: str, text: str, separator: str = ",") -> list[str]:
    """Read one or more words with a separator between; `key` names the option in errors."""
    found = [item for part in text.split(separator) if (item := part.strip())]
    if not found:
        raise UsageError(f"{key}: one or more, with {separator} between, not {text!r}")
    return found


def parse_numbers(key: str, text: str) -> tuple[float, ...]:
    """Read one or more numbers with commas between; `key` names the option in errors."""
    try:
        return tuple(map(float, parse_items(key, text)))
    except ValueError:
        raise UsageError(f"{key}: numbers with commas between, not {text!r}") from None


def parse_plans(text: str) -> list[str]:
    """Names and files with commas between; keyword strings, which have commas, with ; between."""
    if "=" in text and ";" not in text:
        return [text]
    return parse_items("merge", text, ";" if ";" in text else ",")
