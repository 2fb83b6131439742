from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import pytest
import torch
from openvino import opset13 as opset
from PIL import Image

from segformerpp import Predictor, cache
from segformerpp.calibration import Calibration
from segformerpp.checkpoints import open_checkpoint
from segformerpp.cli import main
from segformerpp.errors import UsageError
from segformerpp.runtimes import int8, int8_native
from segformerpp.runtimes.graph import UNQUANTISED
from segformerpp.runtimes.native import native_precisions
from segformerpp.runtimes.openvino import OpenvinoRuntime
from segformerpp.runtimes.openvino_core import core
from segformerpp.runtimes.traits import Traits

OPERATORS = "SoftmaxAttention", "QuantisedDepthwiseGelu", "DepthwiseGelu", "DecodeHead"
STREET = Path(__file__).parents[2] / "samples" / "highway.png"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small photographs."""
    folder = tmp_path_factory.mktemp("photos")
    street = Image.open(STREET).convert("RGB")
    for i, width in enumerate((240, 200)):
        street.resize((width, 135)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SEGFORMERPP_CACHE", str(tmp_path / "cache"))


@pytest.mark.usefixtures("empty_cache")
def test_once_for_each_model_and_plan(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"int8 needs images .* once for each model and plan"):
        Predictor(precision="int8", merge="hq")
    full = Predictor(precision="f32", merge="hq", runtime="openvino")
    first = Predictor(precision="int8", merge="hq", calibrate=folder)
    assert (first.runtime.name, first.runtime.precision) == ("openvino", "int8")
    photo = Image.open(STREET)
    found = first(photo).label_map
    assert 0.97 < (found == full(photo).label_map).mean() < 1
    batch = list(first.stream([photo, photo]))
    assert all((result.label_map == found).all() for result in batch)

    def fail(*_: object) -> None:
        raise AssertionError("quantised once more")

    monkeypatch.setattr(int8, "quantise", fail)
    assert (Predictor(precision="int8", merge="hq")(photo).label_map == found).all()
    with pytest.raises(UsageError, match="needs images"):
        Predictor(precision="int8", merge="fast")
    kinds = [entry.kind for entry in cache.entries()]
    assert kinds.count("int8") == 1


@pytest.mark.usefixtures("empty_cache")
def test_images_can_be_gone_through_several_times(
    random_checkpoint: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As quantisation may do; it does not say when they ran out."""
    counts: list[int] = []

    def quantise(model: ov.Model, inputs: Iterable[np.ndarray], count: int) -> ov.Model:
        counts.extend([count, len(list(inputs)), len(list(inputs))])
        return model

    monkeypatch.setattr(int8, "quantise", quantise)
    network = open_checkpoint(random_checkpoint)
    int8.quantised(network, Calibration(folder, network.metadata), Traits())
    assert counts == [2, 2, 2]


def kinds(model: ov.Model) -> Counter[str]:
    return Counter(node.get_type_name() for node in model.get_ops())


@pytest.mark.usefixtures("empty_cache")
def test_operators_of_our_own(folder: Path) -> None:
    """What they read and give stays as it is, but for depthwise convolutions where there is one for
    bytes; and the logits stay as exact as the operator in front of them gives them."""
    if not native_precisions():
        pytest.skip("no AVX-512, or no C++ compiler")
    checkpoint = open_checkpoint("camvid-b0", "none")
    images = Calibration(folder, checkpoint.metadata)
    precision = native_precisions()[-1]
    model, _ = int8.quantised(checkpoint, images, Traits(native=precision))
    found = [node for node in model.get_ordered_ops() if node.get_type_name() in OPERATORS]
    depthwise = OPERATORS[1 if precision == "bf16" else 2]
    assert Counter(node.get_type_name() for node in found) == {
        "SoftmaxAttention": 8, depthwise: 8, "DecodeHead": 1
    }  # fmt: skip
    for node in found:
        if node.get_type_name() == OPERATORS[0]:
            assert node.get_attributes()["in_bytes"] == (precision == "bf16")
        for i in range(node.get_input_size()):
            source = node.input_value(i).get_node()
            while source.get_type_name() in ("Convert", "Transpose", "Reshape"):
                source = source.input_value(0).get_node()
            quantised = node.get_type_name() == OPERATORS[1] and i == 0
            assert (source.get_type_name() == "FakeQuantize") == quantised
    behind = [found[-1]]
    for node in behind:
        assert node.get_type_name() != "FakeQuantize"
        behind += [user.get_node() for out in node.outputs() for user in out.get_target_inputs()]


@pytest.mark.usefixtures("empty_cache")
def test_depthwise_convolutions_in_bytes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Within what quantisation is off; OpenVINO runs the layers around them in bytes as well."""
    if "bf16" not in native_precisions():
        pytest.skip("no AVX-512 for it, or no C++ compiler")
    checkpoint = open_checkpoint("camvid-b0", "hq")
    images = Calibration(folder, checkpoint.metadata)
    x = next(iter(images.inputs((128, 160), (128, 160), batch=2)))
    full, ours = (OpenvinoRuntime(checkpoint, p, images=images) for p in ("f32", "int8"))
    network = ours._compiled(x.shape, "int8").get_runtime_model()
    layers = [node.get_rt_info() for node in network.get_ops()]
    outputs = [
        layer["outputPrecisions"].value for layer in layers
        if "QuantisedDepthwiseGelu" in layer["originalLayersNames"].value
    ]  # fmt: skip
    assert outputs == ["u8"] * 8
    convolutions = [
        layer["primitiveType"].value for layer in layers
        if layer["layerType"].value == "Convolution"
    ]  # fmt: skip
    left = [kind for kind in convolutions if not kind.endswith("I8")]
    assert len(left) == 3  # two that centre tokens, and the one behind the head
    monkeypatch.setattr(int8, "use_quantised_depthwise", lambda model: None)
    monkeypatch.setenv("SEGFORMERPP_CACHE", "off")
    theirs = OpenvinoRuntime(checkpoint, "int8", images=images)
    assert theirs._int8
    assert "QuantisedDepthwiseGelu" not in kinds(theirs._int8[0])
    exact, a, b = full(x), ours(x), theirs(x)
    size, error = np.linalg.norm(exact), np.linalg.norm(b - exact)
    assert np.linalg.norm(a - exact) < 1.2 * error
    assert np.linalg.norm(a - b) < 1.2 * error < 0.2 * size


STEP = 0.0165


def quantised_block(
    channels: int = 64, *, levels: int = 256, step: float = STEP, zero: float = 10,
    even: bool = True, once: bool = True,
    kernel: int = 3, pad: int = 1, stride: int = 1, dilation: int = 1,
    mode: str = "erf", swapped: bool = False,
) -> ov.Model:  # fmt: skip
    """A depthwise convolution and GELU as nncf quantises them.

    Args:
        channels: how many.
        levels: of the image.
        step: of the result.
        zero: of the result.
        even: whether a byte stands for 0 in images.
        once: whether GELU is read once, not twice.
        kernel: its size; pad, stride, dilation: of the convolution.
        mode: of GELU.
        swapped: whether the bias is the first to be added.
    """
    rng = np.random.default_rng(0)
    x = opset.parameter([1, channels, 7, 6], np.float32)
    steps = rng.uniform(0.01, 0.02, (1, channels, 1, 1)).astype(np.float32)
    zeros = rng.integers(0, 256, steps.shape) + (0 if even else 0.4)
    ends = [(end * steps).astype(np.float32) for end in (-zeros, 255 - zeros) * 2]
    image = opset.fake_quantize(x, *ends, levels)
    taps = rng.integers(-127, 128, (channels, 1, 1, kernel, kernel), np.int8)
    scale = rng.uniform(0.001, 0.01, (channels, 1, 1, 1, 1)).astype(np.float32)
    weight = opset.multiply(opset.convert(taps, "f32"), scale)
    sides = [stride] * 2, [pad] * 2, [pad] * 2, [dilation] * 2
    y = opset.group_convolution(image, weight, *sides)
    bias = opset.constant(rng.normal(size=steps.shape).astype(np.float32))
    y = opset.gelu(opset.add(bias, y) if swapped else opset.add(y, bias), mode)
    result = opset.fake_quantize(
        y, *(np.float32(end * step) for end in (-zero, 255 - zero) * 2), 256
    )
    return ov.Model([result] if once else [result, y], [x], "block")


def pixels(model: ov.Model) -> np.ndarray:
    return np.random.default_rng(0).normal(size=model.input().shape).astype(np.float32)


def computed(model: ov.Model) -> np.ndarray:
    options = {"INFERENCE_PRECISION_HINT": ov.Type.f32}
    return np.asarray(core().compile_model(model, "CPU", options)(pixels(model))[0])


def expected(model: ov.Model) -> np.ndarray:
    """What such a block is, exactly; OpenVINO rounds what stands for 0 in images."""
    nodes = {node.get_type_name(): node for node in reversed(model.get_ordered_ops())}

    def numbers(node: ov.Node, i: int) -> torch.Tensor:
        return torch.from_numpy(node.input_value(i).get_node().get_data().astype(np.float64))

    def quantised(x: torch.Tensor, node: ov.Node) -> torch.Tensor:
        low, high = numbers(node, 1), numbers(node, 2)
        step = (high - low) / 255
        return torch.round((x.clip(low, high) - low) / step) * step + low

    ends = [node for node in model.get_ordered_ops() if node.get_type_name() == "FakeQuantize"]
    x = quantised(torch.from_numpy(pixels(model)).double(), ends[0])
    taps = numbers(nodes["Convert"], 0) * numbers(nodes["Multiply"], 1)
    y = torch.nn.functional.conv2d(x, taps[:, 0], padding=1, groups=len(taps))
    return quantised(torch.nn.functional.gelu(y + numbers(nodes["Add"], 1)), ends[1]).numpy()


@pytest.mark.parametrize("even", [True, False])
def test_what_is_put_in_place_of_a_quantised_convolution(even: bool) -> None:
    """Exact but for what is near the middle of two steps, and around the image where no byte stands
    for 0."""
    if "bf16" not in native_precisions():
        pytest.skip("no AVX-512 for it, or no C++ compiler")
    model = quantised_block(even=even)
    exact = expected(model)
    int8_native.use_quantised_depthwise(model)
    assert kinds(model)["QuantisedDepthwiseGelu"] == 1
    difference = np.abs(computed(model) - exact) / STEP
    inside = difference[:, :, 1:-1, 1:-1]
    assert exact.std() > 5 * STEP
    assert inside.max() < 1.1
    assert (inside > 0.1).mean() < 0.02
    assert difference.max() < (1.1 if even else 2.1)


@pytest.mark.parametrize(
    "form",
    [
        {"channels": 48},
        {"levels": 255},
        {"step": 1e-4},
        {"step": 2.0},
        {"zero": 10.5},
        {"zero": -1},
        {"once": False},
        {"kernel": 5, "pad": 2},
        {"pad": 0},
        {"stride": 2},
        {"dilation": 2, "pad": 2},
        {"mode": "tanh"},
        {"swapped": True},
    ],
)
def test_what_is_left_to_openvino(form: dict[str, Any]) -> None:
    model = quantised_block(**form)
    int8_native.use_quantised_depthwise(model)
    assert kinds(model)["QuantisedDepthwiseGelu"] == 0
    computed(model)


@pytest.mark.usefixtures("empty_cache")
def test_what_is_quantised(folder: Path) -> None:
    """All weights of linear layers and convolutions; not the products of attention."""
    checkpoint = open_checkpoint("camvid-b0", "hq")
    images = Calibration(folder, checkpoint.metadata)
    model, _ = int8.quantised(checkpoint, images, Traits(root_mean_square=True))
    weights = [
        node for node in model.get_ops()
        if node.get_type_name() in ("Convolution", "GroupConvolution")
    ]  # fmt: skip
    centring = [node for node in weights if node.get_friendly_name().startswith(UNQUANTISED)]
    assert len(centring) == 2
    assert len(weights) == 71 + 2
    assert all(
        (ov.Type.i8 in set(_types(node.input_value(1).get_node(), 4))) == (node not in centring)
        for node in weights
    )
    products = [node for node in model.get_ops() if node.get_type_name() == "MatMul"]
    assert products
    for node in products:
        inputs = [node.input_value(i).get_node().get_type_name() for i in (0, 1)]
        assert "FakeQuantize" not in inputs


def _types(node: ov.Node, depth: int) -> Iterator[ov.Type]:
    yield node.get_output_element_type(0)
    if depth:
        for i in range(node.get_input_size()):
            yield from _types(node.input_value(i).get_node(), depth - 1)


def test_a_model_in_memory(random_model: object, folder: Path) -> None:
    predict = Predictor(random_model, precision="int8", calibrate=folder)  # type: ignore[arg-type]
    assert predict(STREET).label_map.shape == (540, 960)


def test_what_is_refused(folder: Path) -> None:
    with pytest.raises(UsageError, match="calibrate: only for the precision int8"):
        Predictor(precision="f32", calibrate=folder)
    with pytest.raises(UsageError, match="int8 is for the runtime openvino, not for torch"):
        Predictor(precision="int8", runtime="torch", calibrate=folder)
    with pytest.raises(UsageError, match="no such file or folder"):
        Predictor(precision="int8", calibrate="nowhere")


def test_commands(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--precision", "int8", "--calibrate", str(folder)]
    assert main(["predict", str(STREET), *options, "--out", str(tmp_path / "out")]) == 0
    assert "openvino int8 on cpu" in capsys.readouterr().out
    labels = np.asarray(Image.open(next((tmp_path / "out").glob("*labels*"))))
    assert labels.shape == (540, 960)
    sizes = ["--size", "64x64", "--merge", "none", "--rounds", "3"]
    assert main(["bench", *sizes, *options]) == 0
    assert "int8" in capsys.readouterr().out
