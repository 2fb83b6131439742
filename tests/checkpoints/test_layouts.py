import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from segformerpp import Predictor
from segformerpp.checkpoints import load
from segformerpp.checkpoints.layouts import (
    HUGGINGFACE,
    MMPOSE,
    MMSEGMENTATION,
    NVLABS,
    SEGFORMERPP,
    Layout,
)
from segformerpp.checkpoints.loading import fit
from segformerpp.data.skeletons import skeleton
from segformerpp.errors import CheckpointError, UsageError
from segformerpp.models import SIZES, Metadata
from tests.checkpoints.foreign import FOREIGN, LAYOUTS, encoder, state, trained
from tests.models.test_segformer import image, relative

# Not 1, 2, 5, 8: a guess would be wrong, but not so wrong that it fails.
HEADS = (2, 4, 5, 16)


def layout_name(value: object) -> str:
    return value.name if isinstance(value, Layout) else str(value)


@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_name)
@pytest.mark.parametrize("wrapper", ["", "module.", "module._orig_mod.", "model."])
@torch.inference_mode()
def test_logits_survive_every_layout(layout: Layout, wrapper: str, tmp_path: Path) -> None:
    model = trained(layout).double()
    tensors = {wrapper + name: tensor for name, tensor in state(model, layout).items()}
    torch.save({"state_dict": tensors, "epoch": 3}, tmp_path / "a.pth")
    loaded = load(tmp_path / "a.pth")
    assert not loaded.training
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert loaded.config == model.config
    assert loaded.metadata.head_trained
    assert loaded.metadata.source == "a.pth"
    x = image(64, 65)
    assert relative(loaded.double()(x), model(x)) < 1e-6


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "state_dict_ema"])
def test_tensors_are_found_below_the_usual_keys(key: str, tmp_path: Path) -> None:
    torch.save({"optimizer": {"state": {}}, key: state(trained(), NVLABS)}, tmp_path / "a.bin")
    assert load(tmp_path / "a.bin").config.num_outputs == 4


@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_name)
@torch.inference_mode()
def test_a_backbone_gets_a_fresh_head(
    layout: Layout, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = trained(layout)
    tensors = encoder(model, layout)
    classifier = {"head.": NVLABS, "classifier.": HUGGINGFACE}
    for prefix, origin in classifier.items():
        if origin.name in layout.name:
            tensors |= {prefix + "weight": torch.zeros(1000, 64), prefix + "bias": torch.zeros(9)}
    save_file({k: v.clone() for k, v in tensors.items()}, tmp_path / "mit.safetensors")
    with caplog.at_level(logging.WARNING):
        loaded = load(tmp_path / "mit.safetensors")
    assert "the decode head is freshly initialised" in caplog.text
    assert loaded.config.num_outputs == 19
    assert loaded.config.head_kind == "linear"
    assert not loaded.metadata.head_trained
    x = image(64, 64).float()
    for ours, theirs in zip(loaded.encoder(x), model.encoder(x), strict=True):
        assert relative(ours, theirs) < 1e-5
    assert load(tmp_path / "mit.safetensors", num_classes=7)(x).shape[1] == 7


def test_a_backbones_head_is_as_wide_as_its_size_has_it(tmp_path: Path) -> None:
    model = trained(dims=SIZES["b0"]["dims"], depths=SIZES["b0"]["depths"], head_dim=256)
    torch.save(encoder(model, NVLABS), tmp_path / "mit_b0.pth")
    assert load(tmp_path / "mit_b0.pth").config == model.config.of_size(
        "b0", norm_eps=1e-6, embed_norm_eps=1e-5
    )


def test_another_number_of_classes_keeps_all_but_the_classifier(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = trained(NVLABS)
    torch.save(state(model, NVLABS), tmp_path / "a.pth")
    with caplog.at_level(logging.WARNING):
        loaded = load(tmp_path / "a.pth", num_classes=11)
    assert "classifier is freshly initialised" in caplog.text
    assert loaded.config.num_outputs == 11
    assert not loaded.metadata.head_trained
    for name, tensor in loaded.state_dict().items():
        if not name.startswith("head.classifier.") and "num_batches" not in name:
            assert torch.equal(tensor, model.state_dict()[name]), name
    same = load(tmp_path / "a.pth", num_classes=4)
    assert same.metadata.head_trained
    assert load(tmp_path / "a.pth", num_classes=np.int64(3)).config.num_outputs == 3  # type: ignore[arg-type]
    for number in (0, -1, 10**12, 1.5, "3"):
        with pytest.raises(UsageError, match="num_classes"):
            load(tmp_path / "a.pth", num_classes=number)  # type: ignore[arg-type]


@pytest.mark.parametrize("layout", [NVLABS, MMSEGMENTATION], ids=layout_name)
def test_what_stands_beside_the_network_is_passed_over(layout: Layout, tmp_path: Path) -> None:
    tensors = state(trained(layout), layout)
    tensors["auxiliary_head.convs.0.conv.weight"] = torch.zeros(2, 2)
    tensors["data_preprocessor.mean"] = torch.zeros(3)
    tensors["head.weight"] = torch.zeros(1000, 64)
    if layout is NVLABS:
        tensors["decode_head.conv_seg.weight"] = torch.zeros(4, 128, 1, 1)
        tensors["decode_head.conv_seg.bias"] = torch.zeros(4)
    torch.save({"state_dict": tensors}, tmp_path / "a.pth")
    loaded = load(tmp_path / "a.pth").state_dict()
    assert torch.equal(loaded["head.classifier.weight"], trained(layout).head.classifier.weight)


@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_name)
def test_wrong_tensors_are_all_listed(layout: Layout, tmp_path: Path) -> None:
    tensors = {"module." + k: v for k, v in state(trained(layout), layout).items()}
    # Biases, because without some of the weights not even the size of the network is known.
    missing, misshapen, wrong_type = sorted(k for k in tensors if k.endswith("bias"))[5:8]
    del tensors[missing]
    tensors[misshapen] = torch.zeros(*tensors[misshapen].shape[:-1], 77)
    tensors[wrong_type] = tensors[wrong_type].to(torch.int8)
    tensors["module.decode_head.strange"] = torch.zeros(2)
    torch.save(tensors, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "a.pth")
    text = str(caught.value)
    assert text.startswith("a.pth: does not fit SegFormer")
    assert "\n" not in text
    for part in (missing, misshapen, wrong_type, "unexpected: module.decode_head.strange", "77"):
        assert part in text


@pytest.mark.parametrize("layout", LAYOUTS, ids=layout_name)
def test_a_missing_tensor_is_named(layout: Layout) -> None:
    tensors = state(trained(layout), layout)
    for name in list(tensors)[::3]:  # of the weights and biases in turn
        if not name.endswith("num_batches_tracked"):
            rest = {k: v for k, v in tensors.items() if k != name}
            with pytest.raises(CheckpointError, match=f"missing: {name}"):
                fit(rest, {}, Metadata(), None, "a.pth")


def test_long_lists_are_cut_short(tmp_path: Path) -> None:
    tensors = state(trained(NVLABS), NVLABS)
    tensors |= {f"neck.{i}": torch.zeros(1) for i in range(40)}
    torch.save(tensors, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"neck\.11 and 28 more"):
        load(tmp_path / "a.pth")


@pytest.mark.parametrize("shape", [(), (0, 8), (8,), (8, 9), (8, 8, 3, 3)])
@pytest.mark.parametrize("name", ["proj", "sr"])
def test_shapes_that_tell_nothing_are_misshapen(
    shape: tuple[int, ...], name: str, tmp_path: Path
) -> None:
    tensors = state(trained(NVLABS), NVLABS)
    for block in ("block1.0", "block3.1"):
        tensors[f"backbone.{block}.attn.{name}.weight"] = torch.zeros(shape)
    torch.save(tensors, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=rf"misshapen: .*attn\.{name}\.weight is"):
        load(tmp_path / "a.pth")


def test_odd_names_do_not_reach_the_terminal(tmp_path: Path) -> None:
    tensors = {**state(trained(NVLABS), NVLABS), "a\nb\x1b[31m": torch.zeros(1)}
    torch.save(tensors, tmp_path / "a.pth")
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path / "a.pth")
    assert str(caught.value).isprintable()
    assert r"unexpected: 'a\nb\x1b[31m'" in str(caught.value)


def test_a_foreign_tensor_beside_a_wrapped_model_is_named(tmp_path: Path) -> None:
    tensors = {"model." + name: t for name, t in state(trained(NVLABS), NVLABS).items()}
    torch.save({"state_dict": {"loss.w": torch.zeros(1), **tensors}}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match=r"does not fit .* unexpected: loss\.w$"):
        load(tmp_path / "a.ckpt")
    torch.save({"head.weight": torch.zeros(1), **tensors}, tmp_path / "a.ckpt")
    load(tmp_path / "a.ckpt")  # known to stand beside networks of NVlabs


def test_an_empty_state_is_passed_over(tmp_path: Path) -> None:
    torch.save({"state_dict": {}, "model": trained().state_dict()}, tmp_path / "a.pth")
    assert load(tmp_path / "a.pth").config == trained().config
    torch.save({"state_dict": {}}, tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="holds no tensors"):
        load(tmp_path / "a.pth")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_loading_leaves_nothing_of_how_it_is_done(dtype: torch.dtype, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({k: v.to(dtype) for k, v in trained().state_dict().items()}, path)
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    loaded = load(path)
    assert torch.equal(torch.rand(3), expected)
    with path.open("r+b") as file:  # in place: what is mapped from the file would change
        file.write(bytes(path.stat().st_size))
    for name, tensor in trained().to(dtype).state_dict().items():
        assert torch.equal(loaded.state_dict()[name].to(tensor.dtype), tensor), name
    assert all(p.requires_grad and p.is_contiguous() for p in loaded.parameters())
    assert {b.dtype for b in loaded.buffers()} == {torch.float32, torch.int64}
    loaded.train()(image(64, 64).float()).sum().backward()


def test_other_networks_are_not_segformers(tmp_path: Path) -> None:
    torch.save(torch.nn.Conv2d(3, 4, 1).state_dict(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"a\.pth: not a SegFormer: .*'weight'"):
        load(tmp_path / "a.pth")


def test_heads_come_from_config_json_where_there_is_one(tmp_path: Path) -> None:
    model = trained(HUGGINGFACE, heads=HEADS)
    save_file(state(model, HUGGINGFACE), tmp_path / "model.safetensors")
    assert load(tmp_path).config.heads == (1, 2, 5, 8)
    config = {"model_type": "segformer", "num_attention_heads": HEADS}
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert load(tmp_path).config.heads == HEADS
    assert load(tmp_path / "model.safetensors").config.heads == HEADS
    (tmp_path / "config.json").write_text(json.dumps({**config, "hidden_sizes": [8, 16, 40, 80]}))
    with pytest.raises(CheckpointError, match="dims is stated as"):
        load(tmp_path)


def test_channels_that_the_usual_heads_do_not_divide_need_a_config_json(tmp_path: Path) -> None:
    model = trained(SEGFORMERPP, dims=(8, 16, 24, 32), heads=(1, 2, 3, 4))
    torch.save(model.state_dict(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="attention heads"):
        load(tmp_path / "a.pth")


@pytest.mark.parametrize(
    ("outputs", "known", "size"),
    [(17, "coco", (384, 288)), (20, "jbd", (640, 480)), (14, "lsp", None), (5, "", None)],
)
def test_poses_without_metadata(
    outputs: int, known: str, size: tuple[int, int] | None, tmp_path: Path
) -> None:
    """What the number of keypoints tells, as published models have it; sizes may be given."""
    path = tmp_path / "pose.pth"
    torch.save({"state_dict": state(trained(MMPOSE, num_outputs=outputs), MMPOSE)}, path)
    data = load(path).metadata
    assert (data.task, data.sigma, data.coding, data.labels) == ("pose", 3.0, "udp", ())
    names = skeleton(known).names if known else tuple(f"keypoint {i}" for i in range(outputs))
    image = np.zeros((90, 70, 3), np.uint8)
    if size is None:
        with pytest.raises(UsageError, match="which size of input it was trained with; give a"):
            Predictor(path, runtime="torch")
    else:
        predict = Predictor(path, runtime="torch")
        assert predict.metadata.image_size == size
        assert predict.metadata.skeleton == skeleton(known).links
    predict = Predictor(path, runtime="torch", size=(64, 48))
    assert predict.labels == names
    assert predict(image, boxes="image").keypoints.shape == (1, outputs, 3)


def test_keypoint_names_of_mmpose(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Where training left them; the only class, which is a person, names no output."""
    known = {0: "tip", 1: "left_base", 2: "right_base", 3: "tail"}
    about = {"keypoint_id2name": known, "classes": ["person"], "palette": [[1, 2, 3]]}
    contents = {"meta": {"dataset_meta": about}, "state_dict": state(trained(MMPOSE), MMPOSE)}
    torch.save(contents, tmp_path / "pose.pth")
    with caplog.at_level(logging.WARNING):
        data = load(tmp_path / "pose.pth").metadata
    assert (data.task, data.labels, data.palette) == ("pose", tuple(known.values()), ())
    assert caplog.text == ""


def test_other_models_stay_what_they_are(tmp_path: Path) -> None:
    torch.save(state(trained(MMSEGMENTATION), MMSEGMENTATION), tmp_path / "a.pth")
    torch.save(encoder(trained(MMPOSE), MMPOSE), tmp_path / "b.pth")
    assert {load(tmp_path / f"{name}.pth").metadata.task for name in "ab"} == {"segmentation"}


def test_tables_give_no_two_tensors_one_name() -> None:
    for layout in FOREIGN:
        names = {**layout.stage, **layout.block, **layout.head}
        assert len(set(names.values())) == len(names)
