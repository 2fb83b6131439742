"""How a network is executed: runtimes behind one small interface."""

from segformerpp.runtimes.base import DEVICES, PRECISIONS, RUNTIMES, Runtime, check, create

__all__ = ["DEVICES", "PRECISIONS", "RUNTIMES", "Runtime", "check", "create"]
