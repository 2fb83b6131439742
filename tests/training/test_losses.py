import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segformerpp.training.losses import class_weights, cross_entropy

WEIGHTS = torch.tensor([0.5, 2.0, 1.0])


def case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    masks = torch.randint(0, 3, (2, 12, 20), dtype=torch.uint8)
    masks[:, :3] = 255
    return torch.randn(2, 3, 3, 5, requires_grad=True), masks


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_equals_pytorch(weights: torch.Tensor | None) -> None:
    logits, masks = case()
    full = F.interpolate(logits, (12, 20), mode="bilinear", align_corners=False)
    expected = F.cross_entropy(full, masks.long(), weights, ignore_index=255)
    torch.testing.assert_close(cross_entropy(logits, masks, weights), expected)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("limit", [0.1, 0.4, 0.9])
def test_hard_examples(weights: torch.Tensor | None, limit: float) -> None:
    logits, masks = case(1)
    full = F.interpolate(logits, (12, 20), mode="bilinear", align_corners=False).softmax(1)
    chances = sorted(
        (full[b, int(masks[b, y, x]), y, x].item(), int(masks[b, y, x]))
        for b, y, x in np.ndindex(*masks.shape)
        if masks[b, y, x] != 255
    )
    least = masks.numel() // 16
    kept = [pair for i, pair in enumerate(chances) if i < least or pair[0] <= limit]
    weight = [1.0 if weights is None else weights[k].item() for _, k in kept]
    total = sum(-math.log(p) * w for (p, _), w in zip(kept, weight, strict=True))
    found = cross_entropy(logits, masks, weights, limit)
    assert found.item() == pytest.approx(total / sum(weight), rel=1e-4)


def test_no_pixel_counts() -> None:
    logits = torch.randn(1, 3, 4, 4, requires_grad=True)
    loss = cross_entropy(logits, torch.full((1, 8, 8), 255, dtype=torch.uint8), WEIGHTS, 0.7)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert logits.grad.abs().sum() == 0


def test_class_weights() -> None:
    weights = class_weights(np.array([800, 200, 0, 50]))
    assert weights[2] == 1
    assert weights[1] / weights[0] == pytest.approx(2)
    assert weights[[0, 1, 3]].mean() == pytest.approx(1, rel=1e-5)
    many = class_weights(np.array([10**9] * 5 + [1]))
    assert many.tolist() == pytest.approx([0.4] * 5 + [3])
