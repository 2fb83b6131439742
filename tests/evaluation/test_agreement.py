from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segformerpp.errors import ImageError, UsageError
from segformerpp.evaluation.agreement import Pair, compare, find_pairs


def write(path: Path, array: np.ndarray) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array.astype(np.uint8)).save(path)
    return path


def test_masks_are_found_by_name(tmp_path: Path) -> None:
    image = write(tmp_path / "images" / "a" / "x.jpg", np.zeros((4, 4, 3)))
    mask = write(tmp_path / "masks" / "a" / "x.png", np.zeros((4, 4)))
    assert find_pairs(tmp_path / "images", tmp_path / "masks") == [Pair(image, mask)]
    assert find_pairs(tmp_path / "images", None) == [Pair(image, None)]
    mask.unlink()
    with pytest.raises(UsageError, match=r"masks: no a/x.png or the like in .*masks for .*x.jpg"):
        find_pairs(tmp_path / "images", tmp_path / "masks")


def test_agreement_and_miou(tmp_path: Path) -> None:
    truth = np.array([[0, 0, 1, 1], [255, 1, 1, 0]])
    pair = Pair(tmp_path / "x.png", write(tmp_path / "mask.png", truth))
    first = np.array([[0, 0, 1, 1], [0, 1, 1, 0]])
    second = np.array([[0, 0, 1, 0], [0, 1, 1, 0]])
    steps: list[int] = []
    row = compare(lambda _: first, lambda _: second, [pair], 2, False, lambda: steps.append(1))
    assert row == {"images": 1, "agreement": 87.5, "miou_before": 100, "miou": 75}
    assert steps == [1]
    plain = compare(
        lambda _: first, lambda _: second, [Pair(pair.image, None)], 2, False, lambda: None
    )
    assert plain == {"images": 1, "agreement": 87.5}


def test_labels_that_count_from_one(tmp_path: Path) -> None:
    truth = np.array([[0, 1, 2, 2]])
    pair = Pair(tmp_path / "x.png", write(tmp_path / "mask.png", truth))
    found = np.array([[1, 0, 1, 1]])
    row = compare(lambda _: found, lambda _: found, [pair], 2, True, lambda: None)
    assert row["miou"] == 100


def test_masks_that_are_none(tmp_path: Path) -> None:
    def run(mask: Path) -> None:
        found = np.zeros((2, 2), np.uint8)
        pair = Pair(tmp_path / "x.png", mask)
        compare(lambda _: found, lambda _: found, [pair], 2, False, lambda: None)

    with pytest.raises(ImageError, match=r"size.png: the mask is 2x3, its image 2x2"):
        run(write(tmp_path / "size.png", np.zeros((2, 3))))
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"broken.png: cannot be read as a mask"):
        run(tmp_path / "broken.png")
