"""Reading and writing weights: our own format, other projects' layouts, and the hub."""

from segformerpp.checkpoints.loading import load
from segformerpp.checkpoints.saving import push_to_hub, save, save_pretrained
from segformerpp.checkpoints.sources import bundled

__all__ = ["bundled", "load", "push_to_hub", "save", "save_pretrained"]
