import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from segformerpp.benchmark.cost import cost
from segformerpp.models import Segformer, SegformerConfig
from segformerpp.plans import PRESETS, MergePlan

SIZES = [(256, 320), (129, 203)]
REUSED = "q12:mode=bsm,r=0.9,sx=4,sy=4 reuse12=2"
PLANS = [*PRESETS, REUSED, "q12:mode=n1d,s=3 kv3:mode=bsm,r=0.7,sx=2,sy=3"]


@pytest.mark.parametrize("kind", ["linear", "conv"])
@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("size", SIZES)
def test_multiplications_are_those_that_pytorch_counts(kind, plan, size):
    config = SegformerConfig.of_size("b0", head_kind=kind, num_outputs=7)
    model = Segformer(config, merge=plan).eval()
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter, sdpa_kernel(SDPBackend.MATH):  # the fused one is not counted
        model(torch.zeros(1, 3, *size))
    # Folding the head's weights is counted by PyTorch, but does not grow with the image.
    folding = sum(config.dims) * config.head_dim**2 if kind == "linear" else 0
    counted = counter.get_total_flops() // 2 - folding
    assert cost(config, MergePlan.parse(plan), size).macs == counted


def test_head_of_b0_as_in_the_design():
    full = cost(SegformerConfig.of_size("b0"), MergePlan(), (1024, 1024)).macs
    tiny = cost(SegformerConfig.of_size("b0", num_outputs=1, head_dim=1), MergePlan(), (1024, 1024))
    assert (full - tiny.macs) / 1e9 == pytest.approx(1.36, abs=0.01)


def test_tokens_are_queries_of_all_blocks():
    config = SegformerConfig.of_size("b0")
    grids = [64 * 64, 32 * 32, 16 * 16, 8 * 8]
    assert cost(config, MergePlan(), (256, 256)).tokens == 2 * sum(grids)
    assert cost(config, MergePlan.parse("2x2"), (256, 256)).tokens == 2 * sum(grids) // 4
    assert cost(config, MergePlan.parse("downsample"), (256, 256)).tokens == 2 * sum(grids) // 4
    hq = grids[0] + grids[1] + (256 - int(0.8 * 256)) + (64 - int(0.8 * 64))
    assert cost(config, MergePlan.parse("hq"), (256, 256)).tokens == 2 * hq
