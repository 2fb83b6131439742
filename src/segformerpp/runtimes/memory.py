"""Memory for inference: how much it takes, and what it means to have too little."""

from __future__ import annotations

import os
import platform
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from segformerpp.errors import MemoryLimitError

if TYPE_CHECKING:
    from segformerpp.models import SegformerConfig

T = TypeVar("T")

#: ONNX Runtime frees less between layers than PyTorch.
_TIMES_AS_MUCH = {"onnxruntime": 2.2}
#: How many prepared networks are kept at most, and what they may hold: in a container the machine
#: seems to have more memory than there is.
_KEPT, _KEPT_BYTES = 8, 8 * 2**30

_SIGNS = ("allocate", "out of memory", "bad_alloc", "bad allocation")


def bytes_per_pixel(config: SegformerConfig, runtime: str) -> float:
    """About how much memory inference on a whole image takes for each pixel the network sees.

    The peak is in the decode head, or in the feed-forward network of the first stage. Then there
    are, in numbers of 4 bytes: the image, twice; at a quarter of its height and width two maps of
    the head's channels (or of the hidden ones; three in a head of kind ``conv``), and one of the
    logits; the stage outputs, twice.

    Peak resident memory of a fresh process over that before the call, PyTorch on the CPU in f32,
    2048x2048, 19 classes, bytes per pixel: B0 179 (this function: 188), B5 485 (475); B0 with 150
    classes 200 (220), B0 with a ``conv`` head 227 (252). In ONNX Runtime 1.32 B0 takes 350 (413),
    B2 1030 (1044), beside attention maps where there are any (`may_hold_maps`). OpenVINO in f32
    and bf16 takes less: its decode head never holds all features.

    Args:
        config: the architecture.
        runtime: the name of what runs it.
    """
    features = sum(dim / 4**stage for stage, dim in enumerate(config.dims))
    widest = max(config.head_dim, config.dims[0] * config.mlp_ratios[0])
    maps = 3 if config.head_kind == "conv" else 2
    values = 2 * config.in_channels + (maps * widest + config.num_outputs + 2 * features) / 16
    return 4 * values * _TIMES_AS_MUCH.get(runtime, 1)


class KeptNetworks(Generic[T]):
    """Networks that were prepared for one input shape each, while there is memory for them.

    Beside their weights they may hold about half of the machine's, and 8 GiB at most, by the
    estimate of `bytes_per_pixel`. Those of the latest shape stay together, because frames that
    share a match go through two of them in turn. Not safe for several threads.

    Args:
        make: prepares a network for a shape (B, C, H, W) and what else was asked for.
        bytes_each: how much memory it takes for each pixel; see `bytes_per_pixel`.
    """

    def __init__(self, make: Callable[..., T], bytes_each: float) -> None:
        self._make, self._bytes_each = make, bytes_each
        self._kept: OrderedDict[tuple[Any, ...], T] = OrderedDict()

    def __call__(self, shape: tuple[int, ...], *more: Hashable) -> T:
        """The network for a shape; where it is too much, those go whose last use is longest ago."""
        key = (shape, *more)
        if key in self._kept:
            self._kept.move_to_end(key)
            return self._kept[key]
        most = min(_memory() / 2, _KEPT_BYTES)
        for old in [kept for kept in self._kept if kept[0] != shape]:
            shapes = [shape, *(kept[0] for kept in self._kept)]
            if len(self._kept) < _KEPT and sum(map(self._bytes, shapes)) <= most:
                break
            del self._kept[old]
        self._kept[key] = self._make(*key)
        return self._kept[key]

    def _bytes(self, shape: tuple[int, ...]) -> float:
        batch, _, height, width = shape
        return batch * height * width * self._bytes_each

    def __len__(self) -> int:
        """How many are kept."""
        return len(self._kept)

    def clear(self) -> None:
        """Keep none."""
        self._kept.clear()


def may_hold_maps(device: str) -> bool:
    """Whether attention maps may exist whole in ONNX Runtime, some of gigabytes for large images.

    On a processor attention is a node whose kernel works on tiles as large as its cache, which
    before the middle of 2026 it did not know on ARM under Linux (microsoft/onnxruntime#29613).
    """
    return device != "cpu" or (platform.system() == "Linux" and platform.machine() != "x86_64")


def _memory() -> int:
    """Bytes that the machine has; 8 GiB where it does not say."""
    try:
        found = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows, and what lacks these names
        found = 0
    return found if found > 0 else 8 * 2**30


@contextmanager
def memory_limits(shape: tuple[int, ...], device: str) -> Iterator[None]:
    """Turn what runtimes raise where memory ends into a `MemoryLimitError`.

    Args:
        shape: (B, C, H, W) of what goes through the network.
        device: where to.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        # Neither PyTorch on the processor nor OpenVINO has an error of its own for this.
        if isinstance(error, RuntimeError) and not any(sign in str(error) for sign in _SIGNS):
            raise
        batch, _, height, width = shape
        raise MemoryLimitError(
            f"{batch} x {height} x {width} pixels do not fit into the memory of {device}: use a "
            f"smaller batch or size, or tiles"
        ) from error
