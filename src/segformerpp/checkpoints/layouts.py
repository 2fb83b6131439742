"""The layouts that checkpoints come in: what each calls the modules of the network.

A layout is a table. On the left is our name of a module, on the right theirs; `{s}` is the stage
counted from 0, `{s1}` from 1, `{b}` the block. `name@2/3` is the second of three equal parts of
a tensor's rows, for layers that one side has as one and the other as several. Where theirs ends
in `_{p}` the parameter's name follows an underscore, else `.weight` and the like follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Layout:
    """One way of naming a SegFormer's tensors.

    Args:
        name: what errors and logs call it.
        stage: modules below `encoder.stages.{s}.` and their names there.
        block: modules below `encoder.stages.{s}.blocks.{b}.` and their names there.
        head: modules below `head.` and their names there.
        prefixes: what the names of the encoder may begin with; whole models first.
        norm_eps, embed_norm_eps: see `SegformerConfig`; what the layout's code computes with.
        fuse_reversed: whether the fuse convolution reads the stages in the order 4..1.
        linear_scales: whether the head's layer of each scale is stored as a matrix (D, C).
        ignored: beginnings of the names of tensors beside the network that are passed over.
        task: what its whole models are for.
        sigma: of the heatmaps that its pose models were trained with; see `Metadata`.
    """

    name: str
    stage: Mapping[str, str]
    block: Mapping[str, str]
    head: Mapping[str, str]
    prefixes: tuple[str, ...] = ("",)
    norm_eps: float = 1e-5
    embed_norm_eps: float = 1e-5
    fuse_reversed: bool = False
    linear_scales: bool = False
    ignored: tuple[str, ...] = ()
    task: str = "segmentation"
    sigma: float = 2.0


_MODULES = [
    *("norm1", "attention.q", "attention.kv", "attention.proj", "attention.sr"),
    *("attention.sr_norm", "norm2", "ffn.fc1", "ffn.dwconv", "ffn.fc2"),
]

SEGFORMERPP = Layout(
    name="segformerpp",
    stage={n: "encoder.stages.{s}." + n for n in ("patch_embed.conv", "patch_embed.norm", "norm")},
    block={n: "encoder.stages.{s}.blocks.{b}." + n for n in _MODULES},
    head={
        n: "head." + n for n in ("scales.{s}", "scale_norms.{s}", "fuse", "fuse_norm", "classifier")
    },
)

# Files still carry these names: transformers 5 translates on loading and on saving.
HUGGINGFACE = Layout(
    name="huggingface",
    stage={
        "patch_embed.conv": "encoder.patch_embeddings.{s}.proj",
        "patch_embed.norm": "encoder.patch_embeddings.{s}.layer_norm",
        "norm": "encoder.layer_norm.{s}",
    },
    block={
        "norm1": "encoder.block.{s}.{b}.layer_norm_1",
        "attention.q": "encoder.block.{s}.{b}.attention.self.query",
        "attention.kv@1/2": "encoder.block.{s}.{b}.attention.self.key",
        "attention.kv@2/2": "encoder.block.{s}.{b}.attention.self.value",
        "attention.proj": "encoder.block.{s}.{b}.attention.output.dense",
        "attention.sr": "encoder.block.{s}.{b}.attention.self.sr",
        "attention.sr_norm": "encoder.block.{s}.{b}.attention.self.layer_norm",
        "norm2": "encoder.block.{s}.{b}.layer_norm_2",
        "ffn.fc1": "encoder.block.{s}.{b}.mlp.dense1",
        "ffn.dwconv": "encoder.block.{s}.{b}.mlp.dwconv.dwconv",
        "ffn.fc2": "encoder.block.{s}.{b}.mlp.dense2",
    },
    head={
        "scales.{s}": "decode_head.linear_c.{s}.proj",
        "fuse": "decode_head.linear_fuse",
        "fuse_norm": "decode_head.batch_norm",
        "classifier": "decode_head.classifier",
    },
    prefixes=("segformer.", ""),
    fuse_reversed=True,
    linear_scales=True,
    ignored=("classifier.",),
)

# What state_dict() gives in transformers 5.
HUGGINGFACE_5 = Layout(
    name="huggingface 5",
    stage={
        "patch_embed.conv": "stages.{s}.patch_embeddings.proj",
        "patch_embed.norm": "stages.{s}.patch_embeddings.layer_norm",
        "norm": "stages.{s}.layer_norm",
    },
    block={
        "norm1": "stages.{s}.blocks.{b}.layernorm_before",
        "attention.q": "stages.{s}.blocks.{b}.attention.q_proj",
        "attention.kv@1/2": "stages.{s}.blocks.{b}.attention.k_proj",
        "attention.kv@2/2": "stages.{s}.blocks.{b}.attention.v_proj",
        "attention.proj": "stages.{s}.blocks.{b}.attention.o_proj",
        "attention.sr": "stages.{s}.blocks.{b}.attention.sequence_reduction.sequence_reduction",
        "attention.sr_norm": "stages.{s}.blocks.{b}.attention.sequence_reduction.layer_norm",
        "norm2": "stages.{s}.blocks.{b}.layernorm_after",
        "ffn.fc1": "stages.{s}.blocks.{b}.mlp.fc1",
        "ffn.dwconv": "stages.{s}.blocks.{b}.mlp.dwconv.dwconv",
        "ffn.fc2": "stages.{s}.blocks.{b}.mlp.fc2",
    },
    head={**HUGGINGFACE.head, "scales.{s}": "decode_head.linear_projections.{s}.proj"},
    prefixes=("segformer.", ""),
    fuse_reversed=True,
    linear_scales=True,
    ignored=("classifier.",),
)

# `head.` is the classifier of an ImageNet backbone, `decode_head.conv_seg.` the unused one that
# mmsegmentation 0.x gives every head.
NVLABS = Layout(
    name="nvlabs",
    stage={
        "patch_embed.conv": "patch_embed{s1}.proj",
        "patch_embed.norm": "patch_embed{s1}.norm",
        "norm": "norm{s1}",
    },
    block={
        "norm1": "block{s1}.{b}.norm1",
        "attention.q": "block{s1}.{b}.attn.q",
        "attention.kv": "block{s1}.{b}.attn.kv",
        "attention.proj": "block{s1}.{b}.attn.proj",
        "attention.sr": "block{s1}.{b}.attn.sr",
        "attention.sr_norm": "block{s1}.{b}.attn.norm",
        "norm2": "block{s1}.{b}.norm2",
        "ffn.fc1": "block{s1}.{b}.mlp.fc1",
        "ffn.dwconv": "block{s1}.{b}.mlp.dwconv.dwconv",
        "ffn.fc2": "block{s1}.{b}.mlp.fc2",
    },
    head={
        "scales.{s}": "decode_head.linear_c{s1}.proj",
        "fuse": "decode_head.linear_fuse.conv",
        "fuse_norm": "decode_head.linear_fuse.bn",
        "classifier": "decode_head.linear_pred",
    },
    prefixes=("backbone.", ""),
    norm_eps=1e-6,
    embed_norm_eps=1e-5,
    fuse_reversed=True,
    linear_scales=True,
    ignored=("head.", "decode_head.conv_seg.", "auxiliary_head.", "data_preprocessor."),
)

MMSEGMENTATION = Layout(
    name="mmsegmentation",
    stage={
        "patch_embed.conv": "layers.{s}.0.projection",
        "patch_embed.norm": "layers.{s}.0.norm",
        "norm": "layers.{s}.2",
    },
    block={
        "norm1": "layers.{s}.1.{b}.norm1",
        "attention.q": "layers.{s}.1.{b}.attn.attn.in_proj_{p}@1/3",
        "attention.kv@1/2": "layers.{s}.1.{b}.attn.attn.in_proj_{p}@2/3",
        "attention.kv@2/2": "layers.{s}.1.{b}.attn.attn.in_proj_{p}@3/3",
        "attention.proj": "layers.{s}.1.{b}.attn.attn.out_proj",
        "attention.sr": "layers.{s}.1.{b}.attn.sr",
        "attention.sr_norm": "layers.{s}.1.{b}.attn.norm",
        "norm2": "layers.{s}.1.{b}.norm2",
        "ffn.fc1": "layers.{s}.1.{b}.ffn.layers.0",
        "ffn.dwconv": "layers.{s}.1.{b}.ffn.layers.1",
        "ffn.fc2": "layers.{s}.1.{b}.ffn.layers.4",
    },
    head={
        "scales.{s}": "decode_head.convs.{s}.conv",
        "scale_norms.{s}": "decode_head.convs.{s}.bn",
        "fuse": "decode_head.fusion_conv.conv",
        "fuse_norm": "decode_head.fusion_conv.bn",
        "classifier": "decode_head.conv_seg",
    },
    prefixes=("backbone.", ""),
    norm_eps=1e-6,
    embed_norm_eps=1e-6,
    ignored=("head.", "auxiliary_head.", "data_preprocessor."),
)

# The poses of SegFormer++: a model of mmpose around mmsegmentation's encoder, whose head gives
# heatmaps.
MMPOSE = replace(
    MMSEGMENTATION,
    name="mmpose",
    head={
        "scales.{s}": "head.convs.{s}.conv",
        "scale_norms.{s}": "head.convs.{s}.bn",
        "fuse": "head.fusion_conv.conv",
        "fuse_norm": "head.fusion_conv.bn",
        "classifier": "head.final_layer",
    },
    ignored=("data_preprocessor.",),
    task="pose",
    sigma=3.0,
)

#: All layouts that are recognised. To add one, add its table here. An encoder alone, which has the
#: same names in several, is taken for the first of them.
LAYOUTS = (SEGFORMERPP, HUGGINGFACE, HUGGINGFACE_5, MMSEGMENTATION, MMPOSE, NVLABS)
