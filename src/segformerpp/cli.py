"""The command line: one function for each subcommand, and its docstring is its help."""

from __future__ import annotations

import inspect
import os
import re
import statistics
import sys
from argparse import Action, ArgumentError, RawDescriptionHelpFormatter
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import docstring_parser
from jsonargparse import ArgumentParser, DefaultHelpFormatter

from segformerpp.errors import ImageError, SegformerppError, UsageError
from segformerpp.terminal import Progress, complain, messages, print_table

SUCCESS, SOME_FAILED, WRONG_USAGE, INTERRUPTED = 0, 1, 2, 130


def predict(
    sources: list[str],
    model: str = "camvid-b0",
    merge: str | None = None,
    runtime: str = "auto",
    precision: str = "auto",
    device: str = "auto",
    threads: int | None = None,
    size: str | None = None,
    tile: str = "auto",
    overlap: str | None = None,
    batch: int = 1,
    out: str = "segmented",
    save: str = "labels,overlay",
    json: str | None = None,
    resume: bool = False,
    offline: bool = False,
    revision: str | None = None,
    quiet: bool = False,
) -> int:
    """Segment images: say of each pixel what it shows.

    For an image NAME.jpg the folder given by --out gets NAME_labels.png (class numbers),
    NAME_overlay.png (the image under class colours, with a legend), and what else --save names.
    Files appear whole or not at all. Images that cannot be read are named and skipped.

    Examples:
      segformerpp predict street.jpg
      segformerpp predict photos/ "scans/*.tif" --out results --save labels,color
      segformerpp predict photos/ --merge fast --resume
      segformerpp predict huge.png --tile 1024x1024
      segformerpp predict photos/ --model nvidia/segformer-b5-finetuned-cityscapes-1024-1024

    Exit code:
      0 if all went well, 1 if some images failed, 2 if the command makes no sense, 130 if it
      was interrupted

    Args:
        sources: images, folders (with all below them but links to folders), patterns in quotes,
            or .txt files with one path per line
        model: a bundled model (see `segformerpp models`), a weights file, a folder, or a model
            on the Hugging Face hub
        merge: what tokens to merge: a preset (see `segformerpp plans`), a YAML file, or a keyword
            string (default: as saved with the model, else none)
        runtime: what executes the network: torch; openvino, the fastest on a processor after some
            seconds of compiling for each new image size; or auto, which is torch
        precision: f32, bf16, f16 or auto, which is f16 on graphics cards, else f32
        device: cpu, cuda, mps, xpu, gpu (OpenVINO's), or auto, which is a graphics card that
            PyTorch has, else the processor
        threads: processor threads for the network (default: what the runtime chooses)
        size: height and width that the network sees, such as 512x1024; results have the image's
            own size in any case (default: the image's own)
        tile: height and width of overlapping windows that larger images go through the network
            in, such as 1024x1024; or auto (only where memory demands it) or none (never)
        overlap: pixels that neighbouring windows share at least, such as 256, or 128x256 for
            height and width (default: a quarter of the window)
        batch: how many images of equal size go through the network together, or fewer if --tile
            is auto and memory demands it
        out: folder for the results
        save: what to write, any of labels, overlay, color (class colours alone) and probs (class
            probabilities, as a NumPy file)
        json: file for a list with an entry for each image: settings, time, class shares
        resume: skip images whose results are all there, and in the file of --json if it is given;
            with what settings they were made is not looked at
        offline: never look on the hub; take models from the local cache only
        revision: branch, tag or commit of a model on the hub
        quiet: say nothing but what went wrong
    """
    # Here and not above, so that `--help` does not wait for them.
    from segformerpp.data.files import find_images
    from segformerpp.results_folder import ResultsFolder, segment_files

    network_size = None if size is None else _parse_size("size", size)
    special: dict[str, Any] = {"auto": "auto", "none": None}
    tiles = special[tile] if tile in special else _parse_size("tile", tile)
    overlaps = None if overlap is None else _parse_overlap(overlap)
    folder = ResultsFolder(out, re.split(r"\s*,\s*", save.strip()), json, resume)
    files = find_images(sources, skip=folder.folder, outputs=folder.outputs)
    todo = folder.missing(files)
    if not todo:
        _say(f"nothing to do: all {len(files)} images are done; results in {folder.folder}", quiet)
        return SUCCESS

    from segformerpp.predictor import Predictor

    with Progress(len(todo), "segmenting", shown=not quiet) as progress:
        predictor = Predictor(
            model,
            merge=merge,
            runtime=runtime,
            precision=precision,
            device=device,
            threads=threads,
            size=network_size,
            tile=tiles,
            overlap=overlaps,
            batch=batch,
            probabilities="probs" in folder.what,
            offline=offline,
            revision=revision,
        )
        seconds: list[float] = []
        failures = 0

        def fail(error: ImageError) -> None:
            nonlocal failures
            failures += 1
            complain(f"failed: {error}")
            progress.advance()

        try:
            for result in segment_files(predictor, todo, folder, fail):
                seconds.append(result.network_seconds)
                progress.advance()
        except KeyboardInterrupt:
            complain(
                f"interrupted: {len(seconds)} of {len(todo)} images done; the same command with "
                f"--resume goes on from there"
            )
            return INTERRUPTED
        finally:
            folder.write_report(files)

    used = predictor.facts
    report = f"{len(seconds)} of {len(files)} images done"
    if skipped := len(files) - len(todo):
        report += f", {skipped} done before"
    if failures:
        report += f", {failures} failed"
    report += f"; results in {folder.folder}"
    if seconds:
        report += (
            f"; the network took {1000 * statistics.median(seconds):.0f} ms per image (merge "
            f"{used['merge']}, {used['runtime']} {used['precision']} on {used['device']})"
        )
    _say(report, quiet)
    return SOME_FAILED if failures else SUCCESS


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
    from segformerpp.merging import PRESETS, MergePlan

    if merge is None:
        print_table(("preset", "merges"), [(name, str(plan)) for name, plan in PRESETS.items()])
    else:
        print(MergePlan.parse(merge).to_yaml(), end="")
    return SUCCESS


COMMANDS: tuple[Callable[..., int], ...] = (predict, models, plans)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; `argv` without the program's name.

    Returns:
        The exit code: 0 success, 1 some inputs failed, 2 wrong usage, 130 interrupted.
    """
    with messages():
        try:
            try:
                options = _parser().parse_args(sys.argv[1:] if argv is None else list(argv))
                command = {function.__name__: function for function in COMMANDS}[options.command]
                return command(**vars(options[options.command]))
            finally:
                # At exit it would be too late to say in one line that it cannot be written.
                print(end="", flush=True)
        except ArgumentError as error:
            complain(f"error: {_plain(error)}")
            return WRONG_USAGE
        except SegformerppError as error:
            complain(f"error: {error}")
            return WRONG_USAGE
        except OSError as error:
            _drop_output()
            if not isinstance(error, BrokenPipeError):  # else, who read our output has had enough
                where = f"{error.filename}: " if error.filename else ""
                complain(f"error: {where}{error.strerror or error}")
            return SOME_FAILED
        except KeyboardInterrupt:
            complain("interrupted")
            return INTERRUPTED


def _drop_output() -> None:
    """Forget output that cannot be written; Python would complain once more at exit."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class _Help(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    def _get_help_string(self, action: Action) -> str:
        text = action.help or ""
        if action.option_strings and action.default not in (None, False) and action.nargs != 0:
            text += " (default: %(default)s)"
        return text


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="segformerpp",
        description="SegFormer with token merging.",
        version=version("segformerpp"),
        formatter_class=_Help,
        exit_on_error=False,
        allow_abbrev=False,
    )
    commands = parser.add_subcommands(dest="command", title="commands", description=None)
    for function in COMMANDS:
        text = inspect.getdoc(function) or ""
        command = ArgumentParser(
            description=text.partition("\nArgs:\n")[0].rstrip(),
            exit_on_error=False,
            allow_abbrev=False,
        )
        helps = {p.arg_name: p.description for p in docstring_parser.parse(text).params}
        parameters = inspect.signature(function).parameters.values()
        flags = [p.name for p in parameters if p.default is False]
        lists = [p.name for p in parameters if p.default is p.empty]
        for name in lists:
            command.add_argument(name, nargs="+", metavar=name.upper()[:-1], help=helps[name])
        command.add_function_arguments(function, as_group=False, skip={*flags, *lists})
        for name in flags:
            command.add_argument(f"--{name}", action="store_true", help=helps[name])
        commands.add_subcommand(function.__name__, command, help=text.partition("\n")[0])
    return parser


def _plain(error: ArgumentError) -> str:
    """What the parser says, without its type theory."""
    text = " ".join(str(error).split())
    found = re.search(r'Parser key "([\w.]+)".* (?:Given|Got) value: (.*)', text)
    if found:
        return f"--{found[1].rpartition('.')[2]}: {found[2]!r} is not valid here; see --help"
    return re.sub(rf"\b({'|'.join(f.__name__ for f in COMMANDS)})\.", "", text)


def _parse_size(key: str, text: str) -> tuple[int, int]:
    match = re.fullmatch(r"(\d+)x(\d+)", text.strip().lower())
    if not match:
        raise UsageError(f"{key}: height x width in pixels, such as 512x1024, not {text!r}")
    return int(match[1]), int(match[2])


def _parse_overlap(text: str) -> int | tuple[int, int]:
    try:
        return int(text) if text.strip().isdecimal() else _parse_size("overlap", text)
    except UsageError:
        raise UsageError(f"overlap: pixels, such as 256, or height x width, not {text!r}") from None


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        print(text)
