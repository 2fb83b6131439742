"""Writing weights: one file, a folder, or a model on the hub."""

from __future__ import annotations

import contextlib
import json
import logging
import secrets
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from huggingface_hub import HfApi
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from segformerpp.checkpoints import huggingface
from segformerpp.checkpoints.card import card
from segformerpp.checkpoints.description import HEADER_KEY, fitted, to_config
from segformerpp.checkpoints.layouts import HUGGINGFACE
from segformerpp.checkpoints.renaming import COUNTER, Renaming, Tensors
from segformerpp.errors import CheckpointError, UsageError
from segformerpp.models import Metadata, Segformer

logger = logging.getLogger(__name__)

LayoutName = Literal["segformerpp", "huggingface"]


def save(model: Segformer, path: str | Path, *, dtype: torch.dtype | None = None) -> None:
    """Write a model into one file from which `load` restores all of it.

    Args:
        model: its architecture, metadata and merge plan are written with its weights.
        path: ends in ``.safetensors``. Its folder is made where there is none.
        dtype: of the stored numbers, such as ``torch.float16``; None for the model's.

    Raises:
        UsageError: if `path` or `dtype` is something else.
        CheckpointError: if the file cannot be written.
    """
    path = Path(path)
    if path.suffix != ".safetensors":
        raise UsageError(f"path: a file that ends in .safetensors, not {path.name!r}")
    metadata = fitted(model.metadata, model.config, path.name)
    tensors, header = _ours(model, metadata, dtype)
    with _atomic(path) as temporary:
        save_file(tensors, temporary, header)


def save_pretrained(
    model: Segformer,
    folder: str | Path,
    *,
    layout: LayoutName = "segformerpp",
    dtype: torch.dtype | None = None,
) -> None:
    """Write a model into a folder: weights, configuration and model card.

    Args:
        model: what to write.
        folder: made where there is none; files of the same names are replaced.
        layout: ``segformerpp``, or ``huggingface`` for a model that transformers loads too: with
            equal logits if all layer-norm epsilons are 1e-5, the default of models trained here.
            That form has no place for the merge plan and the palette.
        dtype: of the stored numbers; None for the model's.

    Raises:
        CheckpointError: if the model has no such form (head kind ``conv`` in ``huggingface``),
            or a file cannot be written.
        UsageError: if `layout` or `dtype` is something else.
    """
    _save_pretrained(model, Path(folder), layout, dtype, where=Path(folder).name)


def push_to_hub(
    model: Segformer,
    repo_id: str,
    *,
    layout: LayoutName = "segformerpp",
    private: bool = False,
    token: str | None = None,
    dtype: torch.dtype | None = None,
) -> str:
    """Write a model to the Hugging Face hub, as `save_pretrained` writes it to a folder.

    Args:
        model: what to write.
        repo_id: ``owner/name``; made where there is none.
        layout: see `save_pretrained`.
        private: whether a repository that is made is private.
        token: of your account, with permission to write; None for the one of 'hf auth login'.
        dtype: of the stored numbers; None for the model's.

    Returns:
        The address of the model.

    Raises:
        CheckpointError: as `save_pretrained` does, or if the hub refuses.
    """
    with tempfile.TemporaryDirectory() as folder:
        _save_pretrained(model, Path(folder), layout, dtype, where=repo_id)
        try:
            api = HfApi(token=token)
            address = api.create_repo(repo_id, private=private, exist_ok=True)
            api.upload_folder(
                repo_id=repo_id, folder_path=folder, commit_message="Upload a SegFormer"
            )
        except Exception as error:  # of the hub's client, its HTTP library, the network
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise CheckpointError(
                f"{repo_id}: cannot be written to the hub: {reason} (a token that may write "
                f"there is needed: 'hf auth login')"
            ) from None
    return str(address)


def _save_pretrained(
    model: Segformer, folder: Path, layout: LayoutName, dtype: torch.dtype | None, where: str
) -> None:
    if layout not in get_args(LayoutName):
        raise UsageError(f"layout: 'segformerpp' or 'huggingface', not {layout!r}")
    metadata = fitted(model.metadata, model.config, where)
    texts = {"README.md": card(model, metadata, layout, where)}
    if layout == "segformerpp":
        texts["config.json"] = _json(to_config(model, metadata))
        tensors, header = _ours(model, metadata, dtype)
    else:
        tensors, header = _stored(_to_huggingface(model), dtype), {"format": "pt"}
        stored = next(t.dtype for t in tensors.values() if t.is_floating_point())
        texts["config.json"] = _json(huggingface.to_config(model, metadata, stored))
        texts["preprocessor_config.json"] = _json(huggingface.to_preprocessor(metadata))
    weights = folder / "model.safetensors"
    with contextlib.ExitStack() as files:
        # What is entered first appears last: the weights of our layout carry their description.
        save_file(tensors, files.enter_context(_atomic(weights)), header)
        for name, text in texts.items():
            temporary = files.enter_context(_atomic(folder / name))
            temporary.write_text(text, encoding="utf-8")
        if layout == "huggingface":
            # These weights do not say what they are of: better none than beside a description
            # of others, if a run is killed here.
            weights.unlink(missing_ok=True)


def _ours(
    model: Segformer, metadata: Metadata, dtype: torch.dtype | None
) -> tuple[Tensors, dict[str, str]]:
    """The tensors and the header of a file of ours."""
    tensors = {name: t for name, t in _state(model).items() if not name.endswith(COUNTER)}
    header = {"format": "pt", HEADER_KEY: _json(to_config(model, metadata))}
    return _stored(tensors, dtype), header


def _to_huggingface(model: Segformer) -> Tensors:
    config = model.config
    if config.head_kind != "linear":
        raise CheckpointError(
            f"layout: transformers has no decode head of the kind {config.head_kind!r}; save "
            f"this model in the layout 'segformerpp'"
        )
    if not huggingface.is_exact(config):
        logger.warning(
            "transformers computes layer norms with epsilon %g, this model was made with %g and "
            "%g: its logits there will differ slightly",
            huggingface.NORM_EPS,
            config.norm_eps,
            config.embed_norm_eps,
        )
    return Renaming.of(HUGGINGFACE, "segformer.").to_theirs(_state(model))


def _state(model: Segformer) -> Tensors:
    # torch.compile wraps a model or a part of it, and puts the wrapper's name before its tensors'.
    return {name.replace("_orig_mod.", ""): t for name, t in model.state_dict().items()}


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"


def _stored(tensors: Tensors, dtype: torch.dtype | None) -> Tensors:
    if dtype is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point):
        raise UsageError(f"dtype: a floating-point type such as torch.float16, not {dtype!r}")

    def stored(tensor: Tensor) -> Tensor:
        # Safetensors wants each tensor in memory of its own.
        tensor = tensor.detach().cpu().contiguous()
        return tensor.to(dtype) if tensor.is_floating_point() else tensor

    return {name: stored(tensor) for name, tensor in tensors.items()}


@contextlib.contextmanager
def _atomic(path: Path) -> Iterator[Path]:
    """A temporary file that takes the place of `path` once it is complete."""
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.touch()
        # Safetensors makes files that only their owner can read.
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)
        temporary.replace(path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be written: {error}") from None
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
