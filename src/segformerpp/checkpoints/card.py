"""The model card beside weights: README.md with YAML front matter for the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from segformerpp.models import Metadata, Segformer
from segformerpp.plans import MergePlan

#: The terms of what NVIDIA published: https://github.com/NVlabs/SegFormer/blob/master/LICENSE
NVIDIA_LICENSE = "NVIDIA Source Code License for SegFormer (non-commercial)"
# Identifiers that the hub knows among those that weights are likely to be under.
_HUB_LICENSES = {"apache-2.0", "mit", "isc", "bsd", "bsd-2-clause", "bsd-3-clause", "unlicense"}
_HUB_LICENSES |= {"cc0-1.0", "cc-by-4.0", "cc-by-sa-4.0", "cc-by-nd-4.0", "openrail", "unknown"}
_HUB_LICENSES |= {"cc-by-nc-4.0", "cc-by-nc-sa-4.0", "cc-by-nc-nd-4.0", "mpl-2.0", "gpl-3.0"}
_TASKS = {"segmentation": "image-segmentation", "pose": "keypoint-detection"}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", re.ASCII)
_LOAD = {
    "segformerpp": """\
pip install segformerpp
```

```python
import segformerpp as sfpp

model = sfpp.load("{where}")  # x: (B, {channels}, H, W) -> logits (B, {outputs}, h, w)
model = sfpp.load("{where}", merge="hq")  # faster on large images
predict = sfpp.Predictor("{where}")
""",
    "huggingface": """\
pip install transformers
```

```python
from transformers import SegformerForSemanticSegmentation

model = SegformerForSemanticSegmentation.from_pretrained("{where}")
```

or, faster on large images by token merging:

```python
import segformerpp as sfpp

model = sfpp.load("{where}", merge="hq")
""",
}


def card(model: Segformer, metadata: Metadata, layout: str, where: str) -> str:
    """The text of README.md.

    Args:
        model: the model that is saved.
        metadata: that is saved with it.
        layout: ``segformerpp`` or ``huggingface``.
        where: the path or hub id from which it will be loaded.
    """
    config = model.config
    front = yaml.safe_dump(_front_matter(metadata, layout), sort_keys=False, allow_unicode=True)
    parameters = sum(p.numel() for p in model.parameters()) / 1e6
    size, resized = config.size.replace("b", "B"), metadata.image_size
    facts = {
        "Outputs": f"{config.num_outputs} at a quarter of the image's size",
        "Input": f"{config.in_channels} channels, RGB order, "
        + (f"resized to {resized[0]} x {resized[1]} (H x W)" if resized else "at its own size"),
        "Normalisation": f"(x - mean) / std, x in 0..255, mean {_list(metadata.mean)}, "
        f"std {_list(metadata.std)}",
        "Label files": "count from 1, 0 is ignored" if metadata.reduce_labels else "count from 0",
        "Decode head": config.head_kind + ("" if metadata.head_trained else ", not trained yet"),
        "Layer-norm epsilon": f"{config.norm_eps:g}, {config.embed_norm_eps:g} in embeddings",
        "Token merging": _plan(model.merge_plan),
        "Source of the weights": metadata.source or "not stated",
        "Terms of the weights": metadata.license or _UNKNOWN_TERMS,
    }
    lines = [
        f"---\n{front}---\n",
        f"# SegFormer-{size}, {metadata.task}, {config.num_outputs} outputs\n",
        f"{parameters:.1f} M parameters, saved by segformerpp: SegFormer with token merging.\n",
        "| | |\n|---|---|",
        *(f"| {key} | {_cell(text)} |" for key, text in facts.items()),
        "\n## How to load\n",
        "```bash\n"
        + _LOAD[layout].format(where=where, channels=config.in_channels, outputs=config.num_outputs)
        + "```",
    ]
    if metadata.labels:
        lines += ["\n## Labels\n", "| id | name | colour |\n|---|---|---|", *_labels(metadata)]
    return "\n".join(lines) + "\n"


_UNKNOWN_TERMS = (
    "not stated; SegFormer weights published by NVIDIA, and what is made from them, are "
    "for non-commercial use only"
)


def _front_matter(metadata: Metadata, layout: str) -> dict[str, Any]:
    front: dict[str, Any] = {}
    terms = metadata.license.lower()
    if terms in _HUB_LICENSES:
        front["license"] = terms
    elif terms:
        front |= {"license": "other", "license_name": _slug(terms)}
        if NVIDIA_LICENSE in metadata.license:
            front["license_link"] = "https://github.com/NVlabs/SegFormer/blob/master/LICENSE"
    front["library_name"] = "transformers" if layout == "huggingface" else "segformerpp"
    if metadata.task in _TASKS:
        front["pipeline_tag"] = _TASKS[metadata.task]
    front["tags"] = ["segformer", "segformerpp", "token-merging", metadata.task]
    if _HUB_ID.fullmatch(metadata.source):
        front["base_model"] = metadata.source.partition("@")[0]
    return front


def _plan(plan: MergePlan) -> str:
    return "none" if plan == MergePlan() else f"`{plan.name}`"


def _list(values: tuple[float, ...]) -> str:
    return "[" + ", ".join(f"{value:g}" for value in values) + "]"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _labels(metadata: Metadata) -> list[str]:
    colours = metadata.palette or ((),) * len(metadata.labels)
    return [
        f"| {i} | {_cell(label)} | {' '.join(map(str, colour))} |"
        for i, (label, colour) in enumerate(zip(metadata.labels, colours, strict=False))
    ]


def _read_front_matter(folder: Path | None) -> dict[str, Any]:
    """The YAML at the head of the model card; empty if there is none that can be read."""
    try:
        text = (folder / "README.md").read_text(encoding="utf-8") if folder else ""
        match = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
        data = yaml.safe_load(match[1]) if match else {}
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return {}  # prose for people: no reason to refuse the weights
    return data if isinstance(data, dict) else {}


def _ancestors(config: Mapping[str, Any], card: Mapping[str, Any]) -> list[str]:
    """The models that a checkpoint says it was made from."""
    base = card.get("base_model")
    named = [config.get("_name_or_path"), *(base if isinstance(base, list) else [base])]
    return [name for name in named if isinstance(name, str)]


def read_terms(folder: Path | None, config: Mapping[str, Any], name: str) -> str:
    """The terms of weights: what their card says, and NVIDIA's where weights of theirs are in them.

    Args:
        folder: of the card; there need be none.
        config: what config.json holds.
        name: where the checkpoint came from, as the user said it.
    """
    card = _read_front_matter(folder)
    names, terms = [name, *_ancestors(config, card)], card.get("license")
    terms = terms if isinstance(terms, str) else ""
    if terms == "other":
        terms = str(card.get("license_name") or "other (see the model card of the source)")
    if any(name.startswith("nvidia/") for name in names) or terms == _slug(NVIDIA_LICENSE):
        own = not terms or terms.startswith(("other", _slug(NVIDIA_LICENSE)))
        return NVIDIA_LICENSE if own else f"{terms}; made from weights under: {NVIDIA_LICENSE}"
    return terms


def _slug(text: str) -> str:
    """A text as the hub wants names of licenses: lower case, digits, dots and hyphens."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
