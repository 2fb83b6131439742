"""Time our network beside transformers' SegFormer, with the same weights, in one interleaved run.

    python benchmarks/peers.py --size 1024x1024 --json benchmarks/results/peers.json

The peer runs in PyTorch (eager, scaled_dot_product_attention), exported to ONNX Runtime, and
converted to OpenVINO at the same precision; ours in the same runtimes. Weights are random. Every
candidate has a fresh process of its own, and every round gives each a turn, in another order; the
figures are medians over the rounds. Where the rounds of a candidate differ so much that
their median may be off by more than 5 %, its figure is withheld: the machine was busy, or there
were too few rounds.

Memory is the peak of each process. The peer's conversion is done beforehand, in a process that
is counted as `first_start_memory_mb`: what is timed reads the converted network from its file
without PyTorch, as ours does from its cache.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from segformerpp.benchmark.run import machine, processor
from segformerpp.benchmark.timing import interleave
from segformerpp.benchmark.worker import Worker

PEER = "transformers"
RUNTIMES = ("torch", "onnxruntime", "openvino")
Prepared = tuple[Callable[[], object], dict[str, Any]]


def images(size: tuple[int, int]) -> np.ndarray:
    """One normalised image, of noise."""
    return np.random.default_rng(0).standard_normal((1, 3, *size), dtype=np.float32)


def in_torch(
    folder: str, size: tuple[int, int], precision: str, threads: int, converted: str
) -> Prepared:
    """The peer in PyTorch, eagerly."""
    import torch

    torch.set_num_threads(threads)
    peer, x = load(folder), torch.from_numpy(images(size))

    @torch.inference_mode()
    def run() -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
            return peer(x).logits

    return run, {}


def to_onnxruntime(folder: str, size: tuple[int, int], converted: str) -> Prepared:
    """Export the peer to ONNX."""
    import torch

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.peer = load(folder)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            logits: torch.Tensor = self.peer(x).logits
            return logits

    x = torch.from_numpy(images(size))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(Logits().eval(), (x,), converted, dynamo=True, input_names=["images"])
    return lambda: None, {}


def in_onnxruntime(
    folder: str, size: tuple[int, int], precision: str, threads: int, converted: str
) -> Prepared:
    """The peer in ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.enable_mem_pattern = False  # as ours: less memory, in no less time
    session = onnxruntime.InferenceSession(converted, options, ["CPUExecutionProvider"])
    x = images(size)
    return lambda: session.run(None, {"images": x}), {}


def to_openvino(folder: str, size: tuple[int, int], converted: str) -> Prepared:
    """Convert the peer to OpenVINO."""
    import openvino as ov
    import torch

    x = torch.from_numpy(images(size))
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = ov.convert_model(load(folder), example_input=x, input=list(x.shape))
    ov.save_model(model, converted, compress_to_fp16=False)
    return lambda: None, {}


def in_openvino(
    folder: str, size: tuple[int, int], precision: str, threads: int, converted: str
) -> Prepared:
    """The peer in OpenVINO."""
    import openvino as ov

    hint = {"f32": ov.Type.f32, "bf16": ov.Type.bf16}[precision]
    options = {
        "INFERENCE_PRECISION_HINT": hint,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # as in ours
    }
    network, x = ov.Core().compile_model(converted, "CPU", options), images(size)
    return lambda: network(x), {}


def load(folder: str) -> Any:
    """The peer, from a folder in its layout."""
    import transformers

    return transformers.SegformerForSemanticSegmentation.from_pretrained(
        folder, attn_implementation="sdpa"
    ).eval()


def save_weights(size: str, folder: Path) -> None:
    """Random weights: ``theirs`` for transformers, ``ours`` for us."""
    from segformerpp import checkpoints
    from segformerpp.models import Segformer, SegformerConfig

    model = Segformer(SegformerConfig.of_size(size)).eval()
    checkpoints.save_pretrained(model, folder / "theirs", layout="huggingface")
    checkpoints.save_pretrained(model, folder / "ours")


def start(
    args: argparse.Namespace, folder: Path, stack: ExitStack
) -> dict[tuple[str, str], Worker]:
    """A process for each candidate, by runtime and plan; the peer's plan is ``transformers``."""
    size = tuple(int(side) for side in args.size.split("x"))
    here = [Path(__file__).parent]
    workers = {}
    for runtime in args.runtime:
        kind = {"onnxruntime": "onnx", "openvino": "xml"}.get(runtime, "none")
        theirs = {
            "folder": str(folder / "theirs"),
            "size": size,
            "converted": str(folder / f"peer.{kind}"),
        }
        first_start = None
        if runtime != "torch":
            with Worker(f"peers:to_{runtime}", theirs, here, warm_up=0) as converter:
                first_start = converter.facts["peak_memory_mb"]
        theirs |= {"precision": args.precision, "threads": args.threads}
        peer = stack.enter_context(Worker(f"peers:in_{runtime}", theirs, here))
        peer.facts["first_start_memory_mb"] = first_start
        workers[runtime, PEER] = peer
        for plan in args.merge:
            ours = {
                "model": str(folder / "ours"),
                "merge": plan,
                "size": size,
                "batch": 1,
                "runtime": runtime,
                "precision": args.precision,
                "device": "cpu",
                "threads": args.threads,
                "offline": True,
                "revision": None,
            }
            target, first_start = "segformerpp.benchmark.candidates:network", None
            if runtime != "torch":  # the timed one starts a second time, from the cache
                with Worker(target, ours) as worker:
                    first_start = worker.facts["peak_memory_mb"]
            worker = stack.enter_context(Worker(target, ours))
            worker.facts["first_start_memory_mb"] = first_start
            workers[runtime, plan] = worker
    return workers


def main() -> None:
    """Read the arguments, measure, report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="b0", help="b0 to b5")
    parser.add_argument("--size", default="1024x1024", help="height x width")
    parser.add_argument("--merge", nargs="+", default=["none", "hq", "fast", "2x2"])
    parser.add_argument("--runtime", nargs="+", default=["openvino"], choices=RUNTIMES)
    parser.add_argument("--precision", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--json", type=Path, help="file for the figures; rows are added to it")
    args = parser.parse_args()

    with tempfile.TemporaryDirectory() as name, ExitStack() as stack:
        # The cache of a user neither helps nor is filled.
        os.environ["SEGFORMERPP_CACHE"] = str(Path(name) / "cache")
        save_weights(args.model, Path(name))
        workers = start(args, Path(name), stack)
        with Progress(transient=True) as progress:
            task = progress.add_task("measuring", total=len(workers) * args.rounds)
            timings = interleave(workers, args.rounds, lambda: progress.advance(task))
        facts = {key: worker.facts for key, worker in workers.items()}

    rows: list[dict[str, Any]] = []
    title = f"{args.model} {args.size} {args.precision}, {args.threads} threads, {processor()}"
    table = Table("runtime", "plan", "median ms", "p95 ms", "of peer", "MB", "of peer", title=title)
    for (runtime, plan), timing in timings.items():
        peer, peer_facts = timings[runtime, PEER], facts[runtime, PEER]
        memory = facts[runtime, plan]["peak_memory_mb"]
        of_peer = memory / peer_facts["peak_memory_mb"]
        row = {
            "model": args.model,
            "size": args.size,
            "batch": 1,
            "merge": plan,
            "runtime": runtime,
            "precision": args.precision,
            "device": "cpu",
            "threads": args.threads,
            "median_ms": None,
            "p95_ms": None,
            "images_per_s": None,
            "ratio_to_peer": None,
            "uncertainty": round(timing.uncertainty, 3),
            "withheld": timing.meaningless,
            "peak_memory_mb": memory,
            "memory_ratio_to_peer": round(of_peer, 3),
            "first_start_memory_mb": facts[runtime, plan]["first_start_memory_mb"],
            **machine(),
        }
        cells = ["withheld", f"± {timing.uncertainty:.0%}", ""]
        if not timing.meaningless:
            ratio = None if peer.meaningless else timing.median / peer.median
            row["median_ms"] = round(1e3 * timing.median, 1)
            row["p95_ms"] = round(1e3 * timing.p95, 1)
            row["images_per_s"] = round(1 / timing.median, 3)
            row["ratio_to_peer"] = ratio and round(ratio, 3)
            cells = [f"{1e3 * timing.median:.0f}", f"{1e3 * timing.p95:.0f}"]
            cells.append("withheld" if ratio is None else f"{ratio:.2f}")
        table.add_row(runtime, plan, *cells, f"{memory:.0f}", f"{of_peer:.2f}")
        rows.append(row)
    Console().print(table)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        before = json.loads(args.json.read_text()) if args.json.exists() else []
        args.json.write_text(json.dumps(before + rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
