"""What stands beside the tensors of a checkpoint: architecture, meaning, plan and terms."""

from __future__ import annotations

import json
import logging
import reprlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from segformerpp.checkpoints import huggingface
from segformerpp.checkpoints.card import read_terms
from segformerpp.checkpoints.reading import Contents, one_line, read_json
from segformerpp.errors import CheckpointError, PlanError
from segformerpp.models import Metadata, Segformer, SegformerConfig
from segformerpp.plans import MergePlan
from segformerpp.plans.plan import STAGES

VERSION = 1
#: The text of our config.json is also in the header of every safetensors file of ours, here.
HEADER_KEY = "segformerpp"
#: More outputs than label maps have ids for, and wider decode heads than anyone has made, would
#: only be asked for by mistake, and fill the memory: nothing but what is stated tells these sizes.
MOST_OUTPUTS, _MOST_HEAD_DIM = 65_536, 4096

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Description:
    """What is known about a checkpoint besides its tensors.

    Attributes:
        stated: fields of `SegformerConfig`.
        metadata: what inputs and outputs mean; defaults where nothing is said.
        plan: the merge plan saved with the weights.
    """

    stated: Mapping[str, Any] = field(default_factory=dict)
    metadata: Metadata = field(default_factory=Metadata)
    plan: MergePlan = field(default_factory=MergePlan)


def to_config(model: Segformer, metadata: Metadata) -> dict[str, Any]:
    """What our config.json holds of a model that is saved with this metadata."""
    none = model.merge_plan == MergePlan()
    return {
        "model_type": "segformerpp",
        "version": VERSION,
        "architecture": model.config.to_dict(),
        "metadata": metadata.to_dict(),
        "merge_plan": None if none else model.merge_plan.to_dict(),
    }


def describe(contents: Contents, folder: Path | None, name: str) -> Description:
    """Read what is said about a checkpoint in its folder and in its own file.

    Args:
        contents: of the weights file.
        folder: with config.json, preprocessor_config.json and README.md, all optional; None
            where the weights file stands alone.
        name: where the checkpoint came from, as the user said it.

    Raises:
        CheckpointError: if something is said that is not understood.
    """
    config = _json(folder, "config.json")
    if HEADER_KEY in contents.header:
        # What came in one file with the tensors is about them; config.json may be an older model's.
        header = _parse_header(contents.header[HEADER_KEY], name)
        if config and config != header:
            logger.warning(
                "%s: config.json differs from the weights' own header, which counts", name
            )
        config = header
    if config.get("model_type") == "segformerpp":
        found = _from_config(config, name)
    elif config.get("model_type") == "segformer":
        stated, metadata = huggingface.read(config, _json(folder, "preprocessor_config.json"), name)
        found = Description(stated, metadata)
    else:
        found = Description(metadata=_from_training(contents.beside))
    _validate(found.stated, found.metadata, name)
    metadata = found.metadata
    terms = metadata.license or read_terms(folder, config, name)
    return replace(found, metadata=replace(metadata, source=metadata.source or name, license=terms))


def fitted(metadata: Metadata, config: SegformerConfig, origin: str) -> Metadata:
    """Metadata without what cannot hold for a network; what is left out is said in a warning."""
    for key in ("labels", "palette"):
        named = len(getattr(metadata, key))
        if named not in (0, config.num_outputs):
            logger.warning(
                "%s: %d %s for %d outputs: left out", origin, named, key, config.num_outputs
            )
            metadata = replace(metadata, **{key: ()})  # type: ignore[arg-type]  # both are tuples
    channels = config.in_channels
    if not len(metadata.mean) == len(metadata.std) == channels:
        default = Metadata()
        if channels != len(default.mean):  # nothing is usual there: pixels become 0..1
            default = Metadata(mean=(0.0,) * channels, std=(255.0,) * channels)
        logger.warning(
            "%s: mean and std have %d and %d values for %d channels: taken as %s and %s",
            *(origin, len(metadata.mean), len(metadata.std), channels, default.mean, default.std),
        )
        metadata = replace(metadata, mean=default.mean, std=default.std)
    return metadata


def _json(folder: Path | None, name: str) -> dict[str, Any]:
    if folder is None or not (folder / name).is_file():
        return {}
    return read_json(folder / name)


def _parse_header(text: str, name: str) -> dict[str, Any]:
    try:
        data = json.loads(text)
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        raise CheckpointError(f"{name}: the header's {HEADER_KEY!r} is no JSON object")
    return data


def _from_config(config: Mapping[str, Any], name: str) -> Description:
    if config.get("version") != VERSION:
        raise CheckpointError(
            f"{name}: written in version {reprlib.repr(config.get('version'))} of our config.json; "
            f"this release reads version {VERSION}: a newer segformerpp may help"
        )
    try:
        architecture = SegformerConfig.from_dict(config["architecture"])
        metadata = Metadata.from_dict(config["metadata"])
    except KeyError as error:
        raise CheckpointError(f"{name}: {error} is missing in config.json") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{name}: config.json is not understood: {one_line(error)}") from None
    channels = architecture.in_channels
    for key in ("mean", "std"):
        values = getattr(metadata, key)
        if not isinstance(values, tuple) or len(values) != channels:
            raise CheckpointError(
                f"{name}: {key} cannot be {reprlib.repr(values)} for {reprlib.repr(channels)} "
                f"channels (in its config files)"
            )
    try:
        plan = MergePlan.parse(config.get("merge_plan"))
    except PlanError as error:
        raise CheckpointError(f"{name}: merge_plan in config.json: {one_line(error)}") from None
    stated = {key: getattr(architecture, key) for key in config["architecture"]}
    return Description(stated, metadata, plan)


def _from_training(beside: Mapping[str, Any]) -> Metadata:
    """Names and colours, where mmsegmentation or mmpose left them in a training checkpoint."""
    meta = beside.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    info = meta.get("dataset_meta")
    info = info if isinstance(info, dict) else meta
    labels, palette = (info.get(k, info.get(k.upper())) for k in ("classes", "palette"))
    metadata = Metadata()
    keypoints = info.get("keypoint_id2name")
    if isinstance(keypoints, dict) and [*keypoints] == [*range(len(keypoints))]:
        labels, palette = [*keypoints.values()], None  # the only class is a person
    if isinstance(labels, list | tuple) and all(isinstance(label, str) for label in labels):
        metadata = replace(metadata, labels=tuple(labels))
    if isinstance(palette, list | tuple) and all(_is_colour(colour) for colour in palette):
        metadata = replace(metadata, palette=tuple(tuple(colour) for colour in palette))
    return metadata


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_link(value: Any) -> bool:
    return all(isinstance(end, int) and 0 <= end < MOST_OUTPUTS for end in value)


def _is_number(value: Any) -> bool:
    # The bound is far beyond any sense; it keeps out infinities, and NaN, which is below nothing.
    right = isinstance(value, int | float) and not isinstance(value, bool)
    return right and abs(value) < 1e9


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


def _is_colour(value: Any) -> bool:
    """Whether a value is three integers from 0 to 255."""
    return (
        isinstance(value, list | tuple)
        and len(value) == 3
        and all(isinstance(v, int) and 0 <= v <= 255 for v in value)
    )


_ARCHITECTURE: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("depths", "dims", "heads", "sr_ratios"), _all(_is_count, STAGES)),
    **dict.fromkeys(("mlp_ratios", "patch_sizes"), _all(_is_count, STAGES)),
    "in_channels": _is_count,
    "head_dim": lambda value: _is_count(value) and value <= _MOST_HEAD_DIM,
    "num_outputs": lambda value: _is_count(value) and value <= MOST_OUTPUTS,
    "head_kind": lambda value: value in ("linear", "conv"),
    **dict.fromkeys(("embed_norm_eps", "norm_eps"), _is_epsilon),
    **dict.fromkeys(("drop_path", "dropout"), _is_rate),
}
_METADATA: dict[str, Callable[[Any], bool]] = {
    **dict.fromkeys(("task", "source", "license"), _is_text),
    "labels": _all(_is_text),
    "palette": _all(_is_colour),
    "mean": _all(_is_number),
    "std": _all(lambda value: _is_number(value) and value > 1e-6),
    "image_size": lambda value: value is None or _all(_is_count, 2)(value),
    **dict.fromkeys(("reduce_labels", "head_trained"), _is_flag),
    "skeleton": _all(lambda link: isinstance(link, tuple) and len(link) == 2 and _is_link(link)),
    "sigma": lambda value: _is_number(value) and value > 0.1,
    "coding": lambda value: value in ("udp", "msra"),
}


def _validate(stated: Mapping[str, Any], metadata: Metadata, name: str) -> None:
    """Check the fields of a `SegformerConfig` and a `Metadata` that were read from JSON.

    Raises:
        CheckpointError: naming the checkpoint and the first field whose value is impossible.
    """
    values = {key: getattr(metadata, key) for key in _METADATA}
    for checks, fields in ((_ARCHITECTURE, stated), (_METADATA, values)):
        for key, value in fields.items():
            if not checks[key](value):
                raise CheckpointError(
                    f"{name}: {key} cannot be {reprlib.repr(value)} (in its config files)"
                )
