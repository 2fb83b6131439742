"""Where a checkpoint is: a bundled name, a file, a folder, or a model on the Hugging Face hub."""

from __future__ import annotations

import fnmatch
import importlib.resources
import re
from dataclasses import dataclass
from pathlib import Path

from segformerpp.errors import CheckpointError

#: Endings of files that hold weights, in the order of preference.
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt")
#: Names of whole weights as save_pretrained gives them, the preferred first.
STANDARD_NAMES = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
#: What trainers put beside weights, with the same endings.
NOT_WEIGHTS = ("training_args.bin", "optimizer.*", "scheduler.*", "scaler.*", "rng_state*")

_DESCRIPTIONS = ["config.json", "preprocessor_config.json", "README.md"]
_SAFETENSORS = ["model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"]
_OTHERS = [*(f"*{suffix}" for suffix in WEIGHTS_SUFFIXES), "pytorch_model.bin.index.json"]
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)


@dataclass(frozen=True, slots=True)
class Source:
    """A checkpoint on this machine.

    Attributes:
        weights: the weights file, or the index of its shards.
        folder: with the files that describe it; None where the weights file stands alone.
        name: what the user called it; of a path the last part.
    """

    weights: Path
    folder: Path | None
    name: str


def bundled() -> dict[str, Path]:
    """The models that come with the package: their folders by name."""
    root = Path(str(importlib.resources.files("segformerpp"))) / "weights"
    folders = sorted(root.iterdir()) if root.is_dir() else []
    return {folder.name: folder for folder in folders if _candidates(folder)}


def locate(source: str | Path, revision: str | None, offline: bool) -> Source:
    """Find a checkpoint, downloading it where it is on the hub.

    A bundled name comes first (write ``./camvid-b0`` for a folder that is called like one), then
    a path that exists, then a hub id.

    Raises:
        CheckpointError: if there is none; the text says what to do.
    """
    name, folder = str(source), bundled().get(str(source))
    if isinstance(source, str) and folder:
        return Source(_weights_in(folder), folder, name)
    path = _existing(source)
    if path and path.is_dir():
        return Source(_weights_in(path), path, path.resolve().name)
    if path:
        # One of these names is only given by save_pretrained, which describes it in its folder.
        described = path.parent if path.name in STANDARD_NAMES else None
        return Source(path, described, path.name)
    looks_like_path = isinstance(source, Path) or name.endswith(WEIGHTS_SUFFIXES)
    if looks_like_path or not _HUB_ID.fullmatch(name):
        raise CheckpointError(
            f"{name!r}: no such file or folder, nor a bundled model ({_names()}) or a hub id "
            f"(owner/name)"
        )
    folder = _download(name, revision, offline)
    return Source(_weights_in(folder), folder, f"{name}@{revision}" if revision else name)


def _existing(source: str | Path) -> Path | None:
    try:
        path = Path(source).expanduser()
        return path if str(source) and path.exists() else None
    except (OSError, ValueError, RuntimeError):  # no name that a file could have
        return None


def _names() -> str:
    return ", ".join(bundled()) or "none in this installation"


def _candidates(folder: Path) -> list[Path]:
    """The weights files of a folder: the standard one alone if there is one, else all."""
    for name in STANDARD_NAMES:
        if (folder / name).is_file():
            return [folder / name]
    return [
        path
        for path in sorted(folder.glob("*"))
        if path.suffix in WEIGHTS_SUFFIXES
        and path.is_file()
        and not any(fnmatch.fnmatch(path.name, pattern) for pattern in NOT_WEIGHTS)
    ]


def _weights_in(folder: Path) -> Path:
    paths = _candidates(folder)
    if len(paths) == 1:
        return paths[0]
    if not paths:
        endings = ", ".join(WEIGHTS_SUFFIXES)
        raise CheckpointError(f"{folder}: no weights in this folder (files ending in {endings})")
    names = ", ".join(path.name for path in paths[:5]) + (", ..." if len(paths) > 5 else "")
    raise CheckpointError(f"{folder}: several weights files, name one of them: {names}")


def _download(repo_id: str, revision: str | None, offline: bool) -> Path:
    from huggingface_hub import snapshot_download

    def download(patterns: list[str]) -> Path:
        return Path(
            snapshot_download(
                repo_id,
                revision=revision,
                allow_patterns=patterns,
                ignore_patterns=["*/*", *NOT_WEIGHTS],
                local_files_only=offline,
            )
        )

    try:
        folder = download([*_DESCRIPTIONS, *_SAFETENSORS])
        # Other formats only where needed: repositories often hold the same weights in several.
        if not _candidates(folder):
            folder = download([*_DESCRIPTIONS, *_OTHERS])
    except Exception as error:  # of the hub's client, its HTTP library, the cache's file system
        raise CheckpointError(_explain(repo_id, revision, offline, error)) from None
    if not _candidates(folder):
        where = "local cache: load it once without offline" if offline else "repository"
        raise CheckpointError(f"{repo_id}: no weights of it in the {where}")
    return folder


def _explain(repo_id: str, revision: str | None, offline: bool, error: Exception) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return (
            f"{repo_id}: its owner grants access on request: ask at "
            f"https://huggingface.co/{repo_id}, then run 'hf auth login'"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"{repo_id}: neither a path here nor a model on the hub, or a private one (for that "
            f"run 'hf auth login'); bundled models: {_names()}"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{repo_id}: the hub has no revision {revision!r} of it"
    if offline:
        return f"{repo_id}: not in the local cache: load it once without offline, or give a path"
    if isinstance(error, errors.LocalEntryNotFoundError | ConnectionError):
        return (
            f"{repo_id}: neither a path here nor in the local cache, and the hub cannot be "
            f"reached: check the connection, or give a path"
        )
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return f"{repo_id}: cannot be fetched from the hub: {reason}"
