"""The network: pure torch, no input or output.

`Segformer` is imported when it is first used: what only describes networks needs no torch.
"""

from typing import TYPE_CHECKING

from segformerpp.lazy_names import getter
from segformerpp.models.config import SIZES, Metadata, SegformerConfig

if TYPE_CHECKING:
    from segformerpp.models.segformer import Segformer

__all__ = ["SIZES", "Metadata", "Segformer", "SegformerConfig"]

_HOME_OF = {"Segformer": "segformerpp.models.segformer"}


__getattr__ = getter(__name__, _HOME_OF)
