"""Explaining a merge plan on an image: what is merged, what it saves, what it changes."""

from segformerpp.explaining.explanation import Explanation
from segformerpp.explaining.run import explain

__all__ = ["Explanation", "explain"]
