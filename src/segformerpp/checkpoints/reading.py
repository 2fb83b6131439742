"""Reading the tensors of a checkpoint file; nothing that a file says is ever executed."""

from __future__ import annotations

import json
import re
import threading
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from torch import Tensor

from segformerpp.errors import CheckpointError

# Keys below which training code keeps the tensors, in the order of preference.
_STATE_KEYS = ("state_dict", "model", "model_state_dict", "state_dict_ema")


@dataclass(frozen=True, slots=True)
class Contents:
    """What a weights file holds.

    Attributes:
        tensors: by the names in the file.
        header: the texts in the header of a safetensors file.
        beside: what stands beside the tensors in a PyTorch file, by key.
    """

    tensors: dict[str, Tensor]
    header: Mapping[str, str] = field(default_factory=dict)
    beside: Mapping[str, Any] = field(default_factory=dict)


class _Inert:
    """Stands in for a class or function named in a pickle: does nothing, whatever it is given."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass


class _InertDict(_Inert):
    """Stands in for a class of dictionaries; PyTorch only fills plain ones."""

    def __new__(cls, *args: Any, **kwargs: Any) -> Any:
        return {}


# What the training checkpoints of mmengine hold beside the tensors.
_INERT_NAMES = (
    "builtins.dict",
    "builtins.float",
    "builtins.getattr",
    "builtins.int",
    "builtins.list",
    "mmengine.logging.history_buffer.HistoryBuffer",
    "mmengine.logging.message_hub.MessageHub",
    "numpy.dtype",
    "numpy.ndarray",
    *(
        f"numpy.{core}.multiarray.{n}"
        for core in ("core", "_core")
        for n in ("_reconstruct", "scalar")
    ),
    *(f"numpy.dtypes.{kind}{bits}DType" for kind in ("Int", "UInt") for bits in (8, 16, 32, 64)),
    *(f"numpy.dtypes.Float{bits}DType" for bits in (16, 32, 64)),
    "numpy.dtypes.BoolDType",
    "numpy.dtypes.StrDType",
)
_STAND_INS: list[Any] = [(_Inert, name) for name in _INERT_NAMES]
_STAND_INS.append((_InertDict, "collections.defaultdict"))
# PyTorch's list of allowed names is global: one reader must not end another's permission.
_LOCK = threading.Lock()


def read(path: Path) -> Contents:
    """Read a weights file, or the shards that an index file names.

    Args:
        path: a safetensors or PyTorch file, told apart by their contents, or ``*.index.json``.

    Returns:
        Its tensors, on the CPU, possibly mapped from the file.

    Raises:
        CheckpointError: if it cannot be read, holds other things than floating-point tensors, or
            would have to execute code; one line that names the file.
    """
    if path.name.endswith(".index.json"):
        return _read_shards(path)
    try:
        with path.open("rb") as file:
            start = file.read(32)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not start:
        raise CheckpointError(f"{path}: the file is empty")
    if start.startswith(b"version https://git-lfs"):
        raise CheckpointError(f"{path}: a Git LFS pointer, not the weights; run 'git lfs pull'")
    is_zip = start.startswith(b"PK\x03\x04")
    # The length that a safetensors file starts with can look like the first byte of a pickle.
    is_pickle = start.startswith(b"\x80") and start[8:9] != b"{"
    contents = _read_torch(path, is_zip) if is_zip or is_pickle else _read_safetensors(path)
    for name, tensor in contents.tensors.items():
        _refuse_unusual_storage(f"{path}: {name!r}", tensor)
    if not contents.tensors:
        raise CheckpointError(f"{path}: holds no tensors")
    return contents


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file that holds an object.

    Raises:
        CheckpointError: if it does not.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read as JSON: {one_line(error)}") from None
    if not isinstance(data, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return data


def _read_safetensors(path: Path) -> Contents:
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return Contents(tensors, file.metadata() or {})
    except Exception as error:  # the reader's own, PyTorch's for dtypes that it lacks, ...
        if path.suffix != ".safetensors":
            raise CheckpointError(f"{path}: neither a safetensors nor a PyTorch file") from None
        raise CheckpointError(f"{path}: broken or no safetensors: {one_line(error)}") from None


def _read_torch(path: Path, is_zip: bool) -> Contents:
    try:
        # By a path PyTorch can map a file, but goes by its ending in what it takes it for.
        mmap = is_zip and path.suffix != ".safetensors"
        with (
            _LOCK,
            torch.serialization.safe_globals(_STAND_INS),
            warnings.catch_warnings(action="ignore"),  # a broken file is an error, said once
            path.open("rb") as file,
        ):
            data = torch.load(
                path if mmap else file, map_location="cpu", weights_only=True, mmap=mmap
            )
    except Exception as error:  # a broken pickle can raise anything
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused:
            raise CheckpointError(
                f"{path}: refused, because it asks to execute {_printable(refused[1])}; a "
                f"checkpoint needs nothing but tensors: have it saved as safetensors"
            ) from None
        raise CheckpointError(
            f"{path}: broken or no PyTorch checkpoint: {one_line(error)}"
        ) from None
    beside: Mapping[str, Any] = {}
    if isinstance(data, dict):
        keys = [k for k in _STATE_KEYS if isinstance(data.get(k), dict)]
        key = max(keys, key=lambda k: len(data[k]) > 0, default=None)  # the first that has any
        if key is not None:
            beside = {k: v for k, v in data.items() if k != key}
            data = data[key]
    if not isinstance(data, dict) or not all(isinstance(name, str) for name in data):
        raise CheckpointError(f"{path}: not a checkpoint: expected tensors by name")
    return Contents(data, beside=beside)


def _read_shards(path: Path) -> Contents:
    shards = read_json(path).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise CheckpointError(f"{path}: an index of shards has a 'weight_map'")
    tensors: dict[str, Tensor] = {}
    for name in sorted(set(map(str, shards.values()))):
        # A shard lies beside its index; anything else would read files we were not given.
        beside = Path(name).name == name and name.isprintable()
        if not beside or name.endswith(".index.json"):
            raise CheckpointError(f"{path}: {name!r} is not the name of a shard beside it")
        tensors.update(read(path.with_name(name)).tensors)
    return Contents(tensors)


def _refuse_unusual_storage(name: str, tensor: Any) -> None:
    """Raise unless `tensor` is a dense one of plain numbers."""
    if not isinstance(tensor, Tensor):
        raise CheckpointError(f"{name} is no tensor but a {type(tensor).__name__}")
    if tensor.is_meta or tensor.layout != torch.strided or tensor.is_quantized:
        raise CheckpointError(f"{name} is a tensor without plain numbers")
    # A few bytes can be viewed as a tensor of any size.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(f"{name} is larger than the numbers it has")


def _printable(text: str) -> str:
    """A text from a file on one line, without codes that terminals obey."""
    return "".join(char if char.isprintable() else "?" for char in " ".join(text.split()))


def one_line(error: BaseException) -> str:
    """What an error says, in short."""
    # PyTorch puts a paragraph on how to allow everything before what is wrong.
    text = str(error).rpartition("WeightsUnpickler error: ")[2]
    text = _printable(text) or type(error).__name__
    return text if len(text) <= 200 else text[:200] + "..."
