"""transformers' SegFormer, made to merge tokens in place.

Modules keep their class, parameters and names; what changes is the `forward` of single ones, which
calls ours with their layers. Taking it away again leaves nothing behind.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from segformerpp.errors import UsageError
from segformerpp.merging.match import Matches
from segformerpp.models.attention import Attention, to_image, to_tokens
from segformerpp.models.encoder import shrink
from segformerpp.models.heads import DecodeHead
from segformerpp.plans import MergePlan, StageMerge

M = TypeVar("M")

#: The method of PyTorch's modules that copies one without its parameters and children.
_REPLICATE = "_replicate_for_data_parallel"


def accelerate(model: M, merge: MergePlan | str | Path | Mapping[str, Any] = "hq") -> M:
    """Make a SegFormer of transformers merge tokens, with its decode head at low resolution.

    The model stays what it is: class, configuration, parameters, `save_pretrained`, the way that it
    is called, `Trainer`, autocast and `torch.compile`. Its outputs are those of `segformerpp.load`
    with the same weights and plan; attention maps (`output_attentions`) are not among them, and
    dropout on attention maps, which no published SegFormer has, is left out.

    Args:
        model: a `SegformerModel`, `SegformerForSemanticSegmentation` or
            `SegformerForImageClassification` of transformers 5, or a pipeline that holds one; it is
            changed in place. Once more with another plan changes the plan.
        merge: the plan, in any notation that `MergePlan.parse` reads; ``none`` leaves only what is
            faster without merging.

    Returns:
        The same object.

    Raises:
        UsageError: if it is no such model.
        PlanError: if the plan is not understood.
    """
    plan = MergePlan.parse(merge)
    network = _network(model)
    encoder = _encoder(network)
    restore(model)
    for number, (stage, stage_merge) in enumerate(zip(encoder.stages, plan.stages, strict=True)):
        scale = plan.input_scale if number == 0 else 1.0
        for position, block in enumerate(stage.blocks):
            _change(block.attention, _attend, stage_merge, position)
            _change(block.mlp, _mix)
        _change(stage, _encode, scale)
    head: Any = getattr(network, "decode_head", None)
    if head is not None:
        _change(head, _decode)
    return model


def restore(model: M) -> M:
    """Undo `accelerate`; nothing of it stays. Models that were not accelerated stay as they are.

    Raises:
        UsageError: if it is no SegFormer of transformers.
    """
    network = _network(model)
    _encoder(network)
    for module in network.modules():
        forward = vars(module).get("forward")
        if isinstance(forward, partial) and forward.func in _FORWARDS:
            del vars(module)["forward"], vars(module)[_REPLICATE]
    return model


def _change(module: Any, function: Callable[..., Any], *settings: Any) -> None:
    """Let a function that takes the module and the settings first be its `forward`."""
    module.forward = partial(function, module, *settings)
    setattr(module, _REPLICATE, partial(_replicate, module))


def _replicate(module: Any) -> Any:
    """A copy for another graphics card, as DataParallel asks for (and so Trainer, in one process).

    PyTorch copies attributes as they are, and the copy would compute with the original's weights.
    """
    replica = getattr(type(module), _REPLICATE)(module)
    _change(replica, module.forward.func, *module.forward.args[1:])
    return replica


def _network(model: Any) -> nn.Module:
    """The model, or that of a pipeline."""
    network = model if isinstance(model, nn.Module) else getattr(model, "model", None)
    if not isinstance(network, nn.Module):
        raise UsageError(f"model: a SegFormer of transformers, not {type(model).__name__}")
    return network


def _encoder(network: nn.Module) -> Any:
    encoder: Any = getattr(network, "segformer", network)
    if type(encoder).__name__ != "SegformerModel" or not hasattr(encoder, "stages"):
        raise UsageError(
            f"model: a SegFormer of transformers 5 or newer, not {type(network).__name__}"
        )
    if len(encoder.stages) != len(MergePlan().stages):
        raise UsageError(f"model: a SegFormer of four stages, not {len(encoder.stages)}")
    return encoder


class _Layers:
    """Layers under the names that our modules have for them, so that ours can be called on them."""

    def __init__(self, **layers: Any) -> None:
        for name, layer in layers.items():
            setattr(self, name, layer)


def _encode(stage: Any, scale: float, hidden_states: Tensor, **kwargs: Any) -> Tensor:
    """A stage: (B, C_in, H, W) -> (B, C, h, w); (B, N, C) if the last one is not to be reshaped."""
    patches = stage.patch_embeddings
    # So that tokens are a view of what the convolution gives.
    image = shrink(hidden_states, scale).contiguous(memory_format=torch.channels_last)
    x = patches.proj(image)
    grid = (x.shape[2], x.shape[3])
    x = patches.layer_norm(to_tokens(x))
    matches: dict[int, Matches] = {}
    for block in stage.blocks:
        x = block(x, *grid, **kwargs, segformerpp_matches=matches)
    x = stage.layer_norm(x)
    return to_image(x, grid) if stage.reshape else x


def _attend(
    attention: Any,
    merge: StageMerge,
    position: int,
    hidden_states: Tensor,
    height: int,
    width: int,
    attention_mask: Tensor | None = None,
    *,
    segformerpp_matches: dict[int, Matches],
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention: (B, N, C) -> (B, N, C); there are no attention maps."""
    reduction = getattr(attention, "sequence_reduction", None)
    layers: Any = _Layers(
        heads=attention.num_attention_heads,
        q=attention.q_proj,
        kv=lambda x: torch.cat((attention.k_proj(x), attention.v_proj(x)), dim=-1),
        proj=attention.o_proj,
        sr=reduction and reduction.sequence_reduction,
        sr_norm=reduction and reduction.layer_norm,
    )
    # By the first block's number, so that recomputing a block (checkpointing) finds the same.
    first = position - position % merge.reuse if merge.reuse else position
    known = None if first == position else segformerpp_matches[first]
    out, segformerpp_matches[first] = Attention.forward(
        layers, hidden_states, (height, width), merge, known
    )
    return out, None


def _mix(mlp: Any, hidden_states: Tensor, height: int, width: int) -> Tensor:
    """Mix-FFN: (B, N, C) -> (B, N, C)."""
    x = mlp.dwconv.dwconv(to_image(mlp.fc1(hidden_states), (height, width)))
    return mlp.dropout(mlp.fc2(mlp.dropout(mlp.activation_fn(to_tokens(x)))))


def _decode(head: Any, encoder_hidden_states: Any, **_: Any) -> Tensor:
    """The decode head: four stage outputs -> logits (B, K, h, w)."""
    features = list(_images(encoder_hidden_states))
    parts = head.linear_fuse.weight.chunk(len(features), dim=1)
    layers: Any = _Layers(
        kind="linear",
        training=head.training,
        scales=[
            _Layers(weight=one.proj.weight[:, :, None, None], bias=one.proj.bias)
            for one in head.linear_projections
        ],
        fuse=_Layers(weight=torch.cat(parts[::-1], dim=1)),  # theirs begins with the last stage
        fuse_norm=head.batch_norm,
        dropout=head.dropout,
        classifier=head.classifier,
    )
    return DecodeHead.forward(layers, features)


def _images(features: Any) -> Iterator[Tensor]:
    """Stage outputs as images; the last may come as tokens, of a square."""
    for x in features:
        side = int(x.shape[1] ** 0.5)
        yield to_image(x, (side, side)) if x.ndim == 3 else x


_FORWARDS = (_encode, _attend, _mix, _decode)
