import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from segformerpp.errors import PlanError, UsageError
from segformerpp.merging.match import Grid, Match, match
from segformerpp.models import SIZES, Metadata, Segformer, SegformerConfig, attention
from segformerpp.models.attention import Attention
from segformerpp.models.config import HeadKind
from segformerpp.plans import (
    PRESETS,
    BipartiteMatching,
    Merge,
    MergePlan,
    Neighbour2d,
    StageMerge,
)
from tests.plans.test_plan import stages

PLANS = [
    *PRESETS,
    "q1234:mode=n1d,s=3",
    "kv123:mode=bsm,r=0.8,sx=2,sy=2,proportional=true kv4:mode=n2d,sx=2,sy=2,proportional=true",
    "q3:mode=bsm,r=0.6,sx=2,sy=2 reuse3=2 kv3:mode=bsm,r=0.5,sx=2,sy=1,proportional=true",
    "q34:mode=bsm,r=0.5,sx=2,sy=3 kv1:mode=bsm,r=0.9,sx=2,sy=2 kv23:mode=n2d,sx=2,sy=2",
]


def tiny(head_kind: HeadKind = "linear", **changes: object) -> Segformer:
    """A network of the family's shape that runs in milliseconds."""
    torch.manual_seed(0)
    usual = {"depths": (1, 1, 2, 1), "dims": (8, 16, 40, 64), "head_dim": 16, "num_outputs": 4}
    config = SegformerConfig(head_kind=head_kind, **(usual | changes))  # type: ignore[arg-type]  # whatever the test asks for
    model = Segformer(config)
    # The paper's initial weights are so small that every output would look alike.
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            nn.init.normal_(module.weight, std=2 / math.sqrt(module.weight[0].numel()))
    return model.eval()


def image(h: int, w: int, batch: int = 1, channels: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, h, w, generator=generator, dtype=torch.float64)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).detach().norm() / b.detach().norm())


@settings(deadline=None, max_examples=40)
@given(
    st.builds(lambda *s: MergePlan(s), stages, stages, stages, stages),
    st.integers(32, 100),
    st.integers(32, 100),
    st.integers(1, 3),
    st.sampled_from(["linear", "conv"]),
)
@torch.inference_mode()
def test_a_batch_gives_what_its_images_give_alone(
    plan: MergePlan, h: int, w: int, batch: int, kind: HeadKind
) -> None:
    model = tiny(kind).double()
    model.merge_plan = plan
    x = image(h, w, batch)
    logits = model(x)
    quarter = tuple((size - 1) // 4 + 1 for size in (h, w))
    assert logits.shape == (batch, 4, *quarter)
    assert logits.isfinite().all()
    for i in range(batch):
        assert relative(model(x[i : i + 1]), logits[i : i + 1]) < 1e-9


@pytest.mark.parametrize("plan", PLANS)
def test_shapes_of_odd_sizes(plan: str) -> None:
    model = tiny().double()
    model.merge_plan = plan
    x = image(251, 131, batch=2)
    halved = plan == "downsample"
    assert model(x).shape == ((2, 4, 32, 17) if halved else (2, 4, 63, 33))
    sizes = [f.shape[1:] for f in model.encoder(x)]
    assert sizes == (
        [(8, 32, 17), (16, 16, 9), (40, 8, 5), (64, 4, 3)]
        if halved
        else [(8, 63, 33), (16, 32, 17), (40, 16, 9), (64, 8, 5)]
    )


def test_downsample_reads_every_other_pixel() -> None:
    model = tiny().double()
    x = image(131, 97)
    expected = model(x[:, :, :130:2, :96:2])
    model.merge_plan = "downsample"
    assert relative(model(x), expected) < 1e-12


def test_ratio_zero_is_none_and_plans_can_be_switched() -> None:
    model = tiny().double()
    x = image(96, 80)
    plain = model(x)
    model.merge_plan = "q1234:mode=bsm,r=0,sx=2,sy=2 kv1234:mode=bsm,r=0,sx=2,sy=2"
    assert torch.equal(model(x), plain)
    model.merge_plan = "fast"
    assert relative(model(x), plain) > 1e-4
    model.merge_plan = None
    assert torch.equal(model(x), plain)
    with pytest.raises(PlanError, match="neither a preset"):
        model.merge_plan = "quick"
    assert model.merge_plan == MergePlan()


def test_proportional_keys_weigh_as_much_as_the_tokens_in_them() -> None:
    torch.manual_seed(0)
    grid, pools = (5, 6), Neighbour2d(2, 2, proportional=True)
    attention = Attention(16, 2, sr_ratio=1, embed_norm_eps=1e-6).double()
    x = torch.randn(2, 30, 16, dtype=torch.float64)
    found = match(pools, x, grid)
    assert found is not None
    merged, _ = attention(x, grid, StageMerge(kv=pools))
    # The same with every key there as often as it has tokens.
    q = attention.q(x).unflatten(2, (2, 8)).transpose(1, 2)
    k, v = (
        attention.kv(found.unmerge(found.merge(x))).unflatten(2, (2, 2, 8)).permute(2, 0, 3, 1, 4)
    )
    out = ((q @ k.transpose(2, 3)) / 8**0.5).softmax(-1) @ v
    assert relative(merged, attention.proj(out.transpose(1, 2).flatten(2))) < 1e-12
    plain, _ = attention(x, grid, StageMerge(kv=Neighbour2d(2, 2)))
    assert relative(merged, plain) > 1e-4


@torch.inference_mode()
def test_matches_are_reused_by_the_blocks_that_follow(monkeypatch: pytest.MonkeyPatch) -> None:
    plan, x = "q3:mode=bsm,r=0.6,sx=2,sy=2 kv1:mode=n2d,sx=2,sy=2", image(128, 128)
    model, found = tiny(depths=(1, 1, 5, 1)).double(), []

    def count(merge: Merge | None, x: Tensor, grid: Grid) -> Match | None:
        found.append(merge)
        return match(merge, x, grid)

    monkeypatch.setattr("segformerpp.models.attention.match", count)
    logits = {}
    for reuse, times in ((0, 5), (2, 3), (9, 1)):
        found.clear()
        model.merge_plan = plan + (f" reuse3={reuse}" if reuse else "")
        logits[reuse] = model(x)
        assert found.count(BipartiteMatching(0.6, 2, 2)) == times
    assert relative(logits[2], logits[0]) > 1e-6
    # The groups are those of the first block: with all blocks alike, nothing changes.
    for name, weight in model.encoder.stages[2].named_parameters():
        if name.endswith(("attention.proj.weight", "ffn.fc2.weight")):
            nn.init.zeros_(weight)
    reused = model(x)
    model.merge_plan = plan
    assert relative(model(x), reused) < 1e-12


def test_too_small_images_are_refused() -> None:
    model = tiny().double()
    with pytest.raises(UsageError, match="at least 32 pixels"):
        model(image(31, 64))
    model.merge_plan = "downsample"
    with pytest.raises(UsageError, match="at least 64 pixels"):
        model(image(63, 64))
    assert model(image(64, 64)).shape == (1, 4, 8, 8)
    with pytest.raises(UsageError, match=r"\(B, 3, H, W\), not \(3, 64, 64\)"):
        model(image(64, 64)[0])
    with pytest.raises(UsageError, match=r"not \(1, 4, 64, 64\)"):
        model(image(64, 64, channels=4))
    assert SegformerConfig.of_size("b5").min_image_size == 32


def test_other_channel_counts() -> None:
    assert tiny(in_channels=5).double()(image(40, 40, channels=5)).shape == (1, 4, 10, 10)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradients_reach_every_parameter(plan: str, checkpointing: bool) -> None:
    model = tiny(drop_path=0.0, dropout=0.0).double().train()
    model.merge_plan = plan
    model.encoder.gradient_checkpointing = checkpointing
    model(image(128, 96, batch=2)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or "kv.bias" in name, name


def test_checkpointing_changes_no_gradient() -> None:
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        model = tiny().double().train()
        model.merge_plan = "hq"
        model.encoder.gradient_checkpointing = checkpointing
        torch.manual_seed(2)  # the same paths are dropped
        model(image(96, 96, batch=3)).square().mean().backward()
        gradients.append([p.grad for p in model.parameters()])
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b)


def test_stochastic_depth_drops_whole_branches_and_keeps_the_mean() -> None:
    from segformerpp.models.encoder import DropPath

    torch.manual_seed(0)
    drop, x = DropPath(0.25), torch.ones(4000, 2, 3)
    out = drop(x)
    assert {float(v) for v in out.unique()} == {0.0, float(torch.tensor(1.0) / 0.75)}
    assert (out == out[:, :1, :1]).all()
    assert abs(float(out.mean()) - 1) < 0.05
    assert drop.eval()(x) is x


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("kind", ["linear", "conv"])
@torch.inference_mode()
def test_export_gives_what_eager_gives(plan: str, kind: HeadKind) -> None:
    model = tiny(kind).double()
    model.merge_plan = plan
    exported = torch.export.export(model, (image(132, 100, batch=2),)).module()
    x = image(132, 100, batch=2, seed=1)
    assert relative(exported(x), model(x)) < 1e-9


@pytest.mark.parametrize("plan", PLANS)
@torch.inference_mode()
def test_export_for_any_batch_size(plan: str) -> None:
    model = tiny().double()
    model.merge_plan = plan
    shapes = ({0: torch.export.Dim("batch")},)
    exported = torch.export.export(model, (image(64, 96, batch=2),), dynamic_shapes=shapes)
    for batch in (1, 2, 5):
        x = image(64, 96, batch=batch, seed=1)
        assert relative(exported.module()(x), model(x)) < 1e-9


@pytest.mark.parametrize("plan", ["none", "hq", PLANS[-1]])
def test_compile_gives_what_eager_gives(plan: str) -> None:
    model = tiny().double()
    model.merge_plan = plan
    torch.compiler.reset()
    compiled = torch.compile(copy.deepcopy(model), fullgraph=True)
    with torch.inference_mode():
        for seed in range(2):
            x = image(100, 68, batch=2, seed=seed)
            assert relative(compiled(x), model(x)) < 1e-9


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("plan", PLANS)
def test_autocast_trains_and_predicts(dtype: torch.dtype, plan: str) -> None:
    # torch 2.13's bfloat16 convolutions are wrong on processors with AMX for 8 and 16 channels,
    # and where a stride leaves a rest of a map that becomes one column.
    model = tiny(dims=(32, 64, 160, 256))
    model.merge_plan = plan
    x = image(128, 128, batch=2).float()
    with torch.inference_mode():
        expected = model(x)
        with torch.autocast("cpu", dtype):
            # Half precision turns close matches around: near, not equal.
            assert relative(model(x).float(), expected) < 0.3
    model.train()
    with torch.autocast("cpu", dtype):
        loss = model(x).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("weighted", [False, True])
def test_gradients_of_attention_to_few_keys(
    monkeypatch: pytest.MonkeyPatch, weighted: bool
) -> None:
    torch.manual_seed(0)
    qkv = [torch.randn(2, 3, n, 8, requires_grad=True) for n in (50, 12, 12)]
    mask = torch.randn(2, 1, 1, 12) if weighted else None
    q, k, v = qkv
    exact = F.scaled_dot_product_attention(q, k, v, mask)
    up = torch.randn_like(exact)
    expected = [exact, *torch.autograd.grad(exact, qkv, up)]
    monkeypatch.setattr(F, "scaled_dot_product_attention", None)  # not what is called for few
    with pytest.raises(TypeError):
        attention._attend(q, k, v, mask)  # float32
    with pytest.raises(TypeError), torch.no_grad():
        attention._attend(q.bfloat16(), k.bfloat16(), v.bfloat16(), None)
    q, k, v = halves = [x.bfloat16() for x in qkv]
    out = attention._attend(q, k, v, None if mask is None else mask.bfloat16())
    found = [out, *torch.autograd.grad(out, halves, up.bfloat16())]
    monkeypatch.setattr(attention, "_FEW_KEYS", 11)
    with pytest.raises(TypeError):
        attention._attend(q, k, v, None)
    for one, other in zip(found, expected, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.float(), other, atol=0.05, rtol=0.05)


def test_published_sizes() -> None:
    parameters = {}
    for size in SIZES:
        with torch.device("meta"):
            model = Segformer(SegformerConfig.of_size(size, num_outputs=150))
        assert model.config.size == size
        parameters[size] = sum(p.numel() for p in model.parameters()) / 1e6
    # The paper's table 1 (ADE20K, millions); B0 of the released code has 3.8.
    for size, paper in {
        "b0": 3.8,
        "b1": 13.7,
        "b2": 27.5,
        "b3": 47.3,
        "b4": 64.1,
        "b5": 84.7,
    }.items():
        assert parameters[size] == pytest.approx(paper, abs=0.15), size
    with pytest.raises(ValueError, match="b0, b1"):
        SegformerConfig.of_size("b6")


def test_config_and_metadata_survive_json() -> None:
    import json

    config = SegformerConfig.of_size("b2", num_outputs=7, norm_eps=1e-6, head_kind="conv")
    assert SegformerConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config
    metadata = Metadata(labels=("a", "b"), palette=((1, 2, 3), (4, 5, 6)), image_size=(512, 1024))
    assert Metadata.from_dict(json.loads(json.dumps(metadata.to_dict()))) == metadata
