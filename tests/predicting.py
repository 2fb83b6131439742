"""What the tests of `Predictor` share."""

from dataclasses import replace

import numpy as np
from PIL import Image

from segformerpp.batching import Network
from segformerpp.predictor import Predictor


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Something smooth enough for label maps to have areas."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((width, height)))


def agreement(one: np.ndarray, other: np.ndarray) -> float:
    assert one.shape == other.shape
    return float((one == other).mean())


def spy(predict: Predictor) -> list[tuple[int, ...]]:
    """The shapes of what goes through the network from now on."""
    shapes: list[tuple[int, ...]] = []
    runtime = predict.runtime

    def run(x: np.ndarray) -> np.ndarray:
        shapes.append(x.shape)
        return runtime(x)

    exchange(predict, run)
    return shapes


def exchange(predict: Predictor, network: Network) -> None:
    """Let another network do the work."""
    predict._task = replace(predict._task, runtime=network)  # type: ignore[arg-type]
