import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import segformerpp as sfpp
from segformerpp.errors import UsageError
from segformerpp.plans import PRESETS

transformers = pytest.importorskip("transformers")

PLANS = [*PRESETS, "q34:mode=bsm,r=0.5,sx=2,sy=2 reuse3=2 kv123:mode=bsm,r=0.5,sx=2,sy=2"]


@pytest.fixture(scope="module")
def config() -> Any:
    return transformers.SegformerConfig(
        depths=[1, 2, 3, 1],
        hidden_sizes=[8, 16, 20, 32],
        num_attention_heads=[1, 2, 5, 8],
        decoder_hidden_size=24,
        num_labels=7,
    )


@pytest.fixture(scope="module")
def peer(config: Any) -> Any:
    torch.manual_seed(0)
    model = transformers.SegformerForSemanticSegmentation(config).double()
    norm = model.decode_head.batch_norm
    for values in (norm.running_mean, norm.running_var, norm.weight.data, norm.bias.data):
        values.uniform_(0.5, 1.5)
    return model.eval()


@pytest.fixture(scope="module")
def x() -> torch.Tensor:
    return torch.randn(2, 3, 160, 224, generator=torch.Generator().manual_seed(1)).double()


@torch.no_grad()
@pytest.mark.parametrize("plan", PLANS)
def test_equals_our_own_model(peer: Any, x: torch.Tensor, tmp_path: Path, plan: str) -> None:
    model = copy.deepcopy(peer)
    model.save_pretrained(tmp_path / "before")
    assert sfpp.accelerate(model, plan) is model
    assert type(model) is type(peer)
    ours = sfpp.load(tmp_path / "before", merge=plan).double()
    found = model(x, output_hidden_states=True)
    torch.testing.assert_close(found.logits, ours(x), rtol=0, atol=1e-6)
    for a, b in zip(found.hidden_states, ours.encoder(x), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-6)
    model.save_pretrained(tmp_path / "after")
    before, after = (
        transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path / name).state_dict()
        for name in ("before", "after")
    )
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)


@torch.no_grad()
def test_nothing_is_left(peer: Any, x: torch.Tensor) -> None:
    model = copy.deepcopy(peer)
    logits = model(x).logits
    before = [set(vars(module)) for module in model.modules()]
    for plan in ("fast", "none", "turbo"):
        sfpp.accelerate(model, plan)
    assert not torch.equal(model(x).logits, logits)
    assert sfpp.restore(model) is model
    assert torch.equal(model(x).logits, logits)
    assert [set(vars(module)) for module in model.modules()] == before
    sfpp.restore(model)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_trains(peer: Any, x: torch.Tensor, checkpointing: bool) -> None:
    """Gradients are those of our own model, whether or not blocks are recomputed."""
    model = sfpp.accelerate(copy.deepcopy(peer), PLANS[-1]).train()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout) or type(module).__name__ == "SegformerDropPath":
            module.eval()
    if checkpointing:
        model.gradient_checkpointing_enable()
    labels = torch.randint(0, 7, (2, 160, 224), generator=torch.Generator().manual_seed(2))
    loss = model(x, labels=labels).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert all(g is not None and torch.isfinite(g).all() for g in gradients.values())
    if checkpointing:
        plain = sfpp.accelerate(copy.deepcopy(peer), PLANS[-1]).train()
        for module in plain.modules():
            if isinstance(module, torch.nn.Dropout) or type(module).__name__ == "SegformerDropPath":
                module.eval()
        plain(x, labels=labels).loss.backward()
        for name, parameter in plain.named_parameters():
            torch.testing.assert_close(gradients[name], parameter.grad)


@torch.no_grad()
def test_copies_encoders_autocast_and_compile(peer: Any, x: torch.Tensor) -> None:
    model = sfpp.accelerate(copy.deepcopy(peer).float(), "hq")
    x = x.float()
    expected = model(x).logits
    assert torch.equal(copy.deepcopy(model)(x).logits, expected)
    encoder = sfpp.accelerate(copy.deepcopy(peer).float().segformer, "hq")
    hidden = encoder(x, output_hidden_states=True).hidden_states
    assert torch.equal(hidden[-1], model(x, output_hidden_states=True).hidden_states[-1])
    with torch.autocast("cpu", torch.bfloat16):
        assert model(x).logits.isfinite().all()
    compiled = torch.compile(model, backend="eager")
    torch.testing.assert_close(compiled(x).logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_replicas_compute_with_their_own_weights(peer: Any, x: torch.Tensor) -> None:
    """Those of DataParallel, which Trainer uses on several graphics cards in one process."""

    def replicate(module: torch.nn.Module) -> torch.nn.Module:  # as torch.nn.parallel does
        replica = module._replicate_for_data_parallel()
        for name, child in module.named_children():
            replica._modules[name] = replicate(child)
        for name, parameter in module._parameters.items():
            setattr(replica, name, None if parameter is None else parameter.clone())
        return replica

    model = sfpp.accelerate(copy.deepcopy(peer), "hq")
    expected = model(x).logits
    replica = replicate(model)
    for parameter in model.parameters():
        parameter.zero_()
    assert torch.equal(replica(x).logits, expected)


def test_in_a_pipeline(peer: Any) -> None:
    processor = transformers.SegformerImageProcessorPil(size={"height": 64, "width": 96})
    model = copy.deepcopy(peer).float()
    pipe = transformers.pipeline("image-segmentation", model=model, image_processor=processor)
    from PIL import Image

    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8))
    before = pipe(image)
    assert sfpp.accelerate(pipe, "2x2") is pipe
    assert {part["label"] for part in pipe(image)} <= set(model.config.id2label.values())
    sfpp.restore(pipe)
    again = pipe(image)
    assert [part["label"] for part in again] == [part["label"] for part in before]
    for a, b in zip(again, before, strict=True):
        assert np.array_equal(np.asarray(a["mask"]), np.asarray(b["mask"]))


@pytest.mark.parametrize("wrong", [3, torch.nn.Linear(2, 2), "nvidia/mit-b0"])
def test_what_cannot_be_accelerated(wrong: Any) -> None:
    for function in (sfpp.accelerate, sfpp.restore):
        with pytest.raises(UsageError, match=r"^model: a SegFormer of transformers"):
            function(wrong)
