"""A checkpoint that was found, with its tensors still in their file.

PyTorch is needed to read a checkpoint of any layout for the first time. What was learnt then is
kept in the cache, so that a network that was compiled before starts without PyTorch.
"""

from __future__ import annotations

import copy
import hashlib
import json
import logging
import threading
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from segformerpp import cache
from segformerpp.checkpoints.sources import Source, locate
from segformerpp.errors import CheckpointError
from segformerpp.models.config import Metadata, SegformerConfig
from segformerpp.plans import MergePlan

if TYPE_CHECKING:
    from segformerpp.models import Segformer

logger = logging.getLogger(__name__)

T = TypeVar("T")
Plan = MergePlan | str | Path | Mapping[str, Any] | None


class Checkpoint:
    """A model whose tensors are read when they are needed.

    Attributes:
        config: the architecture.
        metadata: what its inputs and outputs mean.
        merge_plan: what is merged where.
        name: what the user called it.
        digest: a hash of its tensors and of what is said about them; None for a model that was
            never in a file.

    Reading tensors raises CheckpointError if the files have changed since they were found.
    """

    def __init__(
        self,
        config: SegformerConfig,
        metadata: Metadata,
        merge_plan: MergePlan,
        model: Callable[[], Segformer],
        name: str,
        found: Source | None = None,
        digest: str | None = None,
    ) -> None:
        self.config, self.metadata, self.merge_plan = config, metadata, merge_plan
        self.name, self.digest, self._make, self._found = name, digest, model, found

    @classmethod
    def of_model(cls, model: Segformer, merge: Plan = None) -> Checkpoint:
        """Wrap a model in memory; it is used as it is, and gets the plan if one is given."""
        if merge is not None:
            model.merge_plan = merge
        return cls(
            model.config, model.metadata, model.merge_plan, lambda: model, model.metadata.source
        )

    def with_plan(self, plan: MergePlan) -> Checkpoint:
        """The same with another plan; networks in memory are copied, not shared."""

        def make() -> Segformer:
            return copy.deepcopy(self.model())

        return Checkpoint(
            *(self.config, self.metadata, plan, make, self.name, self._found, self.digest)
        )

    @cached_property
    def _model(self) -> Segformer:
        model = self._unchanged(self._make).eval().requires_grad_(False)
        model.merge_plan = self.merge_plan
        return model

    def model(self) -> Segformer:
        """The network, in evaluation mode and on the CPU; imports PyTorch."""
        return self._model

    def tensors(self) -> dict[str, np.ndarray]:
        """The tensors in float32, by their names in `Segformer`."""
        if "_model" not in self.__dict__ and self._found and _is_ours(self._found.weights):
            return self._unchanged(partial(_arrays, self._found.weights))
        state = self._model.state_dict()
        return {name: tensor.numpy() for name, tensor in state.items() if tensor.ndim > 0}

    def _unchanged(self, read: Callable[[], T]) -> T:
        """Read the files; what is cached under their hash must have come from what it is of."""
        if self._found is None:
            return read()
        try:
            result = read()
            same = _digest(self._found) == self.digest
        except OSError:
            same = False
        if not same:
            raise CheckpointError(f"{self.name}: has changed since it was opened; open it again")
        return result


def open_checkpoint(
    source: str | Path, merge: Plan = None, *, offline: bool = False, revision: str | None = None
) -> Checkpoint:
    """Find a checkpoint and learn what it is; see `load` for the arguments and errors."""
    plan = None if merge is None else MergePlan.parse(merge)
    found = locate(source, revision, offline)
    learnt: list[Segformer] = []
    said = _Warnings()

    def load() -> Segformer:
        from segformerpp.checkpoints.loading import load

        return learnt.pop() if learnt else load(source, offline=offline, revision=revision)

    def learn() -> bytes:
        with said:
            model = load()
        learnt.append(model)
        facts = {
            "config": model.config.to_dict(),
            "metadata": model.metadata.to_dict(),
            "merge_plan": model.merge_plan.to_dict(),
            "warnings": said.messages,
        }
        return json.dumps(facts).encode()

    digest = _digest(found)
    key = {"model": found.name, "weights": digest, "code": cache.code_version("checkpoints")}
    config, metadata, own_plan, warnings = cache.fetch("checkpoint", key, learn, _parse)
    for text in [] if learnt else warnings:
        logger.warning("%s", text)
    if _is_ours(found.weights):
        learnt.clear()  # its tensors are read without PyTorch
    return Checkpoint(config, metadata, plan or own_plan, load, found.name, found, digest)


class _Warnings(logging.Handler):
    """Keeps what is said of a checkpoint while it is read, to say it again the next time.

    In this thread: others may be reading other checkpoints.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []
        self._thread = threading.get_ident()

    def emit(self, record: logging.LogRecord) -> None:
        if record.thread == self._thread:
            self.messages.append(record.getMessage())

    def __enter__(self) -> None:
        logging.getLogger(__package__).addHandler(self)

    def __exit__(self, *error: object) -> None:
        logging.getLogger(__package__).removeHandler(self)


def _parse(facts: bytes) -> tuple[SegformerConfig, Metadata, MergePlan, list[str]]:
    data = json.loads(facts)
    plan = MergePlan.from_dict(data["merge_plan"])
    config = SegformerConfig.from_dict(data["config"])
    return config, Metadata.from_dict(data["metadata"]), plan, data["warnings"]


def _arrays(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return {name: array.astype(np.float32) for name, array in load_file(path).items()}


def _digest(found: Source) -> str:
    """A hash of the weights, all shards of them, and of the files that describe them."""
    paths = [found.weights]
    if found.weights.name.endswith(".index.json"):
        ending = ".safetensors" if ".safetensors" in found.weights.name else ".bin"
        paths += sorted(found.weights.parent.glob(f"*{ending}"))
    if found.folder:
        names = ("config.json", "preprocessor_config.json", "README.md")
        paths += [found.folder / name for name in names]
    digest = hashlib.sha256()
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        digest.update(path.name.encode())
    return digest.hexdigest()


def _is_ours(path: Path) -> bool:
    """Whether a file is a whole model of ours, whose tensors can be taken as they are."""
    if path.suffix != ".safetensors":
        return False
    import safetensors

    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            names = list(file.keys())
            if "segformerpp" not in (file.metadata() or {}) or "head.fuse.weight" not in names:
                return False
            # Others, such as bf16, NumPy does not have.
            return {file.get_slice(name).get_dtype() for name in names} <= {"F64", "F32", "F16"}
    except Exception:  # `load` says what is wrong with it
        return False
