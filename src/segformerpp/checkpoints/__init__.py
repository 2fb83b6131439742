"""Reading and writing weights: our own format, other projects' layouts, and the hub.

What needs torch is imported when it is first used.
"""

from typing import TYPE_CHECKING

from segformerpp.checkpoints.opened import Checkpoint, open_checkpoint
from segformerpp.checkpoints.sources import bundled
from segformerpp.lazy_names import getter

if TYPE_CHECKING:
    from segformerpp.checkpoints.loading import load
    from segformerpp.checkpoints.saving import push_to_hub, save, save_pretrained

__all__ = [
    "Checkpoint",
    "bundled",
    "load",
    "open_checkpoint",
    "push_to_hub",
    "save",
    "save_pretrained",
]

_SAVING = "segformerpp.checkpoints.saving"
_HOME_OF = {
    "load": "segformerpp.checkpoints.loading",
    **dict.fromkeys(("push_to_hub", "save", "save_pretrained"), _SAVING),
}


__getattr__ = getter(__name__, _HOME_OF)
