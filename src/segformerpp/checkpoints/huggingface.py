"""config.json and preprocessor_config.json as transformers has them, read and written."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from typing import Any

import torch

from segformerpp.errors import CheckpointError
from segformerpp.models import Metadata, Segformer, SegformerConfig

#: The epsilon of all of transformers' layer norms, whatever its config says.
NORM_EPS = 1e-5

# Ours and theirs, for architecture that both sides have as a value.
_FIELDS = {
    "depths": "depths",
    "dims": "hidden_sizes",
    "heads": "num_attention_heads",
    "sr_ratios": "sr_ratios",
    "mlp_ratios": "mlp_ratios",
    "patch_sizes": "patch_sizes",
    "head_dim": "decoder_hidden_size",
    "in_channels": "num_channels",
    "drop_path": "drop_path_rate",
    "dropout": "classifier_dropout_prob",
}
# What the network cannot do otherwise.
_FIXED = {"strides": [4, 2, 2, 2], "num_encoder_blocks": 4, "hidden_act": "gelu"}
_SIZE = 512  # of transformers' image processor, where its file does not say


def read(
    config: Mapping[str, Any], preprocessor: Mapping[str, Any], name: str
) -> tuple[dict[str, Any], Metadata]:
    """Read both files; the second may be empty.

    Returns:
        The fields of `SegformerConfig` that are stated, and the metadata.

    Raises:
        CheckpointError: if the network is none of ours, or a value cannot be read.
    """
    for key, value in _FIXED.items():
        if config.get(key, value) != value:
            found = reprlib.repr(config[key])
            raise CheckpointError(
                f"{name}: config.json has {key} {found}; only {value!r} is supported"
            )
    stated = {
        ours: tuple(config[theirs]) if isinstance(config[theirs], list) else config[theirs]
        for ours, theirs in _FIELDS.items()
        if theirs in config
    }
    try:
        return stated, _read_metadata(_labels(config), preprocessor)
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(
            f"{name}: config.json or preprocessor_config.json is not understood: {error!r}"
        ) from None


def _labels(config: Mapping[str, Any]) -> tuple[str, ...]:
    names = {int(key): str(label) for key, label in (config.get("id2label") or {}).items()}
    labels = tuple(names[i] for i in sorted(names))
    counted = sorted(names) == list(range(len(names)))
    placeholders = all(label == f"LABEL_{i}" for i, label in enumerate(labels))
    return labels if counted and not placeholders else ()


def _read_metadata(labels: tuple[str, ...], data: Mapping[str, Any]) -> Metadata:
    if not data:
        return Metadata(labels=labels)
    # Their processor computes (image * scale - mean) / std, ours (image - mean) / std.
    scale = data.get("rescale_factor", 1 / 255) if data.get("do_rescale", True) else 1.0
    mean, std = [0.0] * 3, [1.0] * 3
    if data.get("do_normalize", True):
        mean = data.get("image_mean") or [m / 255 for m in Metadata().mean]
        std = data.get("image_std") or [s / 255 for s in Metadata().std]
    size = data.get("size", _SIZE) if data.get("do_resize", True) else None
    if isinstance(size, dict):
        # A shortest edge keeps the aspect ratio, which a fixed size cannot express.
        size = (size["height"], size["width"]) if "height" in size else None
    elif size is not None:
        size = tuple(size) if isinstance(size, list) else (size, size)
    return Metadata(
        labels=labels,
        mean=tuple(round(m / scale, 6) for m in mean),
        std=tuple(round(s / scale, 6) for s in std),
        image_size=size,
        reduce_labels=bool(data.get("do_reduce_labels", data.get("reduce_labels", False))),
    )


def to_config(model: Segformer, metadata: Metadata, dtype: torch.dtype) -> dict[str, Any]:
    """The config.json with which transformers builds this network."""
    config = model.config.to_dict()
    labels = metadata.labels or tuple(f"LABEL_{i}" for i in range(model.config.num_outputs))
    return {
        "architectures": ["SegformerForSemanticSegmentation"],
        "model_type": "segformer",
        **{theirs: config[ours] for ours, theirs in _FIELDS.items()},
        **_FIXED,
        "attention_probs_dropout_prob": 0.0,
        "hidden_dropout_prob": 0.0,
        "layer_norm_eps": model.config.norm_eps,
        "id2label": {str(i): label for i, label in enumerate(labels)},
        "label2id": {label: i for i, label in enumerate(labels)},
        "reshape_last_stage": True,
        "semantic_loss_ignore_index": 255,
        "torch_dtype": str(dtype).removeprefix("torch."),
    }


def to_preprocessor(metadata: Metadata) -> dict[str, Any]:
    """The preprocessor_config.json with which transformers prepares images alike."""
    h, w = metadata.image_size or (_SIZE, _SIZE)
    return {
        "image_processor_type": "SegformerImageProcessor",
        "do_resize": metadata.image_size is not None,
        "size": {"height": h, "width": w},
        "resample": 2,  # bilinear
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [m / 255 for m in metadata.mean],
        "image_std": [s / 255 for s in metadata.std],
        "do_reduce_labels": metadata.reduce_labels,
    }


def is_exact(config: SegformerConfig) -> bool:
    """Whether transformers computes the same with this architecture."""
    return config.norm_eps == config.embed_norm_eps == NORM_EPS
