from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import openvino as ov
import pytest
from PIL import Image

from segformerpp import Predictor, cache
from segformerpp.calibration import Calibration
from segformerpp.checkpoints import open_checkpoint
from segformerpp.cli import main
from segformerpp.errors import UsageError
from segformerpp.runtimes import int8
from segformerpp.runtimes.graph import UNQUANTISED, Traits
from segformerpp.runtimes.native import native_precisions

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


@pytest.mark.usefixtures("empty_cache")
def test_operators_of_our_own_are_left_as_they_are(folder: Path) -> None:
    """And the logits, which are as exact as the operator in front of them gives them."""
    from segformerpp.calibration import Calibration

    if not native_precisions():
        pytest.skip("no AVX-512, or no C++ compiler")
    checkpoint = open_checkpoint("camvid-b0", "none")
    images = Calibration(folder, checkpoint.metadata)
    model, _ = int8.quantised(checkpoint, images, Traits(native=native_precisions()[-1]))
    kinds = ("SoftmaxAttention", "DepthwiseGelu", "DecodeHead")
    found = [node for node in model.get_ordered_ops() if node.get_type_name() in kinds]
    assert len(found) == 8 + 8 + 1
    for node in found:
        for i in range(node.get_input_size()):
            source = node.input_value(i).get_node()
            while source.get_type_name() in ("Convert", "Transpose", "Reshape"):
                source = source.input_value(0).get_node()
            assert source.get_type_name() != "FakeQuantize"
    behind = [found[-1]]
    for node in behind:
        assert node.get_type_name() != "FakeQuantize"
        behind += [user.get_node() for out in node.outputs() for user in out.get_target_inputs()]


@pytest.mark.usefixtures("empty_cache")
def test_what_is_quantised(folder: Path) -> None:
    """All weights of linear layers and convolutions; not the products of attention."""
    from segformerpp.calibration import Calibration

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
