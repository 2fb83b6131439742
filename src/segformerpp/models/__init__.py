"""The network: pure torch, no input or output."""

from segformerpp.models.config import SIZES, Metadata, SegformerConfig
from segformerpp.models.segformer import Segformer

__all__ = ["SIZES", "Metadata", "Segformer", "SegformerConfig"]
