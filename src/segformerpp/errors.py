"""The errors that segformerpp raises on purpose; all derive from `SegformerppError`."""


class SegformerppError(Exception):
    """Base of every error raised on purpose; its text is one readable line or a short list."""


class PlanError(SegformerppError, ValueError):
    """A merge plan that is not understood; the text names the stage and the key."""


class CheckpointError(SegformerppError):
    """A checkpoint that cannot be read, or does not fit the network."""


class ImageError(SegformerppError):
    """An image that cannot be read or written, or is too large to work on."""


class VideoError(SegformerppError):
    """A video, stream or camera that cannot be read, or a video that cannot be written."""


class MemoryLimitError(SegformerppError):
    """Images that do not fit into the memory of the device together."""


class UsageError(SegformerppError, ValueError):
    """An argument with a value that makes no sense here; the text says what would."""
