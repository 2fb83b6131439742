"""Our network against other implementations': golden outputs, and transformers."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from segformerpp.checkpoints import load, save_pretrained
from segformerpp.checkpoints.loading import fit
from segformerpp.models import SIZES, Metadata, Segformer, SegformerConfig
from segformerpp.plans import PRESETS, BipartiteMatching, MergePlan, Neighbour1d, Neighbour2d
from segformerpp.plans import StageMerge as Stage
from tests.checkpoints.foreign import randomise
from tests.models.test_segformer import image, relative

# The table of shared/golden/README.md.
PLANS = {
    **{name: PRESETS[name] for name in ("none", "hq", "fast", "2x2", "downsample")},
    "n1d": MergePlan((Stage(q=Neighbour1d(2)),) * 4),
    "mixed": MergePlan(
        (
            Stage(Neighbour2d(2, 2), BipartiteMatching(0.6, 2, 2)),
            Stage(kv=Neighbour2d(2, 2)),
            Stage(BipartiteMatching(0.5, 2, 2), BipartiteMatching(0.5, 2, 2)),
            Stage(q=Neighbour1d(3)),
        )
    ),
    "pools": MergePlan((Stage(Neighbour2d(sy=3, sx=2)),) * 2 + (Stage(Neighbour1d(4)),) * 2),
    "strides": MergePlan(
        (
            *(Stage(kv=BipartiteMatching(0.6, sx=2, sy=3)),) * 2,
            Stage(BipartiteMatching(0.6, sx=4, sy=2)),
            Stage(BipartiteMatching(0.99, 2, 2)),
        )
    ),
}


@cache
def golden_model(path: Path) -> Segformer:
    return load(path).double()


@pytest.mark.parametrize("strategy", PLANS)
@torch.inference_mode()
def test_golden_outputs_of_segformerpp(strategy: str, shared: Path) -> None:
    golden = load_file(shared / "golden" / "segformerpp_b0_outputs.safetensors")
    model = golden_model(shared / "golden" / "segformerpp_b0_weights_fp16.safetensors")
    model.merge_plan = PLANS[strategy]
    checked = 0
    for suffix in ("main", "odd", "batch"):
        x = golden[f"input/{suffix}"].double()
        key = f"logits{'' if suffix == 'main' else '_' + suffix}/{strategy}"
        features = model.encoder(x)
        outputs = {key: model.head(features)}
        if suffix == "main":
            outputs |= {f"features/{strategy}/{i}": f for i, f in enumerate(features)}
        for name, output in outputs.items():
            if name in golden:
                assert output.shape == golden[name].shape
                assert relative(output, golden[name].double()) < 1e-6, name
                checked += 1
    assert checked == sum(f"/{strategy}" in name for name in golden)


def test_no_golden_strategy_is_left_out(shared: Path) -> None:
    golden = load_file(shared / "golden" / "segformerpp_b0_outputs.safetensors")
    assert {name.split("/")[1] for name in golden if not name.startswith("input/")} <= set(PLANS)


@torch.inference_mode()
def test_golden_outputs_of_nvlabs(shared: Path) -> None:
    x = load_file(shared / "golden" / "segformerpp_b0_outputs.safetensors")["input/main"]
    golden = load_file(shared / "golden" / "nvlabs_b0_outputs.safetensors")
    assert set(golden) == {"logits/none"}
    model = golden_model(shared / "golden" / "nvlabs_b0_weights_fp16.safetensors")
    assert relative(model(x.double()), golden["logits/none"].double()) < 1e-6


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("layout", ["segformerpp", "nvlabs"])
def test_every_published_key_has_its_place(layout: str, size: str, shared: Path) -> None:
    shapes = json.loads((shared / "golden" / f"{layout}_state_dict_keys.json").read_text())[size]
    # `fit` raises if there is a tensor too many, too few or of another shape.
    tensors = {name: torch.zeros(()).expand(shape) for name, shape in shapes.items()}
    model = fit(tensors, {}, Metadata(), None, size)
    assert model.config.size == size
    # mmsegmentation has heads of 256 channels for all sizes.
    assert model.config.head_dim == (256 if layout == "segformerpp" else SIZES[size]["head_dim"])
    assert model.config.head_kind == ("conv" if layout == "segformerpp" else "linear")


def theirs(size: str, **changes: Any) -> Any:
    """A random model of transformers."""
    transformers = pytest.importorskip("transformers")
    ours = SegformerConfig.of_size(size)
    config = transformers.SegformerConfig(
        depths=list(ours.depths),
        hidden_sizes=list(ours.dims),
        decoder_hidden_size=ours.head_dim,
        num_labels=7,
        **changes,
    )
    model = transformers.SegformerForSemanticSegmentation(config).eval()
    randomise(model)
    return model


def checkpoints(model: Any, folder: Path) -> Iterator[Path]:
    model.save_pretrained(folder)
    yield folder
    torch.save(model.state_dict(), folder / "state_dict.pth")
    yield folder / "state_dict.pth"


def assert_equal_logits(a: torch.nn.Module, b: torch.nn.Module, tolerance: float) -> None:
    dtype = torch.float64 if tolerance < 1e-5 else torch.float32
    x = image(64, 97).to(dtype)

    def logits(model: torch.nn.Module) -> Tensor:
        output = model.to(dtype)(x)
        return output if isinstance(output, Tensor) else output.logits

    assert relative(logits(a), logits(b)) < tolerance


@pytest.mark.parametrize("size", ["b0", "b1", "b3"])
@torch.inference_mode()
def test_logits_equal_those_of_transformers(size: str, tmp_path: Path) -> None:
    model = theirs(size)
    for path in checkpoints(model, tmp_path):
        ours = load(path)
        assert ours.config == SegformerConfig.of_size(size, num_outputs=7)
        for tolerance in (1e-4, 1e-6):
            assert_equal_logits(ours, model, tolerance)
        model.float()


@torch.inference_mode()
def test_other_architectures_of_transformers(tmp_path: Path) -> None:
    model = theirs(
        "b0",
        num_attention_heads=[2, 4, 10, 16],
        sr_ratios=[4, 2, 1, 1],
        mlp_ratios=[2, 4, 3, 1],
        patch_sizes=[5, 3, 5, 3],
        num_channels=4,
    )
    model.save_pretrained(tmp_path)
    ours = load(tmp_path)
    x = torch.randn(1, 4, 96, 64, dtype=torch.float64)
    assert relative(ours.double()(x), model.double()(x).logits) < 1e-6


@pytest.mark.parametrize("name", ["SegformerModel", "SegformerForImageClassification"])
@torch.inference_mode()
def test_backbones_of_transformers(name: str, tmp_path: Path) -> None:
    model = theirs("b0")
    backbone = getattr(pytest.importorskip("transformers"), name)(model.config).eval()
    randomise(backbone)
    encoder = getattr(backbone, "segformer", backbone)
    x = image(64, 64)
    for path in checkpoints(backbone, tmp_path):
        features = load(path).double().encoder(x)
        hidden = encoder.double()(x, output_hidden_states=True).hidden_states
        for ours, expected in zip(features, hidden[-4:], strict=True):
            assert relative(ours, expected) < 1e-6
        backbone.float()


@pytest.mark.parametrize("dtype", [None, torch.float16])
@torch.inference_mode()
def test_transformers_loads_what_is_saved_here(dtype: torch.dtype | None, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = SegformerConfig.of_size("b0", heads=(2, 4, 10, 16), num_outputs=3)
    model = Segformer(config, Metadata(labels=("a", "b", "c"), image_size=(96, 160))).eval()
    randomise(model)
    save_pretrained(model, tmp_path, layout="huggingface", dtype=dtype)
    read, report = transformers.SegformerForSemanticSegmentation.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not any(report.values()), report
    assert read.config.id2label == {0: "a", 1: "b", 2: "c"}
    assert read.dtype == (dtype or torch.float32)
    assert_equal_logits(load(tmp_path), read, 1e-6)
    if dtype is None:
        assert_equal_logits(model, read, 1e-6)


def test_transformers_prepares_images_alike(tmp_path: Path) -> None:
    segformer = pytest.importorskip("transformers.models.segformer.image_processing_pil_segformer")
    model = Segformer(SegformerConfig.of_size("b0"), Metadata(image_size=(48, 64)))
    save_pretrained(model, tmp_path, layout="huggingface")
    processor = segformer.SegformerImageProcessorPil.from_pretrained(tmp_path)
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (48, 64, 3), generator=generator, dtype=torch.uint8)
    prepared = processor(images=pixels.numpy(), return_tensors="pt")["pixel_values"][0]
    mean, std = (torch.tensor(v) for v in (model.metadata.mean, model.metadata.std))
    torch.testing.assert_close(prepared, ((pixels - mean) / std).permute(2, 0, 1))
