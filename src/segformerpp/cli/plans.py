"""`segformerpp plans`."""

from __future__ import annotations

from segformerpp.cli.options import SUCCESS
from segformerpp.terminal import print_table


def plans(merge: str | None = None) -> int:
    """List the merge presets, or print one plan as YAML to start your own from.

    The second column says what a preset merges as a keyword string, which --merge of the other
    commands takes as well: q are queries, kv keys and values, the digits the stages (1 to 4);
    mode is bsm (bipartite soft matching), n1d or n2d (neighbours); r is the ratio of tokens
    merged away, sx and sy the distance of tokens that the others are merged into.

    Examples:
      segformerpp plans
      segformerpp plans --merge hq > mine.yaml
      segformerpp plans --merge "q34:mode=bsm,r=0.9,sx=4,sy=4"
      segformerpp predict street.jpg --merge mine.yaml

    Args:
        merge: the plan to print: a preset, a YAML file, or a keyword string
    """
    from segformerpp.plans import PRESETS, MergePlan

    if merge is None:
        print_table(("preset", "merges"), [(name, str(plan)) for name, plan in PRESETS.items()])
    else:
        print(MergePlan.parse(merge).to_yaml(), end="")
    return SUCCESS
