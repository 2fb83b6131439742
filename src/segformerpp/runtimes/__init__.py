"""How a network is executed: runtimes behind one small interface."""

from segformerpp.runtimes.base import (
    DEVICES,
    PRECISIONS,
    RUNTIMES,
    MatchingRuntime,
    Runtime,
    check,
    create,
    matching,
)

__all__ = [
    "DEVICES",
    "PRECISIONS",
    "RUNTIMES",
    "MatchingRuntime",
    "Runtime",
    "check",
    "create",
    "matching",
]
