import contextlib
import json
import math
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from segformerpp.checkpoints import load, push_to_hub, save, save_pretrained
from segformerpp.checkpoints.card import NVIDIA_LICENSE
from segformerpp.checkpoints.layouts import MMSEGMENTATION, NVLABS, Layout
from segformerpp.errors import CheckpointError, UsageError
from segformerpp.models import Metadata, Segformer
from segformerpp.plans import MergePlan
from segformerpp.predictor import Predictor
from tests.checkpoints.foreign import state, trained

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
    names = set(model.state_dict())
    model.encoder.stages[0] = torch.compile(model.encoder.stages[0], backend="eager")  # type: ignore[assignment]
    save(model, tmp_path / "a.safetensors")
    assert set(load(tmp_path / "a.safetensors").state_dict()) == names


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


@pytest.mark.parametrize("layout", ["segformerpp", "huggingface"])
def test_labels_that_do_not_fit_are_not_saved(
    layout: Literal["segformerpp", "huggingface"],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = trained()
    model.metadata = replace(METADATA, labels=("only one",), palette=())
    save_pretrained(model, tmp_path, layout=layout)
    assert caplog.messages == [f"{tmp_path.name}: 1 labels for 4 outputs: left out"]
    assert "only one" not in (tmp_path / "README.md").read_text(encoding="utf-8")
    config = json.loads((tmp_path / "config.json").read_text())
    if layout == "huggingface":
        assert len(config["id2label"]) == len(config["label2id"]) == 4
    else:
        assert config["metadata"]["labels"] == []
    assert load(tmp_path).metadata.labels == ()


def test_labels_that_do_not_fit_are_not_loaded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = described()
    save_pretrained(model, tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["metadata"]["labels"] = ["only one"]
    (without_header(tmp_path) / "config.json").write_text(json.dumps(config))
    loaded = load(tmp_path)
    assert "1 labels for 4 outputs" in caplog.text
    assert loaded.metadata == replace(METADATA, labels=())
    fresh = load(tmp_path, num_classes=2).metadata
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
    with pytest.raises(UsageError, match=r"dtype: .* not 'float16'"):
        save(trained(), tmp_path / "a.safetensors", dtype="float16")  # type: ignore[arg-type]
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


def without_header(folder: Path) -> Path:
    """Make a folder of ours depend on its config.json, as one of transformers does."""
    path = folder / "model.safetensors"
    save_file({name: t.clone() for name, t in load_file(path).items()}, path)
    return folder


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 10**12) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=6,
)
VALUES |= st.lists(st.floats() | st.integers(), min_size=2, max_size=4)


@pytest.mark.parametrize("whole", [True, False])
@settings(
    max_examples=150,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data(), value=VALUES)
def test_odd_values_in_config_json_are_refused_or_harmless(
    whole: bool, data: st.DataObject, value: Any, tmp_path: Path
) -> None:
    path, original = tmp_path / "model.safetensors", tmp_path / "original.json"
    if not original.exists():
        save_pretrained(described(), tmp_path)
        without_header(tmp_path)
        if not whole:
            save_file({k: v for k, v in load_file(path).items() if "encoder." in k}, path)
        (tmp_path / "config.json").rename(original)
    config = json.loads(original.read_text(encoding="utf-8"))
    section = data.draw(st.sampled_from([config, config["architecture"], config["metadata"]]))
    section[data.draw(st.sampled_from([*section, "unknown"]))] = value
    (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
    model, said = None, ""
    try:
        model = load(tmp_path)
    except CheckpointError as error:
        said = str(error)
    assert "\n" not in said
    if model is not None:
        assert whole or not model.metadata.head_trained
        assert_predicts(model)


def assert_predicts(model: Segformer) -> None:
    """Assert that a model gives finite logits, and labels unless it says why not."""
    with torch.inference_mode():
        assert model(torch.zeros(1, 3, 64, 64)).isfinite().all()
    if math.prod(model.metadata.image_size or ()) <= 1 << 16:  # huge ones are right, but slow
        with contextlib.suppress(UsageError):
            predict = Predictor(model, runtime="torch", device="cpu", threads=1)
            image = np.full((40, 50, 3), 128, np.uint8)
            assert predict(image).label_map.max() < model.config.num_outputs


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ([1, 2], [1, 2]),
        ([1, 2, 3], [1, 2]),
        ([1, 2, 3, 4], [1, 2, 3, 4]),
        ([], []),
        ("123", [1, 2, 3]),
        ([math.nan, 2, 3], [1, 2, 3]),
        ([1, 2, 3], [math.nan, 2, 3]),
        ([math.inf, 2, 3], [1, 2, 3]),
        ([10**400, 2, 3], [1, 2, 3]),
        ([1, 2, 3], [0, 2, 3]),
        ([1, 2, 3], [1e-300, 2, 3]),
    ],
)
def test_impossible_normalisation_is_refused(mean: object, std: object, tmp_path: Path) -> None:
    save_pretrained(trained(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["metadata"] |= {"mean": mean, "std": std}
    (without_header(tmp_path) / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"(mean|std) cannot be"):
        load(tmp_path)


def test_other_channels_have_a_normalisation_of_their_own(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = trained(in_channels=4)
    save(model, tmp_path / "a.safetensors")
    assert "mean and std have 3 and 3 values for 4 channels" in caplog.text
    caplog.clear()
    loaded = load(tmp_path / "a.safetensors")
    assert not caplog.records
    assert (loaded.metadata.mean, loaded.metadata.std) == ((0.0,) * 4, (255.0,) * 4)


def test_a_newer_version_is_refused(tmp_path: Path) -> None:
    save_pretrained(trained(), tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (without_header(tmp_path) / "config.json").write_text(json.dumps({**config, "version": 2}))
    with pytest.raises(CheckpointError, match="a newer segformerpp may help"):
        load(tmp_path)


def test_what_is_in_the_file_wins_over_an_older_config_json(tmp_path: Path) -> None:
    save_pretrained(described(), tmp_path)
    other = trained(heads=(1, 4, 2, 4))
    other.metadata = replace(METADATA, labels=("e", "f", "g", "h"))
    save(other, tmp_path / "model.safetensors")
    assert_same(load(tmp_path), other)


@pytest.mark.parametrize("layout", ["segformerpp", "huggingface"])
def test_a_run_that_is_killed_while_saving_leaves_nothing_inconsistent(
    layout: Literal["segformerpp", "huggingface"], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new = described(), trained(heads=(1, 4, 2, 4), num_outputs=3)
    new.metadata = replace(METADATA, labels=("e", "f", "g"), palette=())
    replace_file, found = Path.replace, set()
    for last in range(5):
        save_pretrained(old, tmp_path)
        left = [last]

        def killed(self: Path, target: Path, left: list[int] = left) -> Path:
            if not left[0]:
                raise KeyboardInterrupt
            left[0] -= 1
            return replace_file(self, target)

        with monkeypatch.context() as patched, contextlib.suppress(KeyboardInterrupt):
            patched.setattr(Path, "replace", killed)
            save_pretrained(new, tmp_path, layout=layout)
        assert not list(tmp_path.glob(".*"))
        if (tmp_path / "model.safetensors").exists():
            loaded = load(tmp_path)
            which = new if loaded.config.heads == new.config.heads else old
            assert loaded.config.heads == which.config.heads
            assert loaded.metadata.labels == which.metadata.labels
            found.add("new" if which is new else "old")
        else:
            with pytest.raises(CheckpointError, match="no weights in this folder"):
                load(tmp_path)
            found.add("none")
    assert found == ({"new", "old"} if layout == "segformerpp" else {"new", "none"})


def test_a_folder_that_cannot_be_replaced_keeps_its_weights(tmp_path: Path) -> None:
    save_pretrained(described(), tmp_path)
    (tmp_path / "README.md").unlink()
    (tmp_path / "README.md").mkdir()
    with pytest.raises(CheckpointError, match=r"README\.md"):
        save_pretrained(trained(), tmp_path)
    assert_same(load(tmp_path), described())


def test_a_failure_while_saving_leaves_the_old_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_pretrained(described(), tmp_path)

    def fail(self: Path, text: str, encoding: str) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "write_text", fail)
        with pytest.raises(CheckpointError, match=r"README\.md: cannot be written: .*No space"):
            save_pretrained(trained(), tmp_path)
    assert_same(load(tmp_path), described())
    assert len(list(tmp_path.iterdir())) == 3


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


def test_an_edited_config_json_is_unused_and_said_to_be(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    save_pretrained(described(), tmp_path)
    assert_same(load(tmp_path), described())
    assert "config.json" not in caplog.text
    path = tmp_path / "config.json"
    config = json.loads(path.read_text())
    config["metadata"]["labels"][0] = "edited"
    path.write_text(json.dumps(config))
    assert_same(load(tmp_path), described())
    assert "config.json differs from the weights' own header" in caplog.text


@pytest.mark.parametrize("layout", [MMSEGMENTATION, NVLABS])
def test_loading_does_not_import_the_compiler(layout: Layout, tmp_path: Path) -> None:
    """It would take a second of every start."""
    torch.save(state(trained(layout), layout), tmp_path / "weights.pth")
    code = (
        "import sys, segformerpp\n"
        "segformerpp.load(sys.argv[1])\n"
        "assert 'torch._dynamo' not in sys.modules"
    )
    path = str(tmp_path / "weights.pth")
    subprocess.run([sys.executable, "-c", code, path], check=True)
