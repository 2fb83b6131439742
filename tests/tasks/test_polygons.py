from typing import Any

import cv2
import numpy as np
import pytest
from faster_coco_eval import COCO
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from segformerpp.errors import UsageError
from segformerpp.tasks.polygons import regions, to_coco

NAMES = {0: "road", 1: "sky", 2: "car"}


def filled(coco: dict[str, Any], how: str = "coco") -> np.ndarray:
    """The label map that polygons amount to, with 255 where there is none."""
    image = coco["images"][0]
    label_map = np.full((image["height"], image["width"]), 255, np.uint8)
    data = COCO(coco)
    for annotation in data.loadAnns(data.getAnnIds()):
        if how == "coco":
            mask = data.annToMask(annotation)
        else:  # corners at whole numbers, as pixels' centres are in OpenCV; 16 times as fine
            mask = np.zeros(label_map.shape, np.uint8)
            points = np.array(annotation["segmentation"][0]).reshape(-1, 2)
            fine = np.rint((points - 0.5) * 16).astype(np.int32)
            cv2.fillPoly(mask, [fine], (1,), cv2.LINE_8, shift=4)
        label_map[mask.astype(bool)] = annotation["category_id"]
    return label_map


@st.composite
def label_maps(draw: st.DrawFn) -> np.ndarray:
    """Noise, or noise of larger pixels: many regions in each other, touching at corners."""
    height, width, scale = (
        draw(st.integers(1, 12)),
        draw(st.integers(1, 12)),
        draw(st.integers(1, 4)),
    )
    cells = draw(arrays(np.uint8, (height, width), elements=st.integers(0, 2)))
    return cells.repeat(scale, axis=0).repeat(scale, axis=1)


@given(label_maps())
def test_filled_again_they_give_the_same_pixels(label_map: np.ndarray) -> None:
    coco = to_coco(label_map, NAMES, "a.png", smallest=0, tolerance=0)
    np.testing.assert_array_equal(filled(coco), label_map)
    for i in NAMES:
        areas = [a["area"] for a in coco["annotations"] if a["category_id"] == i]
        assert sum(areas) == (label_map == i).sum()
        assert areas == sorted(areas, reverse=True)


def blobs(height: int, width: int, seed: int) -> np.ndarray:
    """Smooth regions, as networks give them."""
    noise = np.random.default_rng(seed).standard_normal((3, height, width)).astype(np.float32)
    return np.stack([cv2.GaussianBlur(n, (0, 0), 9) for n in noise]).argmax(0).astype(np.uint8)


@pytest.mark.parametrize("seed", range(3))
def test_with_fewer_points_they_give_nearly_the_same_pixels(seed: int) -> None:
    label_map = blobs(200, 300, seed)
    exact = to_coco(label_map, NAMES, "a.png", tolerance=0)
    coco = to_coco(label_map, NAMES, "a.png")
    assert (filled(coco) == label_map).mean() > 0.97
    assert (filled(coco, "opencv") == label_map).mean() > 0.96
    points, before = (
        sum(len(a["segmentation"][0]) for a in c["annotations"]) for c in (coco, exact)
    )
    assert points < before / 4
    for a, b in zip(coco["annotations"], exact["annotations"], strict=True):
        assert (a["area"], a["bbox"]) == (b["area"], b["bbox"])


def test_what_it_says_of_a_region_with_holes() -> None:
    label_map = np.zeros((30, 40), np.uint8)
    label_map[2:22, 3:33] = 1
    label_map[5:10, 6:12] = 0  # a hole of 30 pixels
    label_map[12:20, 20:30] = 2  # one of 80, filled with something else
    label_map[0, 0] = 2  # a speck
    coco = to_coco(label_map, {1: "sky", 2: "car"}, "a.png", smallest=40, image_id=7)
    assert coco["images"] == [{"id": 7, "file_name": "a.png", "width": 40, "height": 30}]
    assert [(c["id"], c["name"]) for c in coco["categories"]] == [(1, "sky"), (2, "car")]
    sky, car = coco["annotations"]
    assert (sky["id"], sky["image_id"], sky["category_id"], sky["iscrowd"]) == (1, 7, 1, 0)
    assert sky["bbox"] == [3, 2, 30, 20]
    assert sky["area"] == 600 - 80  # the small hole is filled
    assert (car["id"], car["area"], car["bbox"]) == (2, 80, [20, 12, 10, 8])
    outline = set(zip(car["segmentation"][0][::2], car["segmentation"][0][1::2], strict=True))
    assert outline == {(20, 12), (30, 12), (30, 20), (20, 20)}
    data = COCO(coco)
    expected = (label_map == 1) | (label_map == 0)
    expected[:2], expected[22:], expected[:, :3], expected[:, 33:] = False, False, False, False
    np.testing.assert_array_equal(data.annToMask(data.anns[1]), expected)


def test_thin_and_missing_regions() -> None:
    mask = np.zeros((9, 90), bool)
    assert regions(mask, 0, 1.0) == []
    mask[4] = True
    (line,) = regions(mask, 64, 1.0)
    assert (line.area, line.box) == (90, (0, 4, 90, 1))
    assert len(line.outline) == 4
    assert regions(mask, 91, 1.0) == []


def test_wrong_settings() -> None:
    with pytest.raises(UsageError, match=r"^smallest: pixels, from 0 up, not -1"):
        to_coco(np.zeros((2, 2), np.uint8), NAMES, "", smallest=-1)
    with pytest.raises(UsageError, match=r"^tolerance: pixels, from 0 up, not nan"):
        to_coco(np.zeros((2, 2), np.uint8), NAMES, "", tolerance=float("nan"))
