"""`segformerpp bench`."""

from __future__ import annotations

import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from segformerpp.arguments import parse_size
from segformerpp.cli.options import INTERRUPTED, SOME_FAILED, SUCCESS, parse_items, parse_plans, say
from segformerpp.errors import UsageError
from segformerpp.terminal import Progress, complain, print_table


def bench(
    model: str = "camvid-b0",
    size: str = "1024x1024",
    merge: str = "none,hq,fast,2x2",
    runtime: str = "auto",
    precision: str = "auto",
    batch: str = "1",
    device: str = "auto",
    threads: int | None = None,
    rounds: int = 15,
    json: str | None = None,
    plot: str | None = None,
    calibrate: str | None = None,
    offline: bool = False,
    revision: str | None = None,
    quiet: bool = False,
) -> int:
    """Measure how fast a network is on this machine, and how much memory it takes.

    Times the network alone, on random pixels, in every combination of what is listed. Each
    combination has a process of its own; those of one size and batch take turns, so that what
    disturbs the machine disturbs all of them alike. A time is withheld where its rounds
    differ so much that their median may be off by more than 5 %: then the machine was too busy to
    tell, or there were too few rounds.

    Examples:
      segformerpp bench
      segformerpp bench --model b5 --size 1024x1024,1024x2048 --merge none,hq
      segformerpp bench --runtime torch,openvino,onnxruntime --json speed.json --plot speed.png

    Exit code:
      0 if all ran, 1 if some combinations cannot run here, 2 if the command makes no sense

    Args:
        model: a model as `segformerpp predict` takes it, or b0 to b5 for random weights: the speed
            is the same, but say the precision, because auto looks at what a network predicts
        size: height x width of the images; several with commas between
        merge: what tokens to merge: presets (see `segformerpp plans`), YAML files or auto (the
            fastest preset that keeps the labels), with commas between; the first is what the others
            are compared to; between keyword strings put ;
        runtime: torch, torch-compiled, openvino, onnxruntime, or auto; several with commas between
        precision: f32, bf16, f16, int8, or auto; several with commas between
        batch: images that go through the network together; several with commas between
        device: cpu, cuda, mps, xpu, gpu (OpenVINO's), or auto
        threads: processor threads (default: what the runtime chooses)
        rounds: how many turns each combination has, after two runs to warm up; fast networks run
            several times in a turn
        json: file for the figures
        plot: file for a picture of them, ending in .png, .svg or .pdf
        calibrate: folder with some of your images, for the precision int8
        offline: never look on the hub; take models from the local cache only
        revision: branch, tag or commit of a model on the hub
        quiet: say nothing but what went wrong
    """
    from segformerpp import runtimes
    from segformerpp.arguments import whole_number
    from segformerpp.benchmark import plot as drawing
    from segformerpp.benchmark.candidates import save_random
    from segformerpp.benchmark.run import Setting, combinations, measure
    from segformerpp.checkpoints import open_checkpoint
    from segformerpp.data.files import expand_user, write_whole
    from segformerpp.data.outputs import check_writable_file, write_rows
    from segformerpp.models.config import SIZES
    from segformerpp.plans import MergePlan
    from segformerpp.plans.plan import is_auto

    whole_number("rounds", rounds, 3)
    sizes = [parse_size("size", text) for text in parse_items("size", size)]
    batches = [_whole("batch", text) for text in parse_items("batch", batch)]
    plans = parse_plans(merge)
    for plan in plans:
        if not is_auto(plan):
            MergePlan.parse(plan)
    names, precisions = parse_items("runtime", runtime), parse_items("precision", precision)
    for name in names:
        for kind in precisions:
            runtimes.check(name, kind, device, threads)
    if calibrate and "int8" not in precisions:
        raise UsageError("calibrate: only for the precision int8")
    if plot:
        drawing.check(expand_user(plot))
    for key, wanted_file in (("json", json), ("plot", plot)):
        if wanted_file:
            check_writable_file(key, wanted_file)
    wanted = combinations(sizes, batches, names, precisions, plans)
    refused: list[str] = []

    def refuse(text: str) -> None:
        refused.append(text)
        complain(f"failed: {text}")

    rows: list[dict[str, Any]] = []
    interrupted = False
    with (
        TemporaryDirectory() as folder,
        Progress(len(wanted) * (rounds + 1), "measuring", shown=not quiet) as progress,
    ):
        source = str(save_random(model, Path(folder))) if model in SIZES else model
        open_checkpoint(source, offline=offline, revision=revision)  # what is wrong is said once
        setting = Setting(source, device, threads, offline, revision, calibrate)
        try:
            for row in measure(setting, wanted, rounds, progress.advance, refuse):
                rows.append({**row, "model": model})
        except KeyboardInterrupt:
            interrupted = True
    if rows and not quiet:
        _show(rows)
    if json and rows:
        write_rows(json, rows)
    if plot and rows:
        with write_whole(expand_user(plot)) as file:
            drawing.plot(rows, file, expand_user(plot).suffix[1:])
        say(f"picture in {plot}", quiet)
    if interrupted:
        complain("interrupted: figures are of the rounds that were whole")
        return INTERRUPTED
    return SOME_FAILED if refused else SUCCESS


def _show(rows: list[dict[str, Any]]) -> None:
    header = [*("size", "batch", "runtime", "precision", "merge", "median ms", "p95 ms")]
    header += ["images/s", "speed-up", "memory MB", "GMACs", "tokens"]
    lines = []
    for row in rows:
        line = [row["size"], str(row["batch"]), row["runtime"], row["precision"], row["merge"]]
        if row["withheld"]:
            line += ["withheld:", f"± {row['uncertainty']:.0%}", "", ""]
        else:
            gain = "" if row["speed_up"] is None else f"{row['speed_up']:.2f}"
            line += [f"{row['median_ms']:.1f}", f"{row['p95_ms']:.1f}"]
            line += [f"{row['images_per_s']:.2f}", gain]
        memory = row["peak_memory_mb"]
        line += ["" if memory is None else f"{memory:.0f}", f"{row['gmacs']:.2f}"]
        lines.append([*line, str(row["tokens"])])
    print_table(header, lines)
    first = rows[0]
    print(f"{first['model']} on {first['processor']}, {first['threads']} threads, {first['date']}")


def _whole(key: str, text: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", text):
        raise UsageError(f"{key}: whole numbers from 1 up, not {text!r}")
    return int(text)
