import json
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

import segformerpp as sfpp
from segformerpp import exporting
from segformerpp.cli import main
from segformerpp.errors import ImageError, UsageError
from segformerpp.evaluation.agreement import find_pairs
from segformerpp.models import Segformer
from segformerpp.plans import PRESETS, MergePlan
from segformerpp.runtimes.openvino_core import core
from tests.models.test_segformer import tiny
from tests.runtimes.graph.parity import assert_agree, expected, images
from tests.runtimes.graph.test_build import ODD

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "samples"
F32 = {"INFERENCE_PRECISION_HINT": "f32"}


def run(path: Path, x: np.ndarray) -> np.ndarray:
    if path.suffix == ".onnx":
        return onnxruntime.InferenceSession(path).run(None, {"images": x})[0]
    return np.array(core().compile_model(path, "CPU", F32)(x)[0])


@pytest.fixture
def model() -> Segformer:
    network = tiny()
    network.merge_plan = "hq"
    return network


@pytest.mark.parametrize("ending", [".onnx", ".xml"])
@pytest.mark.parametrize("precision", ["f32", "f16"])
@pytest.mark.parametrize(
    ("size", "batch"),
    [((131, 99), 3), (((97, 99), (150, 160)), (1, 4)), (None, None)],
)
def test_logits(
    model: Segformer, ending: str, precision: str, size: object, batch: object, tmp_path: Path
) -> None:
    path = tmp_path / "made" / f"x{ending}"
    written = sfpp.export(model, path, size=size, batch=batch, precision=precision)  # type: ignore[arg-type]
    assert sorted(path.parent.iterdir()) == sorted(written.files)
    x = images(3, 131, 99)
    if precision == "f32":
        assert_agree(run(path, x), expected(model, x))
    else:  # weights of 16 bits: near, and half the size
        found, reference = run(path, x), expected(model, x)
        assert (found.argmax(1) == reference.argmax(1)).mean() > 0.98
        plain = sfpp.export(model, tmp_path / f"f32{ending}", size=size, batch=batch)  # type: ignore[arg-type]
        sizes = [written.files[-1].stat().st_size, plain.files[-1].stat().st_size]
        assert sizes[0] < 0.85 * sizes[1]  # index sets stay as they are


def test_for_onnx_runtime_alone(
    model: Segformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model.merge_plan = "balanced"
    monkeypatch.chdir(tmp_path)
    path = sfpp.export(model, target="onnxruntime", batch=None).files[0]
    assert path.name.endswith("-onnxruntime.onnx")
    small = sfpp.export(model, target="tensorrt", size=(64, 64), merge="2x2", precision="f16")
    assert small.files[0].name.endswith("-2x2-64x64-f16-tensorrt.onnx")
    kinds = {node.op_type for node in onnx.load(path).graph.node}
    assert {"MultiHeadAttention", "Softmax"} & kinds == {"MultiHeadAttention"}
    x = images(2, 131, 133)
    assert_agree(run(path, x), expected(model, x))


@pytest.mark.parametrize("plan", [*PRESETS, *ODD])
def test_a_range_of_sizes_in_openvino(model: Segformer, plan: str, tmp_path: Path) -> None:
    """It computes with the bounds of sizes, too."""
    model.merge_plan = plan
    sfpp.export(model, tmp_path / "x.xml", size=((125, 125), (200, 160)), batch=(1, 2))
    x = images(2, 131, 133)
    assert_agree(run(tmp_path / "x.xml", x), expected(model, x))


@pytest.mark.parametrize("ending", [".onnx", ".xml"])
def test_notes(model: Segformer, ending: str, tmp_path: Path) -> None:
    path = tmp_path / f"x{ending}"
    written = sfpp.export(model, path, size=((125, 125), (128, 256)), merge="fast")
    if ending == ".onnx":
        file = onnx.load(path)
        notes = {entry.key: entry.value for entry in file.metadata_props}
        assert str(file.opset_import[0].version) == notes["opset"]
    else:
        read = core().read_model(path)
        notes = {key: str(value.value) for key, value in read.rt_info["segformerpp"].items()}
        assert str(read.input().partial_shape) == "[1,3,125..128,125..256]"
    assert notes == written.notes
    assert notes["size"] == "125x125..128x256"
    assert MergePlan.from_dict(json.loads(notes["merge_plan"])) == MergePlan.parse("fast")
    assert model.merge_plan.name == "hq"  # as it was


def test_what_is_refused(model: Segformer, tmp_path: Path) -> None:
    tokens = MergePlan.parse("q1:mode=bsm,r=0.5,sx=2,sy=2")
    cases: list[tuple[dict[str, object], str]] = [
        ({"path": "x.pb"}, r"out: a file that ends in .onnx or .xml, not 'x.pb'"),
        ({"path": "x.onnx", "format": "openvino"}, r"ends in .xml, not 'x.onnx'"),
        ({"format": "tflite"}, "format: one of onnx, openvino, not 'tflite'"),
        ({"precision": "bf16"}, "precision: one of f32, f16, int8, not 'bf16'"),
        ({"precision": "int8"}, "precision: int8 needs images"),
        ({"calibrate": tmp_path}, "calibrate: only for the precision int8"),
        ({"target": "trt"}, "target: one of any, onnxruntime, tensorrt, not 'trt'"),
        ({"target": "tensorrt"}, "target: tensorrt is for ONNX in f32 or f16"),
        ({"target": "onnxruntime"}, "target: onnxruntime is for ONNX in f32 or f16"),
        ({"target": "onnxruntime", "path": None, "format": "openvino"}, "target: onnxruntime is"),
        (
            {"target": "onnxruntime", "path": "x.onnx", "precision": "int8", "calibrate": SAMPLES},
            "target: onnxruntime is for ONNX in f32 or f16",
        ),
        ({"target": "tensorrt", "path": "x.onnx"}, "size: TensorRT needs a largest size"),
        ({"size": (31, 64)}, "size: at least 32 pixels"),
        ({"size": (64.5, 64)}, "size: height and width in pixels"),
        ({"size": ((128, 64), (64, 128))}, "from the smaller to the larger, not 128x64..64x128"),
        ({"size": 512}, "size: height and width in pixels, or .* not 512"),
        ({"size": ()}, r"size: height and width in pixels, or .* not \(\)"),
        ({"size": ((64, 64),)}, r"size: height and width in pixels, or .* not \(\(64, 64\),\)"),
        ({"batch": (1, 2, 3)}, r"batch: a whole number, or .* not \(1, 2, 3\)"),
        ({"batch": 0}, "batch: a whole number from 1 up, not 0"),
        ({"batch": (4, 2)}, r"batch: from the smaller to the larger, not 4\.\.2"),
        (
            {"target": "tensorrt", "path": "x.onnx", "merge": tokens, "size": (512, 512)},
            "stage 1 of this plan keeps 4096 tokens, and TensorRT selects at most 3840",
        ),
    ]
    for arguments, message in cases:
        with pytest.raises(UsageError, match=message):
            sfpp.export(model, **{"path": tmp_path / "x.xml", **arguments})  # type: ignore[arg-type]
    assert not list(tmp_path.iterdir())


def test_channels_that_images_do_not_have(tmp_path: Path) -> None:
    four = tiny(in_channels=4)
    for arguments, message in (
        ({"precision": "int8", "calibrate": tmp_path}, "calibrate: images are RGB, .* 4 channels"),
        ({"pixels": True}, "pixels: the model's mean and std have 3 values for 4 channels"),
    ):
        with pytest.raises(UsageError, match=message):
            sfpp.export(four, tmp_path / "x.xml", size=(64, 64), **arguments)
    four.metadata = replace(four.metadata, mean=(0.0,) * 4, std=(255.0,) * 4)
    written = sfpp.export(four, tmp_path / "x.onnx", size=(64, 64), pixels=True)
    x = np.random.default_rng(0).integers(0, 256, (1, 64, 64, 4), dtype=np.uint8)
    normalised = (x / 255).astype(np.float32).transpose(0, 3, 1, 2)
    np.testing.assert_allclose(run(written.files[0], x), expected(four, normalised), atol=1e-4)


def test_a_file_that_cannot_be_written(model: Segformer, tmp_path: Path) -> None:
    """It is said before the work."""
    (tmp_path / "x.onnx").mkdir()
    (tmp_path / "a-file").write_text("")
    for name, reason in (
        ("x.onnx", r"out: .*x\.onnx is a folder, not a file"),
        ("a-file/x.onnx", "out: cannot write to .*a-file: Not a directory"),
    ):
        with pytest.raises(UsageError, match=reason):
            sfpp.export(model, tmp_path / name, precision="int8", calibrate=tmp_path / "nothing")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a-file", "x.onnx"]


def test_a_model_without_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    network = tiny()
    network.metadata = replace(network.metadata, source="")
    written = sfpp.export(network, size=(64, 64), format="onnx")
    assert written.files == (Path("segformer-none-64x64.onnx"),)


def test_files_are_named_after_the_model_wherever_that_is(
    model: Segformer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sfpp.save_pretrained(model, tmp_path / "models" / "run 1.5")
    sfpp.save(model, tmp_path / "models" / "run 2.5.safetensors")
    for folder in (tmp_path, tmp_path / "models"):
        monkeypatch.chdir(folder)
        for name, stem in (("run 1.5", "run-1.5"), ("run 2.5.safetensors", "run-2.5")):
            written = sfpp.export(tmp_path / "models" / name, size=(64, 64), format="onnx")
            assert written.files == (Path(f"{stem}-hq-64x64.onnx"),)


def _raise(error: ImageError) -> None:
    raise error


@pytest.mark.parametrize("ending", [".onnx", ".xml"])
def test_int8(random_checkpoint: Path, ending: str, tmp_path: Path) -> None:
    """It is compared with f32 in the same form; weights are stored in 8 bits."""
    folder = tmp_path / "images"
    folder.mkdir()
    street = Image.open(ROOT / "samples" / "highway.png").convert("RGB")
    for i, width in enumerate((200, 160)):
        street.resize((width, 128)).save(folder / f"{i}.png")
    for form in ({"size": (128, 160), "pixels": True, "labels": True}, {"size": None}):
        path = tmp_path / f"x{ending}"
        written = sfpp.export(
            random_checkpoint, path, merge="hq", precision="int8", calibrate=folder, **form
        )
        row = exporting.compare(written, find_pairs(folder, None), lambda: None, _raise)
        assert row["images"] == 2
        assert 80 < row["agreement"] <= 100
        plain = sfpp.export(random_checkpoint, tmp_path / f"f32{ending}", merge="hq", **form)
        assert written.files[-1].stat().st_size < 0.5 * plain.files[-1].stat().st_size


def test_docs_run_without_this_package(tmp_path: Path) -> None:
    """The commands of docs/export.md, then its scripts where neither package is to be had."""
    text = (ROOT / "docs" / "export.md").read_text()
    scripts = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(scripts) == 2
    assert all(len(re.findall(r"^.", script, re.MULTILINE)) <= 11 for script in scripts)
    commands = [line for line in text.splitlines() if "--pixels --labels --out" in line]
    assert len(commands) == 2
    for command in commands:
        name = command.split()[-1]
        words = command.split()[1:-1]
        assert main([*words, str(tmp_path / name), "--quiet"]) == 0
    shutil.copy(ROOT / "samples" / "highway.png", tmp_path)
    nothing = "import sys; sys.modules['segformerpp'] = sys.modules['torch'] = None\n"
    outputs = []
    for script in scripts:
        done = subprocess.run(
            [sys.executable, "-c", nothing + script],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        outputs.append(
            {name: float(share) for name, share in re.findall(r"(\w+): ([\d.]+)%", done.stdout)}
        )
    assert outputs[0].keys() == outputs[1].keys() >= {"Sky", "Road", "Car"}
    assert outputs[0] == pytest.approx(outputs[1], abs=1)
    assert sum(outputs[0].values()) == pytest.approx(100, abs=1)
    assert outputs[0]["Road"] > 10


def test_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out, report = tmp_path / "x.onnx", tmp_path / "x.json"
    arguments = ["export", "--merge", "2x2", "--size", "64x64..128x128", "--batch", "1..2"]
    assert main([*arguments, "--out", str(out), "--json", str(report)]) == 0
    assert re.search(r"x\.onnx, \d+\.\d MB", capsys.readouterr().out)
    (row,) = json.loads(report.read_text())
    assert (row["merge"], row["batch"], row["files"]) == ("2x2", "1..2", [str(out)])
    assert run(out, images(2, 64, 96)).shape == (2, 11, 16, 24)
    for wrong in (
        ["--size", "64"],
        ["--size", "64x64.."],
        ["--batch", "0"],
        ["--masks", "m"],
        ["--test", "t"],
    ):
        assert main(["export", *wrong]) == 2


def test_images_to_test_on_that_cannot_be_used(
    tmp_path: Path, random_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are named, the rest is compared, and what was exported is told."""
    folder, report = tmp_path / "images", tmp_path / "x.json"
    folder.mkdir()
    street = Image.open(ROOT / "samples" / "highway.png").convert("RGB")
    street.resize((64, 64)).save(folder / "good.png")
    (folder / "bad.png").write_text("no image")
    options = ["--precision", "int8", "--size", "64x64", "--calibrate", str(folder / "good.png")]
    options += ["--model", str(random_checkpoint), "--out", str(tmp_path / "x.onnx")]
    assert main(["export", *options, "--test", str(folder), "--json", str(report)]) == 1
    captured = capsys.readouterr()
    assert captured.err == f"failed: {folder / 'bad.png'}: not an image of a known format\n"
    assert "on 1 images" in captured.out
    (folder / "good.png").rename(tmp_path / "good.png")
    options[5] = str(tmp_path / "good.png")
    assert main(["export", *options, "--test", str(folder), "--json", str(report)]) == 1
    (row,) = json.loads(report.read_text())
    assert (row["images"], "agreement" in row) == (0, False)
    assert " of the labels" not in capsys.readouterr().out
