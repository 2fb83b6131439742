"""Memory for inference: how much it takes, and what it means to have too little."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from segformerpp.errors import MemoryLimitError

if TYPE_CHECKING:
    from segformerpp.models import SegformerConfig

#: ONNX Runtime keeps more between layers, and all of what was largest once.
_TIMES_AS_MUCH = {"onnxruntime": 2.2}
_SIGNS = ("allocate", "out of memory", "bad_alloc", "bad allocation")


def bytes_per_pixel(config: SegformerConfig, runtime: str = "") -> float:
    """About how much memory inference on a whole image takes for each pixel the network sees.

    The peak is in the decode head, or in the feed-forward network of the first stage. Then there
    are, in numbers of 4 bytes: the image, twice; at a quarter of its height and width two maps of
    the head's channels (or of the hidden ones; three in a head of kind ``conv``), and one of the
    logits; the stage outputs, twice.

    Peak resident memory of a fresh process over that before the call, PyTorch on the CPU in f32,
    2048x2048, 19 classes, bytes per pixel: B0 179 (this function: 188), B5 485 (475); B0 with 150
    classes 200 (220), B0 with a ``conv`` head 227 (252). In ONNX Runtime B0 takes 350 (413), B2
    1030 (1044). OpenVINO in f32 takes less: its decode head works on bands.

    Args:
        config: the architecture.
        runtime: the name of what runs it.
    """
    features = sum(dim / 4**stage for stage, dim in enumerate(config.dims))
    widest = max(config.head_dim, config.dims[0] * config.mlp_ratios[0])
    maps = 3 if config.head_kind == "conv" else 2
    maps_of_all = maps * widest + config.num_outputs + 2 * features
    return _TIMES_AS_MUCH.get(runtime, 1) * 4 * (2 * config.in_channels + maps_of_all / 16)


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
