import contextlib
import json
import os
import sys
import types
import zipfile
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from segformerpp.checkpoints import load, save
from segformerpp.checkpoints.layouts import HUGGINGFACE, MMSEGMENTATION
from segformerpp.errors import CheckpointError
from tests.checkpoints.foreign import pickled, state, trained, write_torch_zip

FILES = ["ours.safetensors", "zip.pth", "legacy.pth"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    model = trained()
    save(model, folder / "ours.safetensors", dtype=torch.float16)
    torch.save(model.state_dict(), folder / "zip.pth")
    torch.save(model.state_dict(), folder / "legacy.pth", _use_new_zipfile_serialization=False)
    return folder


def refused(path: Path) -> str:
    """The text with which `load` refuses a file, which is one line and names it."""
    with pytest.raises(CheckpointError) as caught:
        load(path)
    text = str(caught.value)
    assert path.name in text
    assert "\n" not in text
    return text


@pytest.mark.parametrize("name", FILES)
def test_all_formats_are_told_apart_by_content(name: str, files: Path, tmp_path: Path) -> None:
    other = tmp_path / ("a.pth" if name.endswith("safetensors") else "a.safetensors")
    other.write_bytes((files / name).read_bytes())
    assert load(other).config == load(files / name).config == trained().config


@pytest.mark.parametrize("name", FILES)
@settings(
    max_examples=40,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_files_are_refused(name: str, share: float, files: Path, tmp_path: Path) -> None:
    data = (files / name).read_bytes()
    path = tmp_path / name
    path.write_bytes(data[: int(share * len(data))])
    refused(path)


@pytest.mark.parametrize("name", FILES)
@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(at=st.integers(0, 1 << 16), byte=st.integers(0, 255), from_end=st.booleans())
def test_a_wrong_byte_is_refused_or_harmless(
    name: str, at: int, byte: int, from_end: bool, files: Path, tmp_path: Path
) -> None:
    data = bytearray((files / name).read_bytes())
    at %= len(data)
    data[-at if from_end else at] = byte
    path = tmp_path / name
    path.write_bytes(data)
    with contextlib.suppress(CheckpointError):
        load(path)


@settings(
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.binary(max_size=60), start=st.sampled_from([b"", b"PK\x03\x04", b"\x80\x02"]))
def test_garbage_is_refused(data: bytes, start: bytes, tmp_path: Path) -> None:
    for name in ("a.safetensors", "a.pth"):
        (tmp_path / name).write_bytes(start + data)
        refused(tmp_path / name)


def test_wrong_files_are_named_in_one_line(tmp_path: Path) -> None:
    (tmp_path / "empty.pth").touch()
    assert "empty" in refused(tmp_path / "empty.pth")
    (tmp_path / "page.pth").write_text("<!DOCTYPE html>\n<html>not found</html>")
    assert "neither a safetensors nor a PyTorch file" in refused(tmp_path / "page.pth")
    (tmp_path / "pointer.safetensors").write_text("version https://git-lfs.github.com/spec/v1\n")
    assert "git lfs pull" in refused(tmp_path / "pointer.safetensors")
    with zipfile.ZipFile(tmp_path / "archive.pth", "w") as archive:
        archive.writestr("readme.txt", "no weights")
    refused(tmp_path / "archive.pth")
    (tmp_path / "folder").mkdir()
    assert "no weights in this folder" in refused(tmp_path / "folder")
    if os.geteuid():  # root may read everything
        (tmp_path / "empty.pth").chmod(0)
        assert "Permission denied" in refused(tmp_path / "empty.pth")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([torch.zeros(1)], "expected tensors by name"),
        (torch.zeros(1), "expected tensors by name"),
        ({1: torch.zeros(1)}, "expected tensors by name"),
        ({}, "no tensors"),
        ({"weight": [1, 2]}, "'weight' is no tensor but a list"),
        ({"weight": torch.zeros(2, 2).to_sparse()}, "without plain numbers"),
        ({"weight": torch.zeros(2, device="meta")}, "without plain numbers"),
        ({"weight": torch.zeros(1).expand(10**12)}, "larger than the numbers it has"),
        (torch.nn.Conv2d(1, 1, 1), "asks to execute torch.nn.modules.conv.Conv2d"),
        ({"model": torch.nn.Identity()}, "have it saved as safetensors"),
    ],
)
def test_other_things_than_tensors_are_refused(value: Any, text: str, tmp_path: Path) -> None:
    torch.save(value, tmp_path / "a.pth")
    assert text in refused(tmp_path / "a.pth")


class Hostile:
    """Runs a function with arguments when it is unpickled."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("legacy", [False, True])
def test_pickled_code_is_never_executed(legacy: bool, tmp_path: Path) -> None:
    marker, path = tmp_path / "executed", tmp_path / "a.pth"
    weights = trained().state_dict()
    for function, argument in (
        (os.system, f"touch {marker}"),
        (eval, f"open({str(marker)!r}, 'w')"),
        (exec, f"open({str(marker)!r}, 'w')"),
        (open, str(marker)),
    ):
        value = {"state_dict": weights, "meta": Hostile(function, argument)}
        torch.save(value, path, _use_new_zipfile_serialization=not legacy)
        assert "refused, because it asks to execute" in refused(path)
        path.write_bytes(pickled(Hostile(function, argument)))
        refused(path)
        assert not marker.exists()


def test_names_of_refused_code_are_printable(tmp_path: Path) -> None:
    path = write_torch_zip(tmp_path / "a.pth", b"\x80\x02c\x1b[31mred\nwhat\n.")
    assert refused(path).isprintable()


def test_stand_ins_give_nothing_to_call(tmp_path: Path) -> None:
    # getattr(numpy.ndarray, "__class__") would be a way from an allowed name to any other.
    reach = b"cbuiltins\ngetattr\ncnumpy\nndarray\nX\x09\x00\x00\x00__class__\x86R"
    path = write_torch_zip(tmp_path / "a.pth", b"\x80\x02" + reach + b"X\x01\x00\x00\x00a\x85R.")
    assert "unrecognized function" in refused(path)
    path = write_torch_zip(tmp_path / "b.pth", b"\x80\x02" + reach + b".")
    assert "expected tensors by name" in refused(path)
    # State given to a stand-in goes nowhere either.
    path = write_torch_zip(
        tmp_path / "c.pth", b"\x80\x02" + reach + pickled({"a": 1})[2:-1] + b"b."
    )
    assert "expected tensors by name" in refused(path)


def mmengine_checkpoint(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training checkpoint with the objects that mmengine leaves in one; its module is gone."""
    module = types.ModuleType("mmengine.logging.history_buffer")
    source = """
class HistoryBuffer:
    def mean(self):
        raise RuntimeError
    def __init__(self, numpy):
        self.max_length = 10
        self._log_history = numpy.array([0.5, 0.25])
        self._count_history = numpy.array([1, 1])
        self._statistics_methods = {"mean": HistoryBuffer.mean}
"""
    exec(source, module.__dict__)
    module.HistoryBuffer.__module__ = module.__name__
    with monkeypatch.context() as patched:
        for name in ("mmengine", "mmengine.logging"):
            patched.setitem(sys.modules, name, types.ModuleType(name))
        patched.setitem(sys.modules, module.__name__, module)
        counts: defaultdict[str, int] = defaultdict(int, steps=3)
        hub = {
            "log_scalars": OrderedDict(loss=module.HistoryBuffer(np)),
            "runtime_info": OrderedDict(lr=np.float64(0.1), kind=np.dtype("int32"), n=counts),
        }
        meta = {"dataset_meta": {"classes": ("a", "b", "c", "d"), "palette": [[0, 0, 0]] * 4}}
        tensors = state(trained(MMSEGMENTATION), MMSEGMENTATION)
        optimizer = {"state": {0: {"exp_avg": torch.zeros(3)}}, "param_groups": [{"lr": 0.1}]}
        torch.save(
            {"meta": meta, "state_dict": tensors, "message_hub": hub, "optimizer": optimizer}, path
        )


@pytest.mark.parametrize("numpy_1", [False, True])
def test_mmengine_training_checkpoints_are_read_through_stand_ins(
    numpy_1: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "iter_160000.pth"
    mmengine_checkpoint(path, monkeypatch)
    if numpy_1:
        with zipfile.ZipFile(path) as old, zipfile.ZipFile(tmp_path / "old.pth", "w") as new:
            for name in old.namelist():
                data = old.read(name)
                if name.endswith("data.pkl"):
                    assert b"numpy._core.multiarray" in data
                    data = data.replace(b"numpy._core.multiarray", b"numpy.core.multiarray")
                new.writestr(name, data)
        path = tmp_path / "old.pth"
    permitted = set(torch.serialization.get_safe_globals())
    model = load(path)
    assert model.metadata.labels == ("a", "b", "c", "d")
    assert model.metadata.palette == ((0, 0, 0),) * 4
    assert "mmengine" not in sys.modules
    # The permissions end with the reading.
    assert set(torch.serialization.get_safe_globals()) == permitted


META = st.recursive(
    st.none()
    | st.integers()
    | st.text(max_size=5)
    | st.builds(torch.zeros, st.integers(0, 3))
    | st.builds(np.zeros, st.integers(0, 3)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(
            st.sampled_from(["classes", "CLASSES", "palette", "PALETTE", "dataset_meta", "x"]),
            inner,
        )
    ),
    max_leaves=8,
)


@settings(
    max_examples=100,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(meta=META)
@example(meta={"classes": torch.zeros(3)})
@example(meta={"dataset_meta": {"palette": torch.zeros(4, 3)}})
def test_odd_things_beside_the_tensors_are_refused_or_harmless(meta: Any, tmp_path: Path) -> None:
    torch.save({"state_dict": trained().state_dict(), "meta": meta}, tmp_path / "a.pth")
    said, labels = "", 0
    try:
        labels = len(load(tmp_path / "a.pth").metadata.labels)
    except CheckpointError as error:
        said = str(error)
    assert "\n" not in said
    assert labels in (0, 4)


def write_shards(folder: Path, suffix: str) -> Path:
    tensors = state(trained(HUGGINGFACE), HUGGINGFACE)
    stem = "model" if suffix == "safetensors" else "pytorch_model"
    weight_map: dict[str, str] = {}
    for number in (1, 2):
        part = {k: v for i, (k, v) in enumerate(tensors.items()) if i % 2 == number - 1}
        name = f"{stem}-0000{number}-of-00002.{suffix}"
        if suffix == "safetensors":
            save_file(part, folder / name)
        else:
            torch.save(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    index = folder / f"{stem}.{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return index


@pytest.mark.parametrize("suffix", ["safetensors", "bin"])
def test_shards_are_put_together(suffix: str, tmp_path: Path) -> None:
    index = write_shards(tmp_path, suffix)
    assert load(tmp_path).config == load(index).config == trained(HUGGINGFACE).config
    next(tmp_path.glob(f"*-00002-of-00002.{suffix}")).unlink()
    with pytest.raises(CheckpointError, match=r"00002-of-00002.*No such file"):
        load(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {"a": "../a.safetensors"}}',
        '{"weight_map": {"a": "/etc/passwd"}}',
        '{"weight_map": {"a": "a\\nb.safetensors"}}',
        '{"weight_map": {"a": "a\\u0000b.safetensors"}}',
        '{"weight_map": {"a": "model.safetensors.index.json"}}',
        "[" * 100_000,
    ],
)
def test_broken_indices_are_refused(content: str, tmp_path: Path) -> None:
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(content)
    refused(index)
