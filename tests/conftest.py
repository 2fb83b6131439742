import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # the test processes run side by side

import torch
from hypothesis import HealthCheck, settings

from segformerpp.checkpoints import save
from segformerpp.data.labels import label_set
from segformerpp.models import Metadata, Segformer, SegformerConfig
from segformerpp.runtimes.native import native_precisions

# Where the tests run in the background, it is ignored, and would be by the programs they start.
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes, to make and to run, depends on what else the machine does.
settings.register_profile(
    "segformerpp", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("segformerpp")


@pytest.fixture(scope="session", autouse=True)
def cache_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache for the tests alone."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SEGFORMERPP_CACHE", str(folder))
        native_precisions()  # before a test changes what it depends on
        yield folder


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with `data/` and `golden/`; tests that need it skip where it is absent."""
    default = Path(__file__).parents[1].parent / "shared"
    folder = Path(os.environ.get("SEGFORMERPP_SHARED", default))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder} (set SEGFORMERPP_SHARED)")
    return folder


@pytest.fixture(scope="session")
def random_model() -> Segformer:
    """A B0 with random weights that calls itself a trained model of CamVid's classes."""
    torch.manual_seed(0)
    classes = label_set("camvid")
    metadata = Metadata(labels=classes.labels, palette=classes.palette, source="random")
    return Segformer(SegformerConfig.of_size("b0", num_outputs=11), metadata).eval()


@pytest.fixture(scope="session")
def random_checkpoint(random_model: Segformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`random_model` in a file."""
    path = tmp_path_factory.mktemp("checkpoint") / "random-b0.safetensors"
    save(random_model, path)
    return path
