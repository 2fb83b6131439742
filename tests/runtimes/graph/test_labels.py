import numpy as np
import pytest

from segformerpp.plans import MergePlan
from segformerpp.runtimes.graph import Interface, build
from segformerpp.runtimes.graph import labels as module
from segformerpp.tasks.label_maps import from_logits
from tests.runtimes.graph.parity import ENGINES, Engine, images, network, tensors


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("size", [(64, 96), (67, 90)])
@pytest.mark.parametrize("static", [True, False])
def test_labels_are_those_of_full_size_logits(
    engine: str, size: tuple[int, int], static: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_STRIP_BYTES", 20_000)  # several strips, the last one shorter
    model, x = network("linear"), images(2, *size)

    def run(labels: bool) -> np.ndarray:
        interface = Interface(size if static else None, 2, labels=labels)
        return Engine(engine, build(model.config, tensors(model), MergePlan(), interface))(x)

    found = run(labels=True)
    assert found.dtype == np.uint8
    assert found.shape == (2, *size)
    for label_map, logits in zip(found, run(labels=False), strict=True):
        assert (label_map == from_logits(logits, size)).mean() > 0.9995  # but for ties
