"""Whether the values that a config.json states can be what they claim to be."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from segformerpp.errors import CheckpointError
from segformerpp.merging.plan import STAGES
from segformerpp.models import Metadata


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_rate(value: Any) -> bool:
    return _is_number(value) and 0 <= value < 1


def _is_epsilon(value: Any) -> bool:
    return _is_number(value) and 0 < value < 1


def _is_text(value: Any) -> bool:
    # JSON can hold halves of characters, which no file of ours could.
    return isinstance(value, str) and value.encode(errors="ignore").decode() == value


def _is_flag(value: Any) -> bool:
    return isinstance(value, bool)


def _all(check: Callable[[Any], bool], length: int | None = None) -> Callable[[Any], bool]:
    def check_all(values: Any) -> bool:
        right = isinstance(values, tuple) and length in (None, len(values))
        return right and all(check(value) for value in values)

    return check_all


def is_colour(value: Any) -> bool:
    """Whether a value is three integers from 0 to 255."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(isinstance(v, int) and 0 <= v <= 255 for v in value)
    )


_ARCHITECTURE: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("depths", "dims", "heads", "sr_ratios"), _all(_is_count, STAGES)),
    **dict.fromkeys(("mlp_ratios", "patch_sizes"), _all(_is_count, STAGES)),
    **dict.fromkeys(("head_dim", "in_channels", "num_outputs"), _is_count),
    "head_kind": lambda value: value in ("linear", "conv"),
    **dict.fromkeys(("embed_norm_eps", "norm_eps"), _is_epsilon),
    **dict.fromkeys(("drop_path", "dropout"), _is_rate),
}
_METADATA: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("task", "source", "license"), _is_text),
    "labels": _all(_is_text),
    "palette": _all(is_colour),
    "mean": _all(_is_number),
    "std": _all(lambda value: _is_number(value) and value > 0),
    "image_size": lambda value: value is None or _all(_is_count, 2)(value),
    **dict.fromkeys(("reduce_labels", "head_trained"), _is_flag),
}


def validate(stated: Mapping[str, Any], metadata: Metadata, name: str) -> None:
    """Check the fields of a `SegformerConfig` and a `Metadata` that were read from JSON.

    Raises:
        CheckpointError: naming the checkpoint and the first field whose value is impossible.
    """
    values = {key: getattr(metadata, key) for key in _METADATA}
    for checks, fields in ((_ARCHITECTURE, stated), (_METADATA, values)):
        for key, value in fields.items():
            if not checks[key](value):
                raise CheckpointError(f"{name}: {key} cannot be {value!r} (in its config files)")
