import contextlib
import json
import logging
import stat
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open

from segformerpp.checkpoints import load, push_to_hub, save, save_pretrained
from segformerpp.checkpoints.description import NVIDIA_LICENSE
from segformerpp.checkpoints.layouts import MMSEGMENTATION, NVLABS
from segformerpp.errors import CheckpointError, UsageError
from segformerpp.merging import MergePlan
from segformerpp.models import Metadata, Segformer
from tests.checkpoints.foreign import trained

METADATA = Metadata(
    labels=("road", "sky | blue", "Straße", "d"),
    palette=((1, 2, 3), (4, 5, 6), (7, 8, 9), (255, 0, 255)),
    mean=(100.0, 110.5, 120.25),
    std=(50.0, 60.0, 70.0),
    image_size=(360, 480),
    reduce_labels=True,
    source="trained for a test",
    license="CC-BY-4.0",
)


def described(**changes: Any) -> Segformer:
    """A model in which nothing is as by default."""
    model = trained(NVLABS, heads=(2, 4, 5, 16), drop_path=0.25, dropout=0.0, **changes)
    model.metadata = METADATA
    model.merge_plan = "q34:mode=bsm,r=0.5,sx=2,sy=3 kv1:mode=n1d,s=2 input_scale=0.5"
    return model


def assert_same(loaded: Segformer, model: Segformer) -> None:
    assert loaded.config == model.config
    assert loaded.metadata == model.metadata
    assert loaded.metadata.source == model.metadata.source
    assert loaded.merge_plan == model.merge_plan
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_single_file_is_complete(kind: str, tmp_path: Path) -> None:
    model = described(head_kind=kind)
    save(model, tmp_path / "new" / "a.safetensors")
    assert_same(load(tmp_path / "new" / "a.safetensors"), model)
    with safe_open(tmp_path / "new" / "a.safetensors", "pt") as file:
        assert not any("num_batches_tracked" in name for name in file.keys())  # noqa: SIM118


@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_a_folder_is_complete(kind: str, tmp_path: Path) -> None:
    model = described(head_kind=kind)
    save_pretrained(model, tmp_path / "a")
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == [
        "README.md",
        "config.json",
        "model.safetensors",
    ]
    assert_same(load(tmp_path / "a"), model)
    (tmp_path / "a" / "config.json").unlink()
    assert_same(load(tmp_path / "a"), model)


def test_the_saved_plan_holds_unless_another_is_asked_for(tmp_path: Path) -> None:
    save(described(), tmp_path / "a.safetensors")
    assert load(tmp_path / "a.safetensors", merge="hq").merge_plan == MergePlan.parse("hq")
    assert load(tmp_path / "a.safetensors", "none").merge_plan == MergePlan()
    save(trained(), tmp_path / "b.safetensors")
    assert load(tmp_path / "b.safetensors").merge_plan == MergePlan()


def test_a_compiled_model_is_saved_as_itself(tmp_path: Path) -> None:
    model = trained()
    compiled = torch.compile(model, backend="eager")
    save(compiled, tmp_path / "a.safetensors")  # type: ignore[arg-type]  # it passes for one
    save_pretrained(compiled, tmp_path / "b", layout="huggingface")  # type: ignore[arg-type]
    for path in (tmp_path / "a.safetensors", tmp_path / "b"):
        loaded = load(path).state_dict()
        assert all(torch.equal(loaded[name], t) for name, t in model.state_dict().items())


def test_half_precision_halves_the_file(tmp_path: Path) -> None:
    model = described()
    save(model, tmp_path / "full.safetensors")
    save(model, tmp_path / "half.safetensors", dtype=torch.float16)
    full, half = ((tmp_path / f"{n}.safetensors").stat().st_size for n in ("full", "half"))
    assert half < 0.6 * full
    loaded = load(tmp_path / "half.safetensors")
    for name, tensor in model.half().state_dict().items():
        assert torch.equal(loaded.state_dict()[name].to(tensor.dtype), tensor), name
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}


def test_labels_that_do_not_fit_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = described()
    model.metadata = replace(METADATA, labels=("only one",))
    save(model, tmp_path / "a.safetensors")
    with caplog.at_level(logging.WARNING):
        loaded = load(tmp_path / "a.safetensors")
    assert "1 labels for 4 outputs" in caplog.text
    assert loaded.metadata == replace(METADATA, labels=())
    fresh = load(tmp_path / "a.safetensors", num_classes=2).metadata
    assert fresh == Metadata(
        mean=METADATA.mean, std=METADATA.std, license=METADATA.license, head_trained=False
    )


def test_files_appear_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.safetensors"
    save(described(), path)
    before = path.read_bytes()
    (tmp_path / "plain").touch()
    assert stat.S_IMODE(path.stat().st_mode) == stat.S_IMODE((tmp_path / "plain").stat().st_mode)

    def fail(tensors: object, filename: Path, metadata: object) -> None:
        Path(filename).write_bytes(b"half of it")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("segformerpp.checkpoints.saving.save_file", fail)
    with pytest.raises(CheckpointError, match=r"a\.safetensors: cannot be written: .*No space"):
        save(trained(), path)
    assert path.read_bytes() == before
    assert {p.name for p in tmp_path.iterdir()} == {"a.safetensors", "plain"}


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="safetensors"):
        save(trained(), tmp_path / "a.pth")
    with pytest.raises(UsageError, match="dtype"):
        save(trained(), tmp_path / "a.safetensors", dtype=torch.int8)
    with pytest.raises(UsageError, match="layout"):
        save_pretrained(trained(), tmp_path, layout="timm")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="cannot be written"):
        save(trained(), Path("/proc/nowhere/a.safetensors"))
    with pytest.raises(CheckpointError, match="no decode head of the kind 'conv'"):
        save_pretrained(trained(MMSEGMENTATION), tmp_path / "b", layout="huggingface")
    assert not list(tmp_path.iterdir())


def front_matter(folder: Path) -> dict[str, Any]:
    data = yaml.safe_load((folder / "README.md").read_text(encoding="utf-8").split("---\n")[1])
    assert isinstance(data, dict)
    return data


def test_the_card_says_what_the_model_is(tmp_path: Path) -> None:
    model = described()
    save_pretrained(model, tmp_path / "a")
    assert front_matter(tmp_path / "a") == {
        "license": "cc-by-4.0",
        "library_name": "segformerpp",
        "pipeline_tag": "image-segmentation",
        "tags": ["segformer", "segformerpp", "token-merging", "segmentation"],
    }
    text = (tmp_path / "a" / "README.md").read_text(encoding="utf-8")
    for part in ("Straße", r"sky \| blue", "255 0 255", "100, 110.5, 120.25", "360 x 480"):
        assert part in text
    for part in ('sfpp.load("a")', model.merge_plan.name, "trained for a test", "CC-BY-4.0"):
        assert part in text


def test_terms_are_passed_on(tmp_path: Path) -> None:
    model = trained()
    model.metadata = replace(METADATA, source="nvidia/mit-b0", license=NVIDIA_LICENSE)
    save_pretrained(model, tmp_path / "a")
    front = front_matter(tmp_path / "a")
    assert front["license"] == "other"
    assert front["license_name"].startswith("nvidia-source-code-license")
    assert front["base_model"] == "nvidia/mit-b0"
    save_pretrained(load(tmp_path / "a"), tmp_path / "b", layout="huggingface")
    again = load(tmp_path / "b")
    assert again.metadata.license == NVIDIA_LICENSE
    model.metadata = Metadata()
    save_pretrained(model, tmp_path / "c")
    assert "license" not in front_matter(tmp_path / "c")
    assert "non-commercial" in (tmp_path / "c" / "README.md").read_text()


def test_the_huggingface_layout_keeps_what_it_has_a_place_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = trained(heads=(2, 4, 5, 16), dropout=0.0)
    model.metadata = METADATA
    save_pretrained(model, tmp_path, layout="huggingface")
    assert not caplog.records
    loaded = load(tmp_path)
    assert loaded.config == model.config
    assert loaded.metadata == replace(METADATA, palette=(), license="cc-by-4.0")
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    save_pretrained(described(), tmp_path, layout="huggingface", dtype=torch.float16)
    assert "differ slightly" in caplog.text
    assert json.loads((tmp_path / "config.json").read_text())["torch_dtype"] == "float16"


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**12) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data(), value=VALUES)
def test_odd_values_in_config_json_are_refused_or_harmless(
    data: st.DataObject, value: Any, tmp_path: Path
) -> None:
    if not (tmp_path / "model.safetensors").exists():
        save_pretrained(described(), tmp_path)
        (tmp_path / "original.json").write_bytes((tmp_path / "config.json").read_bytes())
    config = json.loads((tmp_path / "original.json").read_text(encoding="utf-8"))
    section = data.draw(st.sampled_from([config, config["architecture"], config["metadata"]]))
    section[data.draw(st.sampled_from([*section, "unknown"]))] = value
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with contextlib.suppress(CheckpointError):
        load(tmp_path)


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    save_pretrained(trained(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "version": 2}))
    with pytest.raises(CheckpointError, match="a newer segformerpp may help"):
        load(tmp_path)


class Hub:
    """In place of HfApi: keeps what is uploaded."""

    def __init__(self, token: str | None) -> None:
        assert token == "secret"

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> str:
        assert private
        assert exist_ok
        return f"https://huggingface.co/{repo_id}"

    def upload_folder(self, *, repo_id: str, folder_path: str, commit_message: str) -> None:
        if repo_id == "other/model":
            raise PermissionError("403 Forbidden\nYou are not the owner")
        files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        assert set(files) == {"README.md", "config.json", "model.safetensors"}
        assert f'sfpp.load("{repo_id}")'.encode() in files["README.md"]


def test_a_model_is_pushed_to_the_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("segformerpp.checkpoints.saving.HfApi", Hub)
    address = push_to_hub(described(), "me/model", private=True, token="secret")
    assert address == "https://huggingface.co/me/model"
    with pytest.raises(CheckpointError, match="other/model: cannot be written to the hub: 403"):
        push_to_hub(described(), "other/model", private=True, token="secret")
