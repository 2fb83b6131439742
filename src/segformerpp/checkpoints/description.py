"""What stands beside the tensors of a checkpoint: architecture, meaning, plan and terms."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from segformerpp.checkpoints import huggingface
from segformerpp.checkpoints.reading import Contents, read_json
from segformerpp.checkpoints.validation import is_colour, validate
from segformerpp.errors import CheckpointError, PlanError
from segformerpp.merging import MergePlan
from segformerpp.models import Metadata, Segformer, SegformerConfig

VERSION = 1
#: The text of our config.json is also in the header of every safetensors file of ours, here.
HEADER_KEY = "segformerpp"
#: The terms of what NVIDIA published: https://github.com/NVlabs/SegFormer/blob/master/LICENSE
NVIDIA_LICENSE = "NVIDIA Source Code License for SegFormer (non-commercial)"


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


def to_config(model: Segformer) -> dict[str, Any]:
    """What our config.json holds."""
    none = model.merge_plan == MergePlan()
    return {
        "model_type": "segformerpp",
        "version": VERSION,
        "architecture": model.config.to_dict(),
        "metadata": model.metadata.to_dict(),
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
    if config.get("model_type") != "segformerpp" and HEADER_KEY in contents.header:
        config = _parse_header(contents.header[HEADER_KEY], name)
    if config.get("model_type") == "segformerpp":
        found = _from_config(config, name)
    elif config.get("model_type") == "segformer":
        stated, metadata = huggingface.read(config, _json(folder, "preprocessor_config.json"), name)
        found = Description(stated, metadata)
    else:
        found = Description(metadata=_from_training(contents.beside))
    validate(found.stated, found.metadata, name)
    card, metadata = _front_matter(folder), found.metadata
    terms = metadata.license or _terms(card, [name, *_ancestors(config, card)])
    return replace(found, metadata=replace(metadata, source=metadata.source or name, license=terms))


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
            f"{name}: written in version {config.get('version')!r} of our config.json; this "
            f"release reads version {VERSION}: a newer segformerpp may help"
        )
    try:
        architecture = SegformerConfig.from_dict(config["architecture"])
        metadata = Metadata.from_dict(config["metadata"])
    except KeyError as error:
        raise CheckpointError(f"{name}: {error} is missing in config.json") from None
    except (TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{name}: config.json is not understood: {error}") from None
    try:
        plan = MergePlan.parse(config.get("merge_plan"))
    except PlanError as error:
        raise CheckpointError(f"{name}: merge_plan in config.json: {error}") from None
    stated = {key: getattr(architecture, key) for key in config["architecture"]}
    return Description(stated, metadata, plan)


def _from_training(beside: Mapping[str, Any]) -> Metadata:
    """Class names and colours, where mmsegmentation left them in a training checkpoint."""
    meta = beside.get("meta")
    meta = meta if isinstance(meta, dict) else {}
    info = meta.get("dataset_meta")
    info = info if isinstance(info, dict) else meta
    labels, palette = (info.get(k) or info.get(k.upper()) for k in ("classes", "palette"))
    metadata = Metadata()
    if isinstance(labels, list | tuple) and all(isinstance(label, str) for label in labels):
        metadata = replace(metadata, labels=tuple(labels))
    if isinstance(palette, list | tuple) and all(is_colour(colour) for colour in palette):
        metadata = replace(metadata, palette=tuple(tuple(colour) for colour in palette))
    return metadata


def _front_matter(folder: Path | None) -> dict[str, Any]:
    """The YAML at the head of the model card; empty if there is none that can be read."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8") if folder else ""
        match = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
        data = yaml.safe_load(match[1]) if match else {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}  # prose for people: no reason to refuse the weights
    return data if isinstance(data, dict) else {}


def _ancestors(config: Mapping[str, Any], card: Mapping[str, Any]) -> list[str]:
    """The models that a checkpoint says it was made from."""
    base = card.get("base_model")
    named = [config.get("_name_or_path"), *(base if isinstance(base, list) else [base])]
    return [name for name in named if isinstance(name, str)]


def _terms(card: Mapping[str, Any], names: list[str]) -> str:
    """The terms of the weights: what the card says, and those of NVIDIA's where they are in it."""
    terms = card.get("license")
    terms = terms if isinstance(terms, str) else ""
    if terms == "other":
        terms = str(card.get("license_name") or "other (see the model card of the source)")
    if any(name.startswith("nvidia/") for name in names) or terms == slug(NVIDIA_LICENSE):
        own = not terms or terms.startswith(("other", slug(NVIDIA_LICENSE)))
        return NVIDIA_LICENSE if own else f"{terms}; made from weights under: {NVIDIA_LICENSE}"
    return terms


def slug(text: str) -> str:
    """A text as the hub wants names of licenses: lower case, digits, dots and hyphens."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
