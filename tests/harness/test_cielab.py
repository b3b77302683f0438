"""CIELAB and CIEDE2000 against an independent implementation, and the Monk scale."""

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage import color

from harness.cielab import delta_e, from_lab, monk_lab, to_lab

SHARMA = [
    ((50, 2.6772, -79.7751), (50, 0, -82.7485), 2.0425),
    ((50, -1.3802, -84.2814), (50, 0, -82.7485), 1.0),
    ((50, 0, 0), (50, -1, 2), 2.3669),
    ((50, 2.49, -0.001), (50, -2.49, 0.0010), 7.1792),
    ((50, 2.49, -0.001), (50, -2.49, 0.0011), 7.2195),
    ((50, 2.5, 0), (73, 25, -18), 27.1492),
    ((50, 2.5, 0), (56, -27, -3), 31.9030),
    ((60.2574, -34.0099, 36.2677), (60.4626, -34.1751, 39.4387), 1.2644),
    ((2.0776, 0.0795, -1.1350), (0.9033, -0.0636, -0.5514), 0.9082),
]
"""Of the test data of Sharma et al. 2005, table 1: two Lab colours and their CIEDE2000."""


def colours(seed: int) -> NDArray[np.uint8]:
    """A thousand sRGB colours, black, white and greys among them."""
    drawn = np.random.default_rng(seed).integers(0, 256, (1000, 3), dtype=np.uint8)
    drawn[:3] = [[0, 0, 0], [255, 255, 255], [128, 128, 128]]
    return drawn


def test_cielab_is_that_of_scikit_image() -> None:
    """Colours agree to 0.01, and come back from CIELAB as they were."""
    image = colours(1)
    assert abs(to_lab(image) - color.rgb2lab(image)).max() < 0.01
    assert abs(from_lab(to_lab(image)) - image).max() < 1e-6


def test_colour_differences_are_those_of_scikit_image() -> None:
    """CIEDE2000 of random pairs, and of greys, is that of an independent implementation."""
    first, second = to_lab(colours(2)), to_lab(colours(3)[::-1].copy())
    first[:100, 1:] = 0
    theirs = color.deltaE_ciede2000(first, second)  # type: ignore[no-untyped-call]
    assert delta_e(first, second) == pytest.approx(theirs, abs=1e-9)
    assert delta_e(first, first).max() == 0


@pytest.mark.parametrize(("first", "second", "expected"), SHARMA)
def test_ciede2000_is_the_published_one(first: tuple[float, ...], second: tuple[float, ...], expected: float) -> None:
    """The authors' pairs, with those about the opposite hue, have their distance to 4 decimals, either way round."""
    pair = np.array(first, float), np.array(second, float)
    assert float(delta_e(*pair)) == pytest.approx(expected, abs=5e-5)
    assert float(delta_e(*pair[::-1])) == pytest.approx(expected, abs=5e-5)


def test_the_monk_scale_has_its_known_lightness() -> None:
    """L* of the ten swatches falls from 94.2 to 14.6, but for the step from tone 2 to tone 3."""
    lightness = monk_lab()[:, 0]
    assert lightness.round(1).tolist() == [94.2, 92.3, 93.1, 87.6, 77.9, 55.1, 42.5, 30.7, 21.1, 14.6]
