import logging
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from segformerpp import cache
from segformerpp.checkpoints import (
    Checkpoint,
    load,
    loading,
    open_checkpoint,
    save,
    save_pretrained,
)
from segformerpp.checkpoints.saving import LayoutName
from segformerpp.errors import CheckpointError
from segformerpp.models import Segformer
from segformerpp.runtimes.native import native_precisions

NO_TORCH = """
import sys
from segformerpp import Predictor
predict = Predictor(sys.argv[1], merge="hq", runtime="openvino", precision="f32", device="cpu")
result = predict(sys.argv[2])
print(result.label_map.sum(), predict.facts["model"], 'torch' in sys.modules)
"""


@pytest.fixture(autouse=True)
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGFORMERPP_CACHE", str(tmp_path / "kept"))


def same_as_loaded(checkpoint: Checkpoint, model: Segformer) -> None:
    assert checkpoint.config == model.config
    assert checkpoint.metadata == model.metadata
    assert checkpoint.metadata.source == model.metadata.source
    assert checkpoint.merge_plan == model.merge_plan
    state = {k: v for k, v in model.state_dict().items() if v.ndim > 0}
    tensors = checkpoint.tensors()
    assert {k: v for k, v in tensors.items() if v.ndim > 0}.keys() == state.keys()
    for name, tensor in state.items():
        assert tensors[name].dtype == np.float32
        np.testing.assert_array_equal(tensors[name], tensor.numpy())


def test_first_and_second_time_are_what_load_gives(random_model: Segformer, tmp_path: Path) -> None:
    ours = Segformer(random_model.config, random_model.metadata, "fast").eval()
    save_pretrained(ours, tmp_path / "ours")
    save(ours, tmp_path / "one.safetensors", dtype=torch.float16)
    save_pretrained(random_model, tmp_path / "theirs", layout="huggingface")
    for name in ("ours", "one.safetensors", "theirs"):
        expected = load(tmp_path / name)
        for _ in range(2):
            same_as_loaded(open_checkpoint(tmp_path / name), expected)
    assert [entry.kind for entry in cache.entries()] == ["checkpoint"] * 3
    assert open_checkpoint(tmp_path / "ours", "2x2").merge_plan.name == "2x2"
    assert open_checkpoint(tmp_path / "ours", "2x2").model().merge_plan.name == "2x2"


def test_changed_weights_are_noticed(random_model: Segformer, tmp_path: Path) -> None:
    model = Segformer(random_model.config, random_model.metadata).eval()
    save(model, tmp_path / "m.safetensors")
    before = open_checkpoint(tmp_path / "m.safetensors")
    model.head.classifier.weight.data += 1
    save(model, tmp_path / "m.safetensors")
    after = open_checkpoint(tmp_path / "m.safetensors")
    assert before.digest != after.digest
    same_as_loaded(after, model)


def test_files_that_change_after_they_were_opened(random_model: Segformer, tmp_path: Path) -> None:
    model = Segformer(random_model.config, random_model.metadata).eval()
    layouts: tuple[LayoutName, ...] = ("segformerpp", "huggingface")
    for name in layouts:
        save_pretrained(model, tmp_path / name, layout=name)
        open_checkpoint(tmp_path / name)  # so that the next time nothing is read
        opened = open_checkpoint(tmp_path / name)
        weights = tmp_path / name / "model.safetensors"
        before = weights.read_bytes()
        changed = Segformer(random_model.config, random_model.metadata).eval()
        save_pretrained(changed, tmp_path / name, layout=name)
        with pytest.raises(CheckpointError, match="has changed since it was opened; open it again"):
            opened.tensors()
        weights.unlink()
        with pytest.raises(CheckpointError):
            opened.tensors()
        weights.write_bytes(before)
        assert opened.tensors()


def test_warnings_come_every_time(
    random_model: Segformer, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_pretrained(random_model, tmp_path / "m")
    config = tmp_path / "m" / "config.json"
    config.write_text(config.read_text().replace('"Sky"', '"Heaven"'))
    for _ in range(3):
        caplog.clear()
        with caplog.at_level("WARNING", "segformerpp"):
            open_checkpoint(tmp_path / "m")
        assert len(caplog.records) == 1
        assert "config.json differs from the weights' own header" in caplog.text


def test_what_others_say_meanwhile_is_not_of_this_checkpoint(
    random_model: Segformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "m.safetensors"
    save(random_model, path)

    def load_beside_another(*arguments: Any, **options: Any) -> Segformer:
        logger = logging.getLogger("segformerpp.checkpoints.loading")
        other = threading.Thread(target=logger.warning, args=("of another one",))
        other.start()
        other.join()
        logger.warning("of this one")
        return load(*arguments, **options)

    monkeypatch.setattr(loading, "load", load_beside_another)
    open_checkpoint(path)
    (entry,) = cache.entries()
    kept = entry.path.read_text()
    assert "of this one" in kept
    assert "of another one" not in kept


def test_bfloat16(random_model: Segformer, tmp_path: Path) -> None:
    """NumPy does not have it; then PyTorch reads it."""
    save(random_model, tmp_path / "m.safetensors", dtype=torch.bfloat16)
    expected = load(tmp_path / "m.safetensors")
    for _ in range(2):
        same_as_loaded(open_checkpoint(tmp_path / "m.safetensors"), expected)


def test_errors_are_those_of_load(tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(b"broken")
    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"m\.safetensors: "):
            open_checkpoint(tmp_path / "m.safetensors")


def test_second_start_needs_no_torch(random_checkpoint: Path, tmp_path: Path) -> None:
    sample = Path(__file__).parents[2] / "samples" / "highway.png"
    command = [sys.executable, "-c", NO_TORCH, str(random_checkpoint), str(sample)]
    first, second = (
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
        for _ in range(2)
    )
    assert first[:2] == second[:2]
    assert (first[2], second[2]) == ("True", "False")
    kinds = {"checkpoint", "network"} | ({"operators"} if native_precisions() else set())
    assert {entry.kind for entry in cache.entries()} == kinds
