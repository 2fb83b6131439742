import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from segformerpp.training import losses
from segformerpp.training.losses import (
    class_weights,
    cross_entropy,
    lovasz_softmax,
    segmentation_loss,
)

WEIGHTS = torch.tensor([0.5, 2.0, 1.0])


def case(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    masks = torch.randint(0, 3, (2, 12, 20), dtype=torch.uint8)
    masks[:, :3] = 255
    return torch.randn(2, 3, 3, 5, requires_grad=True), masks


@pytest.mark.parametrize("weights", [None, WEIGHTS])
@pytest.mark.parametrize("size", [(12, 20), (3, 5), (9, 15), (12, 15), (13, 20), (2, 4)])
@pytest.mark.parametrize("strip", [2**19, 900, 500, 1])
def test_equals_pytorch(
    weights: torch.Tensor | None,
    size: tuple[int, int],
    strip: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(losses, "_STRIP_LOGITS", strip)
    logits, masks = case()
    masks = masks.repeat(1, 2, 2)[:, 2 : 2 + size[0], : size[1]]
    full = F.interpolate(logits, size, mode="bilinear", align_corners=False)
    expected = 3 * F.cross_entropy(full, masks.long(), weights, ignore_index=255)
    with torch.inference_mode():
        torch.testing.assert_close(3 * cross_entropy(logits, masks, weights), expected.detach())
    found = 3 * cross_entropy(logits, masks, weights)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        torch.autograd.grad(found, logits), torch.autograd.grad(expected, logits)
    )


def test_large_logits_are_not_made_for_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses, "_STRIP_LOGITS", 4 * 2**10)
    logits, masks = torch.randn(1, 4, 64, 8, requires_grad=True), torch.zeros(1, 256, 32)
    largest = 0

    def count(kept: torch.Tensor) -> torch.Tensor:
        nonlocal largest
        largest = max(largest, kept.numel())
        return kept

    with torch.autograd.graph.saved_tensors_hooks(count, lambda kept: kept):
        cross_entropy(logits, masks.byte()).backward()
    assert 0 < largest < logits[..., 0].numel() * 32 * 4


def test_the_loss_of_half_precision_can_be_scaled() -> None:
    logits, masks = case()
    half = logits.detach().half().requires_grad_()
    (cross_entropy(half, masks) * 2**16).backward()
    cross_entropy(logits, masks).backward()
    assert half.grad is not None
    assert logits.grad is not None
    assert half.grad.dtype == torch.float16
    torch.testing.assert_close(half.grad.float() / 2**16, logits.grad, atol=1e-4, rtol=1e-2)


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


def sampled(masks: torch.Tensor) -> torch.Tensor:
    """What the Lovasz loss looks at."""
    return masks[:, 2::4, 2::4]


def test_lovasz_of_hard_predictions_is_one_minus_the_mean_iou() -> None:
    generator = torch.Generator().manual_seed(0)
    masks = torch.randint(0, 5, (2, 32, 24), generator=generator, dtype=torch.uint8)
    masks[masks == 4] = 255
    predicted = torch.randint(0, 4, (2, 32, 24), generator=generator)
    logits = 1000 * F.one_hot(predicted, 4).movedim(3, 1).float()
    true, found = sampled(masks), sampled(predicted)
    counts = true != 255
    ious = [
        ((true == k) & (found == k)).sum() / (((true == k) | (found == k)) & counts).sum()
        for k in range(4)
    ]
    expected = 1 - torch.stack(ious).mean()
    torch.testing.assert_close(lovasz_softmax(logits, masks), expected)


def test_lovasz_is_its_definition() -> None:
    # The sum over the sorted errors of what each adds to the Jaccard loss of the set before it.
    generator = torch.Generator().manual_seed(1)
    masks = torch.randint(0, 3, (1, 12, 20), generator=generator, dtype=torch.uint8)
    logits = torch.randn(1, 3, 12, 20, generator=generator)
    shares = logits.softmax(1)[0, :, 2::4, 2::4].flatten(1)
    true = sampled(masks).flatten()
    losses = []
    for k in range(3):
        errors = torch.where(true == k, 1 - shares[k], shares[k])
        wrong: set[int] = set()
        loss, before = 0.0, 0.0
        for i in errors.argsort(descending=True).tolist():
            wrong.add(i)
            members = {j for j in range(len(true)) if true[j] == k}
            now = 1 - len(members - wrong) / len(members | wrong)
            loss += float(errors[i]) * (now - before)
            before = now
        losses.append(loss)
    torch.testing.assert_close(lovasz_softmax(logits, masks), torch.tensor(losses).mean())


@pytest.mark.parametrize("size", [(12, 20), (13, 22), (3, 5), (40, 7), (2, 2)])
def test_lovasz_looks_at_every_fourth_of_the_resized_logits(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 4, 3, 5, requires_grad=True)
    masks = torch.randint(0, 4, (2, *size))
    large = F.interpolate(logits, size, mode="bilinear")
    found, seen = losses._every_fourth(logits, masks)
    torch.testing.assert_close(found, large[..., 2::4, 2::4])
    assert torch.equal(seen, masks[..., 2::4, 2::4])
    grads = [
        torch.autograd.grad(x.square().sum(), logits)[0] for x in (found, large[..., 2::4, 2::4])
    ]
    torch.testing.assert_close(*grads)


def test_lovasz_beside_the_cross_entropy_can_be_trained_on() -> None:
    masks = torch.zeros(1, 16, 16, dtype=torch.uint8)
    masks[:, 8:] = 1
    logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
    first = segmentation_loss(logits, masks, lovasz=0.5)
    torch.testing.assert_close(
        first, cross_entropy(logits, masks) + 0.5 * lovasz_softmax(logits, masks)
    )
    first.backward()
    assert logits.grad is not None
    assert segmentation_loss(logits - 0.1 * logits.grad, masks, lovasz=0.5) < first


def test_lovasz_is_not_rounded_in_mixed_precision() -> None:
    masks = torch.randint(0, 3, (1, 32, 32), dtype=torch.uint8)
    logits = torch.randn(1, 3, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        found = lovasz_softmax(logits, masks)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, lovasz_softmax(logits, masks))


def test_lovasz_where_no_pixel_counts() -> None:
    logits = torch.zeros(1, 2, 4, 4, requires_grad=True)
    loss = lovasz_softmax(logits, torch.full((1, 16, 16), 255, dtype=torch.uint8))
    loss.backward()
    assert loss == 0
    assert logits.grad is not None
    assert not logits.grad.any()
