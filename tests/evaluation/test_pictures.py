from pathlib import Path

import numpy as np
from PIL import Image

from segformerpp.data.labels import label_set
from segformerpp.evaluation.pictures import plot_confusion, worst_case


def test_worst_case() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (60, 90, 3), np.uint8)
    mask = np.zeros((60, 90), np.uint8)
    mask[:20] = 255
    found = np.zeros((60, 90), np.uint8)
    found[40:, 45:] = 3
    picture = np.asarray(worst_case(image, mask, found, label_set("camvid"), "a title"))
    red = (picture == (214, 39, 40)).all(axis=2).sum()
    panel = 480 * 720  # the errors are a quarter of what counts, which is two thirds
    assert 0.9 < red / (panel / 6) < 1.1


def test_nothing_counts() -> None:
    mask = np.full((8, 8), 255, np.uint8)
    image, found = np.zeros((8, 8, 3), np.uint8), np.zeros((8, 8), np.uint8)
    assert worst_case(image, mask, found, label_set("camvid"), "").size[0] > 1440


def test_confusion(tmp_path: Path) -> None:
    counts = [np.eye(150, dtype=np.int64), np.zeros((150, 150), np.int64)]
    labels = label_set("ade20k").labels
    plot_confusion(counts, ["a", "b"], labels, tmp_path / "a.png")
    plot_confusion([np.eye(3)], ["a"], ["x", "y", "z"], tmp_path / "b.PDF")
    assert Image.open(tmp_path / "a.png").size[0] > 2000
    assert (tmp_path / "b.PDF").read_bytes().startswith(b"%PDF")
