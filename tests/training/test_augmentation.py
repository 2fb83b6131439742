import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from segformerpp.training.augmentation import Augmentation, mix_classes, recolour

#: Ids as grey levels that stay apart under interpolation.
LEVELS = np.array([0, 80, 160, 240], np.uint8)


def blocks(height: int, width: int, seed: int) -> np.ndarray:
    """A mask of 4 classes in blocks of 16 pixels."""
    rng = np.random.default_rng(seed)
    few = rng.integers(0, 4, (-(-height // 16), -(-width // 16)), np.uint8)
    return few.repeat(16, 0).repeat(16, 1)[:height, :width]


@given(
    height=st.integers(16, 90),
    width=st.integers(16, 90),
    crop=st.tuples(st.integers(16, 70), st.integers(16, 70)),
    seed=st.integers(0, 99),
)
def test_image_and_mask_stay_together(
    height: int, width: int, crop: tuple[int, int], seed: int
) -> None:
    mask = blocks(height, width, seed)
    image = LEVELS[mask][..., None].repeat(3, axis=2)
    augment = Augmentation(crop, (0.5, 2), balanced_crops=0.5, colour=0)
    image, mask = augment(image, mask, np.random.default_rng(seed))
    assert image.shape == (*mask.shape, 3)
    assert all(0 < side <= most for side, most in zip(mask.shape, crop, strict=True))
    # Away from the edges between classes every pixel is that of its class.
    cross = np.ones((3, 3), np.uint8)
    away = cv2.dilate(mask, cross) == cv2.erode(mask, cross)
    assert (np.abs(image[..., 0].astype(int) - LEVELS[mask])[away] <= 2).all()


@given(
    sizes=st.tuples(*[st.integers(1, 40)] * 4),
    seed=st.integers(0, 99),
)
def test_half_of_the_classes_are_pasted(sizes: tuple[int, int, int, int], seed: int) -> None:
    under, over = blocks(*sizes[:2], seed), blocks(*sizes[2:], seed + 1) + 4
    levels = np.arange(8, dtype=np.uint8)[..., None].repeat(3, 1)
    image, mask = mix_classes(
        (levels[under], under), (levels[over], over), np.random.default_rng(seed)
    )
    assert mask.shape == under.shape
    assert (image == levels[mask]).all()
    rows, columns = min(sizes[0], sizes[2]), min(sizes[1], sizes[3])
    seen = over[:rows, :columns]
    pasted = np.unique(mask[mask >= 4])
    assert len(pasted) == (len(np.unique(seen)) + 1) // 2
    expected = under.copy()
    expected[:rows, :columns] = np.where(np.isin(seen, pasted), seen, under[:rows, :columns])
    assert (mask == expected).all()


def test_a_factor_of_one_only_crops_and_flips() -> None:
    mask = blocks(60, 80, 3)
    image = np.random.default_rng(0).integers(0, 255, (60, 80, 1), np.uint8).repeat(3, axis=2)
    augment = Augmentation((60, 80), (1, 1), colour=0)
    seen = set()
    for seed in range(8):
        found, its_mask = augment(image, mask, np.random.default_rng(seed))
        flipped = not np.array_equal(its_mask, mask)
        seen.add(flipped)
        np.testing.assert_allclose(found, image[:, ::-1] if flipped else image, atol=6)
        np.testing.assert_array_equal(its_mask, mask[:, ::-1] if flipped else mask)
    assert seen == {True, False}


def test_crops_show_more_than_one_class() -> None:
    mask = np.zeros((64, 640), np.uint8)
    mask[:, 600:] = 1
    image = np.zeros((64, 640, 3), np.uint8)

    def share(most: float) -> float:
        """How many crops show both classes."""
        augment = Augmentation((64, 64), (1, 1), max_class_share=most)
        crops = (augment(image, mask, np.random.default_rng(seed))[1] for seed in range(100))
        return float(np.mean([len(np.unique(crop)) == 2 for crop in crops]))

    assert share(1.0) > share(0.75) * 0.9 > 0.3  # a tenth of all places do


def test_balanced_crops_hold_what_is_rare() -> None:
    mask = np.zeros((800, 800), np.uint8)
    mask[200:204, 300:304] = 1
    image = np.zeros((800, 800, 3), np.uint8)

    def share(balanced: float) -> float:
        augment = Augmentation((64, 64), (1, 1), 1, balanced)
        crops = (augment(image, mask, np.random.default_rng(seed))[1] for seed in range(60))
        return float(np.mean([(crop == 1).any() for crop in crops]))

    assert share(1.0) > 0.4
    assert share(0.0) < 0.2


def test_nothing_but_ignored_pixels() -> None:
    mask = np.full((40, 40), 255, np.uint8)
    augment = Augmentation((32, 32), balanced_crops=1)
    assert (
        augment(np.zeros((40, 40, 3), np.uint8), mask, np.random.default_rng(0))[1] == 255
    ).all()


@pytest.mark.parametrize("strength", [0.0, 0.5, 1.0])
def test_recolour(strength: float) -> None:
    image = np.random.default_rng(0).integers(60, 200, (8, 9, 3), np.uint8)
    found = [recolour(image, strength, np.random.default_rng(seed)) for seed in range(20)]
    assert all(f.shape == image.shape and f.dtype == np.uint8 for f in found)
    changes = [np.abs(f.astype(int) - image).mean() for f in found]
    if strength:
        assert np.mean(changes) > 10 * strength
        assert len({f.tobytes() for f in found}) > 15
    else:
        assert max(changes) < 3  # HSV has 8 bits


def test_the_same_numbers_give_the_same_crop() -> None:
    mask = blocks(90, 70, 1)
    image = np.random.default_rng(1).integers(0, 255, (90, 70, 3), np.uint8)
    augment = Augmentation((48, 48))
    first, again, other = (augment(image, mask, np.random.default_rng(s)) for s in (5, 5, 6))
    np.testing.assert_array_equal(first[0], again[0])
    np.testing.assert_array_equal(first[1], again[1])
    assert first[0].tobytes() != other[0].tobytes()
