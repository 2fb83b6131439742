import os
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)  # the test processes run side by side


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder with `data/` and `golden/`; tests that need it skip where it is absent."""
    default = Path(__file__).parents[1].parent / "shared"
    folder = Path(os.environ.get("SEGFORMERPP_SHARED", default))
    if not folder.is_dir():
        pytest.skip(f"no shared data at {folder} (set SEGFORMERPP_SHARED)")
    return folder
