"""From a photo to what a backend receives: the target, the low-resolution input, and corruptions of it."""

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from harness.corruptions import CORRUPTIONS, SEVERITIES, Parameters, column_of
from harness.errors import ImageError
from harness.images import centre_square
from harness.realworld import DEGRADATIONS, STRENGTHS
from harness.resize import resize, to_uint8

AVERAGE_SIDE = 4
"""Pixels a side of the average faces (Lasz et al. 2024)."""
Pixels = NDArray[np.uint8]
EFFECTS = CORRUPTIONS | DEGRADATIONS
"""Everything that an input can be corrupted by."""


def seed_of(*parts: object) -> int:
    """A 63-bit seed from the parts' text; the same parts always give the same seed."""
    text = "\0".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def sample_seed(seed: int, sample: int) -> int:
    """The seed of one of several outputs of an image whose own seed, that of output 0, is `seed`."""
    return seed_of(seed, "sample", sample) if sample else seed


def make_target(image: Pixels, high: int, kernel: str = "bicubic") -> Pixels:
    """The (high, high, 3) ground truth of a photo: its centre square, resized, rounded to 8 bit.

    Raises:
        ImageError: the photo is smaller than the target; enlarging it would make a ground truth of bicubic's own.
    """
    square = centre_square(image)
    side = len(square)
    if side < high:
        size = f"{image.shape[1]} x {image.shape[0]}"
        raise ImageError(
            f"{size} pixels are fewer than the target's {high} a side; use larger photos or a smaller high"
        )
    return square if side == high else to_uint8(resize(square.astype(np.float64), high, high, kernel))


def given_input(image: Pixels, max_pixels: int) -> Pixels:
    """A photo that is itself the input, whole and as it is.

    Raises:
        ImageError: it has more than `max_pixels`.
    """
    height, width, _ = image.shape
    if height * width > max_pixels:
        raise ImageError(
            f"{width} x {height} is more than the suite's max_pixels, {max_pixels}; "
            "so large a photo is its own ground truth: use a suite with low and high"
        )
    return image


def make_input(target: Pixels, low: int) -> Pixels:
    """The (low, low, 3) input: the target made small by the one resize, rounded to 8 bit."""
    return to_uint8(resize(target.astype(np.float64), low, low))


def parameters_of(name: str, severity: int, side: int) -> Parameters:
    """The parameters of one of `EFFECTS` at a severity of 1 to 5, for an image of this longer side."""
    levels = STRENGTHS if name in DEGRADATIONS else SEVERITIES[column_of(side)][name]
    return levels[severity - 1]


def corrupt(image: Pixels, name: str, *, parameters: Parameters, seed: int) -> Pixels:
    """An (H, W, 3) image under one of `EFFECTS`, clipped and rounded to 8 bit; the seed fixes every pixel."""
    return to_uint8(255 * EFFECTS[name](image / 255, parameters, np.random.default_rng(seed)))


def average_face(targets: Iterable[Pixels]) -> NDArray[np.float64]:
    """The mean of images, each made small to (4, 4, 3)."""
    small = [resize(target.astype(np.float64), AVERAGE_SIDE, AVERAGE_SIDE) for target in targets]
    mean: NDArray[np.float64] = np.mean(small, axis=0)
    return mean


def uninformative(average: NDArray[np.float64], low: int, sigma: float, seed: int) -> Pixels:
    """An average face of (4, 4, 3) with Gaussian noise of `sigma` of full scale, enlarged to (low, low, 3)."""
    noise = np.random.default_rng(seed).normal(0.0, sigma * 255, average.shape) if sigma else 0.0
    return to_uint8(resize(average + noise, low, low))
