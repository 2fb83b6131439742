"""`segformerpp models`."""

from __future__ import annotations

from segformerpp.cli.options import SUCCESS
from segformerpp.terminal import print_table


def models() -> int:
    """List the models that come with the package.

    Any other SegFormer works as well: see --model of the commands.

    Examples:
      segformerpp models
      segformerpp predict street.jpg --model camvid-b0
    """
    from segformerpp import checkpoints

    rows = []
    for name, folder in checkpoints.bundled().items():
        model = checkpoints.load(folder)
        rows.append(
            (
                name,
                model.config.size,
                model.metadata.task,
                str(model.config.num_outputs),
                model.merge_plan.name,
                model.metadata.license or "unknown",
                str(folder),
            )
        )
    print_table(("model", "size", "task", "classes", "merge", "licence", "folder"), rows)
    return SUCCESS
