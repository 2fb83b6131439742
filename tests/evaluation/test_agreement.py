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


def fail(error: ImageError) -> None:
    raise error


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
    row = compare(
        lambda _: first, lambda _: second, [pair], 2, False, lambda: steps.append(1), fail
    )
    assert row == {"images": 1, "agreement": 87.5, "miou_before": 100, "miou": 75}
    assert steps == [1]
    plain = compare(
        lambda _: first, lambda _: second, [Pair(pair.image, None)], 2, False, lambda: None, fail
    )
    assert plain == {"images": 1, "agreement": 87.5}


def test_labels_that_count_from_one(tmp_path: Path) -> None:
    truth = np.array([[0, 1, 2, 2]])
    pair = Pair(tmp_path / "x.png", write(tmp_path / "mask.png", truth))
    found = np.array([[1, 0, 1, 1]])
    row = compare(lambda _: found, lambda _: found, [pair], 2, True, lambda: None, fail)
    assert row["miou"] == 100


def test_masks_that_are_none(tmp_path: Path) -> None:
    def run(mask: Path) -> None:
        found = np.zeros((2, 2), np.uint8)
        pair = Pair(tmp_path / "x.png", mask)
        compare(lambda _: found, lambda _: found, [pair], 2, False, lambda: None, fail)

    with pytest.raises(ImageError, match=r"size.png: the mask is 2x3, its image 2x2"):
        run(write(tmp_path / "size.png", np.zeros((2, 3))))
    (tmp_path / "broken.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"broken.png: cannot be read as a mask"):
        run(tmp_path / "broken.png")


def test_what_cannot_be_used_does_not_count(tmp_path: Path) -> None:
    truth = np.array([[0, 1]])
    masks = [write(tmp_path / f"{i}.png", truth) for i in range(2)]
    masks.append(write(tmp_path / "2.png", np.zeros((5, 5))))
    pairs = [Pair(tmp_path / f"image{i}.png", mask) for i, mask in enumerate(masks)]

    def segment(path: Path) -> np.ndarray:
        if path.stem == "image1":
            raise ImageError(f"{path}: broken")
        return truth

    errors: list[str] = []
    steps: list[int] = []
    rest = (2, False, lambda: steps.append(1), lambda error: errors.append(str(error)))
    assert compare(segment, segment, pairs, *rest) == {
        **{"images": 1, "agreement": 100, "miou_before": 100, "miou": 100}
    }
    assert errors[0] == f"{pairs[1].image}: broken"
    assert errors[1].startswith(f"{masks[2]}: the mask is 5x5")
    assert (len(errors), len(steps)) == (2, 3)
    assert compare(segment, segment, pairs[1:], *rest) == {"images": 0}
