"""Reading and writing weights: our own format, other projects' layouts, and the hub.

What needs torch is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from segformerpp.checkpoints.opened import Checkpoint, open_checkpoint
from segformerpp.checkpoints.sources import bundled

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


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(_HOME_OF[name]), name)
    globals()[name] = value
    return value
