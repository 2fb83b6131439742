from segformerpp.checkpoints import Checkpoint
from segformerpp.plans import MergePlan
from segformerpp.tiling import tiling_of
from tests.models.test_segformer import tiny


def test_images_that_go_in_tiles_by_themselves() -> None:
    network = Checkpoint.of_model(tiny())
    limits = {}
    for runtime in ("openvino", "onnxruntime"):
        tiling, limits[runtime] = tiling_of("auto", None, 32, network, MergePlan(), runtime)
        side = int(limits[runtime] ** 0.5)
        assert tiling is not None
        assert [tiling.takes((n, n)) for n in (side - 1, side + 1)] == [False, True]
    # ONNX Runtime needs about twice the memory.
    assert 2 < limits["openvino"] / limits["onnxruntime"] < 2.5
