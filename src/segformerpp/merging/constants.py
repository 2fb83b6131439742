"""Index sets that depend on nothing but sizes: made once for each grid."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

Maker = Callable[..., np.ndarray]


def constant(make: Maker, device: torch.device, *sizes: int) -> Tensor:
    """The array `make(*sizes)` as a tensor on a device; the same memory on every call.

    Under `torch.compile` and `torch.export` it becomes part of the graph.
    """
    if torch.compiler.is_dynamo_compiling():
        return torch.from_numpy(make(*sizes)).to(device)  # a cache cannot be traced
    if device.type == "cpu" or torch.compiler.is_compiling():
        # What is kept is numpy: a tensor that is cached during an export stays fake.
        return torch.from_numpy(_array(make, *sizes)).to(device)
    return _on_device(make, device, *sizes)


# Few enough that a folder of images of many sizes does not fill the memory.
@lru_cache(maxsize=32)
def _array(make: Maker, *sizes: int) -> np.ndarray:
    return make(*sizes)


@lru_cache(maxsize=32)
def _on_device(make: Maker, device: torch.device, *sizes: int) -> Tensor:
    with torch.inference_mode(False):  # else training could not use it later
        return torch.from_numpy(_array(make, *sizes)).to(device)
