"""`segformerpp explain`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from segformerpp.arguments import parse_size
from segformerpp.cli.options import SOME_FAILED, SUCCESS, parse_items, parse_numbers, say
from segformerpp.errors import ImageError, UsageError
from segformerpp.terminal import Progress, complain, print_table

if TYPE_CHECKING:
    from segformerpp.explaining import Explanation


def explain(
    image: str,
    model: str = "camvid-b0",
    merge: str | None = None,
    stages: str | None = None,
    blocks: str = "last",
    size: str | None = None,
    box: str | None = None,
    out: str | None = None,
    json: str | None = None,
    device: str = "auto",
    threads: int | None = None,
    offline: bool = False,
    revision: str | None = None,
    quiet: bool = False,
) -> int:
    """Draw what a plan merges on an image, what that saves, and what it changes.

    Runs the network without merging and with the plan, in PyTorch and float32, and draws one
    figure: both label maps and the pixels where they differ; for each stage which tokens become
    one, a close-up, and how similar each token is to the one that it joins; and what attention
    costs in each stage. With a model for poses: where keypoints are without merging and with it,
    and how far each moved. docs/explain.md says how to read it.

    Needs matplotlib: pip install "segformerpp[plot]".

    Examples:
      segformerpp explain street.jpg --merge hq
      segformerpp explain street.jpg --merge fast --stages 3 --blocks all --out stage3.png
      segformerpp explain street.jpg --merge "q34:mode=n1d,s=4" --json street.json
      segformerpp explain jump.jpg --model lsp-b0 --merge 2x2 --box 320,10,130,390

    Exit code:
      0 if all went well, 1 if the image cannot be read, 2 if the command makes no sense, such as
      a plan that merges nothing

    Args:
        image: the image to explain the plan on
        model: a model as `segformerpp predict` takes it
        merge: what tokens to merge: a preset (see `segformerpp plans`), a YAML file, or a keyword
            string (default: as saved with the model, or hq where that merges nothing)
        stages: which of the stages 1 to 4 to draw, with commas between (default: all in which the
            plan merges something)
        blocks: which blocks of these stages: first, last, all, or numbers from 1 up with commas
            between
        size: height and width that the network sees, such as 512x1024 (default: the image's own,
            or smaller where that has more than two megapixels)
        box: for poses: where the person is, as x,y,width,height in pixels (default: the person
            fills the image)
        out: file for the figure, ending in .png, .jpg, .svg or .pdf (default: named after the
            image, NAME_explained.png)
        json: file for the figures behind the figure: rows of what changed, of the cost of each
            stage, of what was merged in each block
        device: cpu, cuda, mps, xpu, or auto, which is a graphics card that PyTorch has, else cpu
        threads: processor threads (default: what PyTorch chooses)
        offline: never look on the hub; take models from the local cache only
        revision: branch, tag or commit of a model on the hub
        quiet: say nothing but what went wrong
    """
    from segformerpp.benchmark import plot
    from segformerpp.data.files import expand_user
    from segformerpp.data.outputs import check_writable_file, write_rows

    file = expand_user(f"{Path(image).stem}_explained.png" if out is None else out)
    plot.check(file, "out", plot.PHOTO_FORMATS)
    if file.exists() and Path(image).exists() and file.samefile(image):
        raise UsageError(f"out: {file} is the image itself")
    for key, wanted in (("out", file), ("json", json)):
        if wanted:
            check_writable_file(key, wanted)
    chosen = None if stages is None else _numbers("stages", stages)
    places = blocks if blocks in ("first", "last", "all") else _numbers("blocks", blocks)
    person = None if box is None else parse_numbers("box", box)
    network_size = None if size is None else parse_size("size", size)

    from segformerpp.explaining import explain as look

    with Progress(3, "explaining", shown=not quiet) as progress:
        try:
            found = look(
                image,
                model,
                merge,
                stages=chosen,
                blocks=places,  # type: ignore[arg-type]
                size=network_size,
                box=person,
                device=device,
                threads=threads,
                offline=offline,
                revision=revision,
                advance=progress.advance,
            )
        except ImageError as error:
            complain(f"failed: {error}")
            return SOME_FAILED
        found.save(file)
        progress.advance()
    if json:
        write_rows(json, found.rows())
    if not quiet:
        _show(found)
    say(f"figure in {file}", quiet)
    return SUCCESS


def _show(found: Explanation) -> None:
    rows = found.rows()
    groups = [row for row in rows if row["what"] == "groups"]
    if groups:
        keys = ("stage", "block", "part", "mode", "tokens", "groups", "merged", "similarity")
        print_table(keys, [["" if r[k] is None else str(r[k]) for k in keys] for r in groups])
    else:
        print("nothing is merged: the plan shrinks the image, and that is all it does")
    if found.size != found.own_size and found.task != "pose":
        sizes = [f"{height} x {width}" for height, width in (found.size, found.own_size)]
        print(f"computed at {sizes[0]} pixels; the image has {sizes[1]}")
    print(found.summary)
    whole = rows[0]
    attention = sum(found.cost.attention), sum(found.cost_without.attention)
    print(
        f"GMACs of attention: {attention[0]:.3g} instead of {attention[1]:.3g}; of the whole "
        f"network: {whole['gmacs']:.3g} instead of {whole['gmacs_none']:.3g}"
    )


def _numbers(key: str, text: str) -> list[int]:
    words = parse_items(key, text)
    for word in words:
        if not re.fullmatch(r"[1-9]\d*", word):
            raise UsageError(f"{key}: numbers from 1 up with commas between, not {word!r}")
    return [int(word) for word in words]
