import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import errors

from segformerpp.checkpoints import bundled, load, save, save_pretrained
from segformerpp.checkpoints.card import NVIDIA_LICENSE
from segformerpp.checkpoints.layouts import HUGGINGFACE
from segformerpp.errors import CheckpointError, PlanError, UsageError
from segformerpp.models import Metadata
from tests.checkpoints.foreign import encoder, state, trained


def write_huggingface(folder: Path, config: dict[str, Any], preprocessor: object = None) -> Path:
    folder.mkdir(exist_ok=True)
    torch.save(state(trained(), HUGGINGFACE), folder / "pytorch_model.bin")
    (folder / "config.json").write_text(json.dumps({"model_type": "segformer", **config}))
    if preprocessor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(preprocessor))
    return folder


def test_bundled_models_load_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "camvid-b0" in bundled()
    assert all(load(name).metadata.head_trained for name in bundled())
    save_pretrained(trained(), tmp_path / "weights" / "tiny")
    (tmp_path / "weights" / "notes").mkdir()
    monkeypatch.setattr("importlib.resources.files", lambda package: tmp_path)
    assert bundled() == {"tiny": tmp_path / "weights" / "tiny"}
    assert load("tiny").metadata.source == "tiny"
    with pytest.raises(CheckpointError, match=r"'tinny': .*bundled model \(tiny\)"):
        load("tinny")


def test_a_folder_with_one_weights_file_is_enough(tmp_path: Path) -> None:
    save(trained(), tmp_path / "best.safetensors")
    torch.save({"lr": 1}, tmp_path / "optimizer.pt")
    torch.save({"lr": 1}, tmp_path / "training_args.bin")
    assert load(tmp_path).config == trained().config
    save(trained(), tmp_path / "last.safetensors")
    with pytest.raises(CheckpointError, match=r"name one of them: best\.safetensors, last"):
        load(tmp_path)
    save(trained(), tmp_path / "model.safetensors")
    assert load(str(tmp_path)).config == trained().config


def test_safetensors_are_preferred(tmp_path: Path) -> None:
    write_huggingface(tmp_path, {})
    (tmp_path / "pytorch_model.bin").write_bytes(b"never read")
    save_pretrained(trained(), tmp_path, layout="huggingface")
    load(tmp_path)


@pytest.mark.parametrize(
    "source",
    ["no/such/thing", "a.pth", "owner/a.pth", "nothing", "", "/x/y", "~nobody/x", "x" * 5000],
)
def test_what_is_nowhere_is_said_to_be_so(source: str) -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load(source)


def test_a_path_is_never_taken_for_a_hub_id() -> None:
    with pytest.raises(CheckpointError, match="no such file or folder"):
        load(Path("owner/model"))


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    save(trained(), tmp_path / "a.safetensors")
    with pytest.raises(PlanError):
        load(tmp_path / "a.safetensors", merge="fats")
    with pytest.raises(UsageError, match="device: 'toaster'"):
        load(tmp_path / "a.safetensors", device="toaster")


LABELS = {"0": "road", "1": "sky", "3": "dog", "2": "cat"}
IMAGENET = Metadata()


@pytest.mark.parametrize(
    ("config", "preprocessor", "expected"),
    [
        ({}, None, {}),
        ({"id2label": LABELS}, None, {"labels": ("road", "sky", "cat", "dog")}),
        ({"id2label": {str(i): f"LABEL_{i}" for i in range(4)}}, None, {}),
        ({"id2label": {"0": "road"}}, None, {}),
        ({"id2label": {"1": "a", "2": "b", "3": "c", "4": "d"}}, None, {}),
        ({}, {}, {}),
        ({}, {"size": 640}, {"image_size": (640, 640)}),
        ({}, {"size": {"height": 384, "width": 640}}, {"image_size": (384, 640)}),
        ({}, {"size": {"height": 384, "width": 640}, "do_resize": False}, {}),
        ({}, {"size": {"shortest_edge": 640}}, {}),
        ({}, {"do_reduce_labels": True}, {"image_size": (512, 512), "reduce_labels": True}),
        (
            {},
            {"reduce_labels": True, "do_resize": False},
            {"reduce_labels": True},
        ),
        (
            {},
            {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.2, 0.4, 0.6], "size": 512},
            {"std": (51.0, 102.0, 153.0), "image_size": (512, 512)},
        ),
        (
            {},
            {"do_normalize": False, "do_resize": False},
            {"mean": (0.0, 0.0, 0.0), "std": (255.0, 255.0, 255.0)},
        ),
        (
            {},
            {"do_rescale": False, "image_mean": [9, 9, 9], "image_std": [2, 2, 2], "size": 8},
            {"mean": (9.0, 9.0, 9.0), "std": (2.0, 2.0, 2.0), "image_size": (8, 8)},
        ),
    ],
)
def test_huggingface_descriptions_are_read(
    config: dict[str, Any], preprocessor: object, expected: dict[str, Any], tmp_path: Path
) -> None:
    assert load(write_huggingface(tmp_path, config, preprocessor)).metadata == Metadata(**expected)


@pytest.mark.parametrize(
    ("config", "preprocessor", "text"),
    [
        ({"hidden_act": "relu"}, None, "hidden_act 'relu'"),
        ({"strides": [2, 2, 2, 2]}, None, "strides"),
        ({"id2label": {"zero": "road"}}, None, "not understood"),
        ({"id2label": ["road"]}, None, "not understood"),
        ({"num_attention_heads": [1, 2, 5]}, None, "heads cannot be"),
        ({"num_attention_heads": [1, 2, 5, 0]}, None, "heads cannot be"),
        ({"drop_path_rate": "high"}, None, "drop_path cannot be"),
        ({}, {"size": "large"}, "image_size cannot be"),
        ({}, {"size": {"height": 1}}, "not understood"),
        ({}, {"image_mean": 3}, "not understood"),
        ({}, {"rescale_factor": 0}, "not understood"),
        ({}, {"image_mean": [10**400, 1, 1]}, "not understood"),
        ({}, {"image_mean": [float("nan"), 1, 1]}, "mean cannot be"),
        ({}, {"image_std": [0, 1, 1]}, "std cannot be"),
        ({}, [], "expected a JSON object"),
    ],
)
def test_odd_huggingface_descriptions_are_refused(
    config: dict[str, Any], preprocessor: object, text: str, tmp_path: Path
) -> None:
    with pytest.raises(CheckpointError, match=text) as caught:
        load(write_huggingface(tmp_path, config, preprocessor))
    assert "\n" not in str(caught.value)


def test_a_classifiers_labels_are_not_a_fresh_heads(tmp_path: Path) -> None:
    write_huggingface(tmp_path, {"id2label": LABELS, "decoder_hidden_size": 96}, {"size": 224})
    torch.save(encoder(trained(), HUGGINGFACE), tmp_path / "pytorch_model.bin")
    model = load(tmp_path, num_classes=4)
    assert model.metadata == Metadata(head_trained=False)
    assert model.config.head_dim == 96


@pytest.mark.parametrize("width", [0, 10**6, 10**30, 1.5, "wide"])
def test_a_backbones_head_cannot_have_any_width(width: object, tmp_path: Path) -> None:
    write_huggingface(tmp_path, {"decoder_hidden_size": width})
    torch.save(encoder(trained(), HUGGINGFACE), tmp_path / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="head_dim cannot be"):
        load(tmp_path)


@pytest.mark.parametrize(
    "preprocessor",
    [
        {"image_mean": [0.5], "image_std": [0.5], "do_resize": False},
        {"image_mean": [0.5] * 3, "image_std": [0.5] * 4, "do_resize": False},
    ],
)
def test_normalisation_for_other_channels_is_left_out(
    preprocessor: object, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert load(write_huggingface(tmp_path, {}, preprocessor)).metadata == IMAGENET
    assert "values for 3 channels" in caplog.text


@pytest.mark.parametrize(
    ("config", "card", "terms"),
    [
        ({}, None, ""),
        ({}, "license: mit\n", "mit"),
        ({}, "license: other\nlicense_name: my-terms\n", "my-terms"),
        ({}, "license: other\n", "other (see the model card of the source)"),
        ({}, "base_model: nvidia/mit-b0\nlicense: other\n", NVIDIA_LICENSE),
        ({"_name_or_path": "nvidia/mit-b0"}, None, NVIDIA_LICENSE),
        (
            {},
            "base_model:\n- nvidia/mit-b0\nlicense: mit\n",
            f"mit; made from weights under: {NVIDIA_LICENSE}",
        ),
        ({}, "license: [", ""),
        ({}, "- license\n", ""),
    ],
)
def test_terms_are_found(
    config: dict[str, Any], card: str | None, terms: str, tmp_path: Path
) -> None:
    write_huggingface(tmp_path, config)
    if card is not None:
        (tmp_path / "README.md").write_text(f"---\n{card}---\n# A model\n")
    assert load(tmp_path).metadata.license == terms


class Hub:
    """In place of snapshot_download: one repository on the hub, and the cache here."""

    def __init__(self, repository: Path, cache: Path) -> None:
        self.repository, self.cache = repository, cache
        self.calls: list[dict[str, Any]] = []

    def __call__(self, repo_id: str, **kwargs: Any) -> str:
        self.calls.append({"repo_id": repo_id, **kwargs})
        self.cache.mkdir(exist_ok=True)
        for path in self.repository.iterdir():
            if any(path.match(pattern) for pattern in kwargs["allow_patterns"]):
                shutil.copy(path, self.cache)
        return str(self.cache)


def test_hub_ids_are_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_huggingface(tmp_path / "repo", {"id2label": LABELS})
    hub = Hub(tmp_path / "repo", tmp_path / "cache")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub)
    metadata = load("nvidia/segformer-b0", revision="v1", offline=True).metadata
    assert metadata.labels == ("road", "sky", "cat", "dog")
    assert metadata.source == "nvidia/segformer-b0@v1"
    assert metadata.license == NVIDIA_LICENSE
    safetensors, others = hub.calls
    for call in hub.calls:
        assert call["repo_id"] == "nvidia/segformer-b0"
        assert call["revision"] == "v1"
        assert call["local_files_only"] is True
        assert {"config.json", "preprocessor_config.json"} <= set(call["allow_patterns"])
    # The other formats are fetched only where there are no safetensors.
    assert "*.bin" not in safetensors["allow_patterns"]
    assert "*.bin" in others["allow_patterns"]
    save(trained(), tmp_path / "repo" / "model.safetensors")
    hub.calls.clear()
    assert load("me/model").metadata.source == "me/model"
    assert len(hub.calls) == 1
    for path in [*hub.cache.iterdir(), *hub.repository.glob("*model*")]:
        path.unlink()
    with pytest.raises(CheckpointError, match="me/model: no weights of it in the repository"):
        load("me/model")


def test_an_existing_path_wins_over_a_hub_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    save_pretrained(trained(), "owner/model")
    downloads: list[object] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", downloads.append)
    assert load("owner/model").metadata.source == "model"
    assert not downloads


def hub_error(kind: type[Exception]) -> Exception:
    # Making one properly needs a response of whichever HTTP library the client uses.
    error = kind.__new__(kind)
    error.args = ("long\n\ntext",)
    return error


@pytest.mark.parametrize(
    ("error", "offline", "text"),
    [
        (hub_error(errors.RepositoryNotFoundError), False, "nor a model on the hub, or a pri"),
        (hub_error(errors.GatedRepoError), False, "access on request"),
        (hub_error(errors.RevisionNotFoundError), False, "no revision 'v7'"),
        (errors.LocalEntryNotFoundError("long\ntext"), False, "check the connection"),
        (errors.LocalEntryNotFoundError("long\ntext"), True, "load it once without offline"),
        (ConnectionError("no route\nto host"), False, "check the connection"),
        (errors.HFValidationError("bad\nname"), False, "bad name"),
        (OSError(28, "No space left on device"), False, "No space left"),
        (RuntimeError(), False, "RuntimeError"),
    ],
)
def test_failures_of_the_hub_are_one_line_with_advice(
    error: Exception, offline: bool, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(CheckpointError, match=text) as caught:
        load("owner/model", revision="v7", offline=offline)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith("owner/model: ")
