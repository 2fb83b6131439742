"""Checkpoints as other projects write them, made from our tiny test network."""

import io
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from segformerpp.checkpoints.layouts import (
    HUGGINGFACE,
    HUGGINGFACE_5,
    MMPOSE,
    MMSEGMENTATION,
    NVLABS,
    SEGFORMERPP,
    Layout,
)
from segformerpp.checkpoints.renaming import Renaming
from segformerpp.models import Segformer, SegformerConfig

FOREIGN = [HUGGINGFACE, HUGGINGFACE_5, MMSEGMENTATION, MMPOSE, NVLABS]
LAYOUTS = [SEGFORMERPP, *FOREIGN]


def trained(layout: Layout = SEGFORMERPP, **changes: Any) -> Segformer:
    """A tiny network of the kind that a layout holds, none of whose layers is as good as absent."""
    config: dict[str, Any] = {
        "depths": (1, 1, 2, 1),
        "dims": (8, 16, 40, 64),
        "head_dim": 16,
        "head_kind": "conv" if layout in (MMSEGMENTATION, MMPOSE) else "linear",
        "num_outputs": 4,
        "norm_eps": layout.norm_eps,
        "embed_norm_eps": layout.embed_norm_eps,
    }
    model = Segformer(SegformerConfig(**{**config, **changes}))
    randomise(model)
    return model.eval()


def randomise(model: nn.Module) -> None:
    """Give every parameter a value that shows in the output; the initial ones hardly do."""
    generator = torch.Generator().manual_seed(1)
    for module in model.modules():
        for name, tensor in module.state_dict().items():
            if "." in name:
                continue
            if name == "running_var" or (name == "weight" and tensor.ndim == 1):
                tensor.uniform_(0.5, 1.5, generator=generator)
            elif name == "weight":
                tensor.normal_(std=tensor[0].numel() ** -0.5, generator=generator)
            elif name in ("bias", "running_mean"):
                tensor.normal_(std=0.1, generator=generator)


def state(model: Segformer, layout: Layout, prefix: str | None = None) -> dict[str, Tensor]:
    """The model's tensors in a layout; `prefix` is that of its encoder."""
    prefix = layout.prefixes[0] if prefix is None else prefix
    return Renaming.of(layout, prefix).to_theirs(dict(model.state_dict()))


def encoder(model: Segformer, layout: Layout) -> dict[str, Tensor]:
    """The encoder alone, under the last of the layout's prefixes."""
    tensors = {k: v for k, v in model.state_dict().items() if k.startswith("encoder.")}
    return Renaming.of(layout, layout.prefixes[-1]).to_theirs(tensors)


def write_torch_zip(path: Path, payload: bytes) -> Path:
    """A file in PyTorch's format whose pickle is exactly `payload`."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr("archive/data.pkl", payload)
        archive.writestr("archive/byteorder", "little")
        archive.writestr("archive/version", "3\n")
    return path


def pickled(value: Any) -> bytes:
    buffer = io.BytesIO()
    pickle.dump(value, buffer, protocol=2)
    return buffer.getvalue()
