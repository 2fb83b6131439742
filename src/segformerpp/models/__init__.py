"""The network: pure torch, no input or output.

`Segformer` is imported when it is first used: what only describes networks needs no torch.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from segformerpp.models.config import SIZES, Metadata, SegformerConfig

if TYPE_CHECKING:
    from segformerpp.models.segformer import Segformer

__all__ = ["SIZES", "Metadata", "Segformer", "SegformerConfig"]

_HOME_OF = {"Segformer": "segformerpp.models.segformer"}


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value
