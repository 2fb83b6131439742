"""The exact head against the standard formulation: resize, concatenate, fuse."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from segformerpp.models import SegformerConfig
from segformerpp.models.config import HeadKind
from segformerpp.models.heads import DecodeHead


def standard(head: DecodeHead, features: list[Tensor]) -> Tensor:
    size, scaled = features[0].shape[2:], []
    for i, x in enumerate(features):
        x = head.scales[i](x)
        if head.kind == "conv":
            x = F.relu(head.scale_norms[i](x))
        scaled.append(F.interpolate(x, size=size, mode="bilinear", align_corners=False))
    fused = F.relu(head.fuse_norm(head.fuse(torch.cat(scaled, dim=1))))
    return head.classifier(head.dropout(fused))


def make(kind: HeadKind) -> tuple[DecodeHead, list[Tensor]]:
    torch.manual_seed(0)
    config = SegformerConfig.of_size("b0", head_kind=kind, head_dim=24, num_outputs=5, dropout=0)
    head = DecodeHead(config).double()
    for module in head.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_var is not None
            assert module.running_mean is not None
            module.running_var.uniform_(0.5, 2)
            torch.nn.init.normal_(module.running_mean)
            torch.nn.init.normal_(module.weight)
            torch.nn.init.normal_(module.bias)
    grids = [(23, 17), (12, 9), (6, 5), (3, 3)]
    features = [
        torch.randn(2, c, h, w, dtype=torch.float64, requires_grad=True)
        for c, (h, w) in zip(config.dims, grids, strict=True)
    ]
    return head, features


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("training", [False, True])
def test_equals_the_standard_formulation(kind: HeadKind, training: bool) -> None:
    head, features = make(kind)
    other, _ = make(kind)
    other.load_state_dict(head.state_dict())
    head.train(training)
    other.train(training)
    ours, theirs = head(features), standard(other, features)
    assert ((ours - theirs).norm() / theirs.norm()).item() < 1e-12
    loss, other_loss = ours.square().sum(), theirs.square().sum()
    inputs = torch.autograd.grad(loss, features, retain_graph=True)
    for a, b in zip(
        inputs, torch.autograd.grad(other_loss, features, retain_graph=True), strict=True
    ):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)
    loss.backward()
    other_loss.backward()
    for (name, a), b in zip(head.named_parameters(), other.parameters(), strict=True):
        assert a.grad is not None, name
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-9, atol=1e-9, msg=name)
    # Batch statistics are those of the same tensors.
    for (name, x), y in zip(head.named_buffers(), other.buffers(), strict=True):
        torch.testing.assert_close(x, y, msg=name)


@pytest.mark.parametrize(("kind", "limit"), [("linear", 1.5), ("conv", 7.5)])
def test_cost_at_1024(kind: HeadKind, limit: float) -> None:
    """Multiply-accumulates of the head for B0, 19 classes, 1024x1024, resizes not counted."""
    from torch.utils.flop_counter import FlopCounterMode

    config = SegformerConfig.of_size("b0", head_kind=kind)
    with torch.device("meta"):
        head = DecodeHead(config).eval()
        features = [torch.empty(1, c, 256 >> i, 256 >> i) for i, c in enumerate(config.dims)]
        with FlopCounterMode(display=False) as counter:
            head(features)
    gmacs = counter.get_total_flops() / 2e9
    assert gmacs < limit
    assert gmacs > 0.9 * limit  # a counter that misses a layer would pass too
