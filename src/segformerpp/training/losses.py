"""The losses: cross-entropy at the masks' resolution, Lovasz-Softmax, squared heatmap errors."""

from __future__ import annotations

import math
from itertools import product
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from segformerpp.data.masks import IGNORED

#: The least share of pixels that hard example mining keeps.
_LEAST_HARD = 1 / 16
#: Every how many pixels, in both directions, the Lovasz loss looks: sorting all takes long.
_EVERY = 4
#: Resized logits that are worked on at a time: they stay in a processor's cache, and keep a
#: graphics card busy.
_STRIP_LOGITS, _STRIP_LOGITS_ELSEWHERE = 2**19, 2**24


def segmentation_loss(
    logits: Tensor,
    masks: Tensor,
    weights: Tensor | None = None,
    ohem: float = 0.0,
    lovasz: float = 0.0,
) -> Tensor:
    """`cross_entropy`, plus `lovasz` times `lovasz_softmax`; the arguments are theirs."""
    loss = cross_entropy(logits, masks, weights, ohem)
    return loss + lovasz * lovasz_softmax(logits, masks) if lovasz else loss


def cross_entropy(
    logits: Tensor, masks: Tensor, weights: Tensor | None = None, ohem: float = 0.0
) -> Tensor:
    """The mean cross-entropy of the pixels that count, in all processes together.

    Args:
        logits: (B, K, h, w), resized to the masks bilinearly.
        masks: training ids (B, H, W), 255 ignored.
        weights: of the classes, (K,); the mean is a weighted one then.
        ohem: keep only pixels whose true class has a smaller probability than this, and a
            sixteenth of all at least: the hardest ones (Shrivastava et al., 2016); 0 keeps all.

    Returns:
        A scalar of this process whose mean over the processes is the loss of them all, which is
        what data-parallel training takes the mean of; 0 where no pixel counts.
    """
    factor = masks.shape[1] // logits.shape[2]
    differentiated = torch.is_grad_enabled() and logits.requires_grad
    if (
        differentiated
        and not ohem
        and masks.shape[1:] == (logits.shape[2] * factor, logits.shape[3] * factor)
    ):
        total, share = _InStrips.apply(logits, masks, weights, factor)
        return _mean(total, share)
    logits = _fitted(logits, masks)
    masks = masks.long()
    losses = _losses(logits, masks, weights)
    share = _share(masks, weights)
    if ohem:
        with torch.no_grad():
            plain = losses if weights is None else losses / share.clamp(min=1e-12)
            plain = torch.where(share > 0, plain, 0).flatten()
            least = plain.topk(max(int(_LEAST_HARD * plain.numel()), 1)).values[-1]
            limit = min(least.item(), -math.log(ohem))
        share = share * (plain.view_as(share) >= limit)
        losses = losses * (share > 0)
    return _mean(losses.sum(), share.sum())


class _InStrips(torch.autograd.Function):
    """The sum of the cross-entropy, and of what counts, with logits resized a strip at a time.

    The gradient is made along with it, so that neither full-size logits nor anything of their size
    is kept: for 19 classes and 1024x1024 pixels they and what becomes of them take 240 MB.
    """

    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, masks: Tensor, weights: Tensor | None, factor: int
    ) -> tuple[Tensor, Tensor]:
        """Of logits (B, K, h, w) and masks (B, h * factor, w * factor)."""
        values, height = logits.detach().float(), logits.shape[2]
        gradient = torch.zeros_like(values)
        total, share = values.new_zeros(()), values.new_zeros(())
        at_once = _STRIP_LOGITS if values.is_cpu else _STRIP_LOGITS_ELSEWHERE
        row = values[0, :, 0].numel() * factor**2
        images, rows = max(at_once // (row * height), 1), max(at_once // row, 1)
        for image, first in product(range(0, len(values), images), range(0, height, rows)):
            end = min(first + rows, height)
            # With the rows beside them, which the resized ones depend on.
            near = slice(max(first - 1, 0), min(end + 1, height))
            group = slice(image, image + images)
            part = values[group, :, near].requires_grad_()
            strip = masks[group, first * factor : end * factor].long()
            with torch.enable_grad():
                large = F.interpolate(part, scale_factor=factor, mode="bilinear")
                above = (first - near.start) * factor
                large = large[:, :, above : above + strip.shape[1]]
                loss = _losses(large, strip, weights).sum()
            gradient[group, :, near] += torch.autograd.grad(loss, part)[0]
            total += loss.detach()
            share += _share(strip, weights).sum()
        ctx.save_for_backward(gradient)
        ctx.dtype = logits.dtype
        ctx.mark_non_differentiable(share)
        return total, share

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, total: Tensor, share: Tensor) -> tuple[Tensor | None, ...]:
        """Of the first result alone."""
        (gradient,) = ctx.saved_tensors
        return (gradient * total).to(ctx.dtype), None, None, None


def _losses(logits: Tensor, masks: Tensor, weights: Tensor | None) -> Tensor:
    """The cross-entropy of each pixel; 0 of ignored ones."""
    return F.cross_entropy(logits, masks, weights, ignore_index=IGNORED, reduction="none")


def _share(masks: Tensor, weights: Tensor | None) -> Tensor:
    """What each pixel counts: 1, or the weight of its class; ignored ones 0."""
    counts = (masks != IGNORED).float()
    return counts if weights is None else counts * weights[masks.clamp(max=len(weights) - 1)]


def lovasz_softmax(logits: Tensor, masks: Tensor) -> Tensor:
    """The Lovasz-Softmax loss (Berman, Triki, Blaschko, CVPR 2018): 1 - mIoU made continuous.

    Of the classes that occur in this process's batch, whose IoU it is about, and of every fourth
    pixel in both directions. Unlike `cross_entropy` it depends on how images share batches.

    Args:
        logits: (B, K, h, w), resized to the masks bilinearly.
        masks: training ids (B, H, W), 255 ignored.

    Returns:
        A scalar from 0 to 1; 0 where no pixel counts.
    """
    logits, masks = _every_fourth(logits, masks)
    counts = masks != IGNORED
    shares, ids = logits.softmax(1).movedim(1, -1)[counts], masks[counts]  # (N, K), (N,)
    losses = []
    for label in ids.unique():
        true = (ids == label).float()
        errors, order = (true - shares[:, label.long()]).abs().sort(descending=True)
        true = true[order]
        # What the Jaccard index loses with each further pixel that is wrong (their algorithm 1).
        total = true.sum()
        jaccard = 1 - (total - true.cumsum(0)) / (total + (1 - true).cumsum(0))
        # Not a product of vectors, which autocast would round.
        losses.append((errors * jaccard.diff(prepend=jaccard.new_zeros(1))).sum())
    return torch.stack(losses).mean() if losses else logits.sum() * 0


def _every_fourth(logits: Tensor, masks: Tensor) -> tuple[Tensor, Tensor]:
    """Resized logits and masks at every fourth pixel of both directions, from the third on.

    What `_fitted` would make there, without making the other pixels.
    """
    first, logits = _EVERY // 2, logits.float()
    for dim, pixels in ((2, masks.shape[1]), (3, masks.shape[2])):
        size = logits.shape[dim]
        at = torch.arange(min(first, pixels), pixels, _EVERY, device=logits.device)
        at = ((at + 0.5) * (size / pixels) - 0.5).clamp(0, size - 1)
        low = at.long()
        before, after = (logits.index_select(dim, i) for i in (low, (low + 1).clamp(max=size - 1)))
        between = (at - low).view(-1, *[1] * (3 - dim))
        logits = before.lerp(after, between)
    return logits, masks[..., first::_EVERY, first::_EVERY]


def heatmap_loss(heatmaps: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
    """The mean squared error of the heatmaps that count, in all processes together.

    Args:
        heatmaps: (B, K, h, w).
        targets: of the same shape.
        weights: (B, K): 1 for keypoints that count, 0 for others.

    Returns:
        A scalar, as `cross_entropy` gives it, times the pixels of a heatmap over 100, so that it
        is about 1 before training.
    """
    errors = (heatmaps.float() - targets).square().sum(dim=(2, 3)) * weights
    return _mean(errors.sum() / 100, weights.sum())


def _fitted(logits: Tensor, masks: Tensor) -> Tensor:
    """Logits at the size of masks (B, H, W), in float32."""
    if logits.shape[2:] == masks.shape[1:]:
        return logits.float()
    return F.interpolate(logits.float(), masks.shape[1:], mode="bilinear", align_corners=False)


def _mean(total: Tensor, share: Tensor) -> Tensor:
    """A sum over what it is made of, in all processes; its mean over them is the whole's."""
    world = 1
    if dist.is_available() and dist.is_initialized():
        world = dist.get_world_size()
        dist.all_reduce(share)
    return total * world / share.clamp(min=1e-12)


def class_weights(counts: np.ndarray) -> Tensor:
    """The square root of the inverse frequency of each class, (K,), divided by their mean.

    Within 0.4 and 3, so that classes that hardly occur do not rule. Those that never do get 1.

    Args:
        counts: pixels of each class, (K,).
    """
    present = counts > 0
    weights = np.ones(len(counts))
    weights[present] = np.sqrt(counts.sum() / counts[present])
    weights[present] = np.clip(weights[present] / weights[present].mean(), 0.4, 3)
    return torch.tensor(weights, dtype=torch.float32)
