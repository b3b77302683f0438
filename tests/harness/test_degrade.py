"""Targets and inputs: seeds, squares, rounding to 8 bit, and photos that are refused."""

import numpy as np
import pytest

from harness.degrade import given_input, make_input, make_target, sample_seed, seed_of
from harness.errors import ImageError

GREY = np.full((64, 64, 3), 128, np.uint8)


def test_seeds_differ_by_every_part() -> None:
    """A seed depends on each part and on where the parts are cut."""
    seeds = {seed_of(0, "ab", "c"), seed_of(0, "a", "bc"), seed_of(1, "ab", "c"), seed_of(0, "ab", "c", 1)}
    assert len(seeds) == 4
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_samples_have_seeds_of_their_own() -> None:
    """The first output of an image has the image's seed; the others differ from it and between images."""
    assert sample_seed(7, 0) == 7
    assert len({sample_seed(seed, sample) for seed in (7, 8) for sample in range(4)}) == 8


def test_a_given_photo_is_not_touched_or_refused() -> None:
    """A photo within the bound is the input, pixel by pixel; one pixel more is named with its size and the bound."""
    photo = np.random.default_rng(0).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    assert np.array_equal(given_input(photo, 600), photo)
    with pytest.raises(ImageError, match="30 x 20 is more than the suite's max_pixels, 599"):
        given_input(photo, 599)


def test_targets_are_centre_squares() -> None:
    """A wide photo loses its sides, and a photo of the right size is not touched."""
    wide = np.zeros((32, 64, 3), np.uint8)
    wide[:, 16:48] = 200
    assert (make_target(wide, 32) == 200).all()
    photo = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert np.array_equal(make_target(photo, 64), photo)


def test_a_flat_image_stays_flat() -> None:
    """Shrinking keeps a constant image exactly."""
    assert (make_input(GREY, 16) == 128).all()


def test_a_photo_smaller_than_the_target_is_refused() -> None:
    """Enlarging a small photo would make a ground truth that bicubic reproduces: it is refused by its size."""
    with pytest.raises(ImageError, match="20 x 63 pixels are fewer than the target's 64"):
        make_target(np.zeros((63, 20, 3), np.uint8), 64)
