"""How a network is executed: runtimes behind one small interface."""

from segformerpp.runtimes.base import (
    DEVICES,
    PRECISIONS,
    RUNTIMES,
    MatchingRuntime,
    ParallelRuntime,
    Runtime,
    check,
    create,
    matching,
    parallel,
)

__all__ = [
    "DEVICES",
    "PRECISIONS",
    "RUNTIMES",
    "MatchingRuntime",
    "ParallelRuntime",
    "Runtime",
    "check",
    "create",
    "matching",
    "parallel",
]
