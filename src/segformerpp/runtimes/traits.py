"""What is known of a runtime; apart from `graph`, so that a start may do without ONNX."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Traits:
    """What is known of the runtime that computes a graph, beside the form that suits it.

    Args:
        head_band: bytes of the decode head's features that it should work on together, where the
            size is known; 0 for all of them.
        value_bytes: what a value takes while it computes.
        constants_stay_f32: whether constants, and products that read them, stay in f32 though all
            else is in bf16.
        root_mean_square: whether dividing by it is one node, faster than a layer norm where
            channels are few.
        adding_convolutions: whether a convolution can add its result to another tensor in the
            same pass, which products do not.
        native: the precision in which it has the operators of `native`; empty where it has not.
    """

    head_band: int = 0
    value_bytes: int = 4
    constants_stay_f32: bool = False
    root_mean_square: bool = False
    adding_convolutions: bool = False
    native: str = ""
