import json
import logging

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from segformerpp.errors import UsageError
from segformerpp.models import Metadata, Segformer
from segformerpp.plans import PRESETS, MergePlan
from segformerpp.plans.strategies import warn_small_grid
from segformerpp.runtimes.graph import Form, Interface, build
from segformerpp.runtimes.traits import Traits
from segformerpp.tasks.segmentation import normalise
from tests.runtimes.graph.parity import (
    ENGINES,
    Engine,
    assert_agree,
    expected,
    images,
    network,
    tensors,
)

FORMS_WITH_BANDS: tuple[Form, ...] = ("processor", "onnxruntime")
#: All sources merged at some sizes and none at others; every kind of neighbours, ragged.
ODD = (
    "q14:mode=n1d,s=3 q3:mode=bsm,r=1,sx=2,sy=3 kv13:mode=n2d,sx=2,sy=3",
    "q12:mode=bsm,r=0.75,sx=2,sy=2 q34:mode=bsm,r=0.9,sx=2,sy=2 kv1:mode=bsm,r=0.01,sx=2,sy=1",
    "kv13:mode=bsm,r=0.7,sx=2,sy=2,proportional=true kv4:mode=n1d,s=4,proportional=true "
    "kv2:mode=n2d,sx=2,sy=3,proportional=true q3:mode=bsm,r=0.8,sx=2,sy=2 reuse3=2",
    # Enough tokens in some of the sizes, or in some of the stages.
    "q1:mode=n2d,sx=2,sy=3,min_tokens=190 kv1:mode=n2d,sx=3,sy=2,proportional=true,min_tokens=4 "
    "q2:mode=n1d,s=3,min_tokens=91 kv2:mode=n1d,s=3,proportional=true,min_tokens=90 "
    "q3:mode=bsm,r=1,sx=2,sy=2,min_tokens=40 kv3:mode=bsm,r=0.9,sx=1,sy=2,min_tokens=99",
)


def written(
    plan: str,
    interface: Interface,
    kind: str = "linear",
    form: Form = "processor",
    traits: Traits | None = None,
) -> tuple[Segformer, onnx.ModelProto]:
    model = network(kind)
    model.merge_plan = plan
    parsed = MergePlan.parse(plan)
    arrays = tensors(model)
    return model, build(model.config, arrays, parsed, interface, form=form, traits=traits)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("kind", "plan"), [*(("linear", plan) for plan in (*PRESETS, *ODD)), ("conv", "hq")]
)
def test_static_sizes(kind: str, plan: str, engine: str) -> None:
    x = images(3, 131, 99)
    model, graph = written(plan, Interface((131, 99), batch=3), kind)
    matched = "bsm" in str(model.merge_plan)
    assert_agree(Engine(engine, graph)(x), expected(model, x), matched)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("form", ["processor", "int8"])
@pytest.mark.parametrize("plan", ["none", "hq", "2x2", ODD[2]])
def test_centred_tokens(plan: str, form: Form, engine: str) -> None:
    """No norm of a stage subtracts a mean, and the result is what it was."""
    x = images(2, 131, 99)
    interface = Interface((131, 99), batch=2)
    model, graph = written(plan, interface, form=form, traits=Traits(root_mean_square=True))
    _, usual = written(plan, interface, form=form)
    count = [
        sum(node.op_type == "LayerNormalization" for node in g.graph.node) for g in (usual, graph)
    ]
    of_keys = sum(model.config.depths[:3])
    assert count == [2 * sum(model.config.depths) + 2 * 4 + of_keys, of_keys]
    assert_agree(Engine(engine, graph)(x), expected(model, x), "bsm" in str(model.merge_plan))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize(
    ("size", "band", "bands"),
    [
        ((259, 97), 40_000, 9),
        ((259, 97), 130_000, 3),
        ((129, 640), 100_000, 5),  # eight rows are larger, but not too large
        ((129, 640), 60_000, 1),  # eight rows are too large
        ((2080, 32), 13_000, 33),  # not 65
        (None, 250_000, 1),
    ],
)
def test_the_head_in_bands(
    kind: str, size: tuple[int, int] | None, band: int, bands: int, engine: str
) -> None:
    x = images(3, *(size or (131, 99)))
    interface, traits = Interface(size, batch=3), Traits(head_band=band)
    model, graph = written("2x2", interface, kind, traits=traits)
    resized = [node for node in graph.graph.node if node.op_type == "Resize"]
    assert len(resized) == 3 * bands
    assert_agree(Engine(engine, graph)(x), expected(model, x), matched=False)


@pytest.mark.parametrize(("size", "most"), [((256, 96), 1e-5), ((259, 97), 3e-3)])
@pytest.mark.parametrize("engine", ENGINES)
def test_values_of_two_bytes(engine: str, size: tuple[int, int], most: float) -> None:
    """Bands have twice as many rows; shares are multiples of 1/256, exact where sizes halve."""
    x = images(2, *size)
    interface = Interface(size, batch=2)
    traits = Traits(head_band=20_000, value_bytes=2, constants_stay_f32=True)
    model, graph = written("none", interface, traits=traits)
    _, wide = written("none", interface, traits=Traits(head_band=40_000))
    bands = 8 + (size[0] > 256)
    resized = [[n.op_type for n in g.graph.node].count("Resize") for g in (graph, wide)]
    assert resized == [3 * bands] * 2
    constants = {tensor.name for tensor in graph.graph.initializer}
    products = [node for node in graph.graph.node if node.op_type == "MatMul"]
    assert not constants.intersection(node.input[0] for node in products)
    arrays = {t.name: numpy_helper.to_array(t) for t in graph.graph.initializer}
    shares = [
        arrays[node.input[1]] for node in graph.graph.node
        if node.op_type == "Add" and node.input[0].startswith("Clip")
    ]  # fmt: skip
    assert len(shares) == bands
    assert all((256 * s % 1 == 0).all() for s in shares)
    assert all((s.sum(axis=-1) == 3).all() for s in shares)  # of three scales
    logits, reference = Engine(engine, graph)(x), expected(model, x)
    assert np.linalg.norm(logits - reference) < most * np.linalg.norm(reference)


def test_convolutions_that_add() -> None:
    """Of several heads; not where queries are unmerged before."""
    interface = Interface((131, 99))
    for plan, merged in (("none", ()), ("q1:mode=n2d,sx=2,sy=2 q3:mode=n1d,s=2", (2,))):
        kinds = []
        for adds in (False, True):
            model, graph = written(plan, interface, traits=Traits(adding_convolutions=adds))
            kinds.append([node.op_type for node in graph.graph.node])
        stages = enumerate(zip(model.config.depths, model.config.heads, strict=True))
        more = sum(depth for i, (depth, heads) in stages if heads > 1 and i not in merged)
        gained = [kinds[1].count(kind) - kinds[0].count(kind) for kind in ("Conv", "MatMul")]
        assert gained == [more, -more]


def test_labels_of_a_head_in_bands() -> None:
    x = images(1, 259, 97)
    maps, nodes = [], []
    for band in (0, 40_000):
        interface = Interface((259, 97), labels=True)
        _, graph = written("2x2", interface, traits=Traits(head_band=band))
        maps.append(Engine("openvino", graph)(x))
        nodes.append([node.op_type for node in graph.graph.node].count("Resize"))
    assert nodes[1] - nodes[0] == 3 * 2  # three bands for one
    assert maps[0].shape == (1, 259, 97)
    assert (maps[0] == maps[1]).mean() > 0.999


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("plan", [*PRESETS, *ODD])
def test_sizes_that_follow_the_images(plan: str, engine: str) -> None:
    model, graph = written(plan, Interface(None, batch=None))
    run = Engine(engine, graph)
    for shape in ((3, 131, 133), (1, 128, 160)):
        x = images(*shape)
        assert_agree(run(x), expected(model, x))


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("plan", "size"),
    [
        ("hq", (130, 99)),
        (ODD[1], (130, 99)),
        (ODD[2], (130, 99)),
        (ODD[2], None),
        (ODD[3], None),
        ("hq", None),
    ],
)
def test_without_sums_by_index(plan: str, size: tuple[int, int] | None, engine: str) -> None:
    x = images(2, 130, 99)
    model, graph = written(plan, Interface(size, batch=2), form="tensorrt")
    nodes = {node.op_type: node for node in graph.graph.node}
    assert "ScatterND" not in nodes
    orders = {a.i for a in nodes["TopK"].attribute if a.name == "sorted"}
    assert 0 not in orders
    assert_agree(Engine(engine, graph)(x), expected(model, x))


@pytest.mark.parametrize("size", [(131, 133), None])
@pytest.mark.parametrize("plan", [*PRESETS, *ODD])
def test_attention_that_is_onnx_runtimes_own(plan: str, size: tuple[int, int] | None) -> None:
    x = images(3, 131, 133)
    batch = None if size is None else 3
    model, graph = written(plan, Interface(size, batch), form="onnxruntime")
    nodes = [node for node in graph.graph.node if node.op_type == "MultiHeadAttention"]
    assert len(nodes) == sum(model.config.depths)
    assert {len(node.input) for node in nodes} == {3}  # a mask would take it off its fast kernel
    assert not {"Softmax", "AveragePool"} & {node.op_type for node in graph.graph.node}
    matched = "bsm" in str(model.merge_plan)
    assert_agree(Engine("onnxruntime", graph)(x), expected(model, x), matched)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [(131, 99), None])
def test_convolutions_for_linear_layers(size: tuple[int, int] | None, engine: str) -> None:
    x = images(2, 131, 99)
    model, graph = written("hq", Interface(size, batch=2), form="int8")
    assert_agree(Engine(engine, graph)(x), expected(model, x))


@pytest.mark.parametrize("engine", ENGINES)
def test_pixels(engine: str) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 64, 75, 3)).astype(np.uint8)
    model = network("linear")
    model.merge_plan = "none"
    metadata = Metadata(mean=(1, 2, 3), std=(40, 50, 60))
    x = np.stack([normalise(image, metadata) for image in pixels])
    for size in ((64, 75), None):
        graph = build(
            model.config,
            tensors(model),
            MergePlan(),
            Interface(size, 2, pixels=True),
            metadata,
            {"model": "m"},
        )
        assert_agree(Engine(engine, graph)(pixels), expected(model, x))
    notes = {entry.key: entry.value for entry in graph.metadata_props}
    assert notes["model"] == "m"
    assert MergePlan.from_dict(json.loads(notes["merge_plan"])) == MergePlan()


def test_a_grid_without_a_whole_cell_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    x = images(1, 64, 64)
    plan = "q4:mode=bsm,r=0.8,sx=3,sy=3"
    warn_small_grid.cache_clear()
    with caplog.at_level(logging.WARNING, "segformerpp"):
        model, graph = written(plan, Interface((64, 64)))
        written(plan, Interface((64, 64)))
    assert [record.getMessage() for record in caplog.records] == [
        "a token grid of 2 x 2 has no whole cell of 3 x 3: nothing is merged there"
    ]
    assert_agree(Engine("openvino", graph)(x), expected(model, x))


def test_sizes_that_are_refused() -> None:
    with pytest.raises(UsageError, match=r"at least 32 pixels on each side .* not 60 x 64"):
        written("downsample", Interface((60, 64)))
    with pytest.raises(UsageError, match=r"from at least 97 x 97 .* not from 97 x 96"):
        written("hq", Interface(None, least=(97, 96)))
    written("hq", Interface(None, least=(97, 97)))


@pytest.mark.parametrize("plan", ["none", "hq"])
def test_weights_are_stored_once(plan: str, random_model: Segformer) -> None:
    """Though bands share them; and nothing is stored that holds one value."""
    weights = tensors(random_model)
    interface, traits = Interface((1024, 1024), batch=1), Traits(head_band=2**20)
    config, parsed = random_model.config, MergePlan.parse(plan)
    for form in FORMS_WITH_BANDS:
        graph = build(config, weights, parsed, interface, form=form, traits=traits)
        bands = [node.op_type for node in graph.graph.node].count("Gelu")
        assert bands > sum(config.depths)
        assert graph.ByteSize() < 1.02 * sum(array.nbytes for array in weights.values())
