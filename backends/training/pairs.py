"""Pairs of low and full resolution for training an upscaler, and the figures that its validation prints."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends import pixels
from backends.pixels import to_model
from backends.training.config import ConfigError, TrainingConfig
from backends.training.data import choose_races, load_images, load_sharpest, shuffled
from harness.metrics import LPIPS_MINIMUM, score
from harness.networks import open_network
from harness.resize import resize_matrix, to_uint8
from harness.set_measures import kid_paired

FIGURES = 256
"""Validation images that the curves of LPIPS and KID are taken on."""
PORTION = 64
"""Images of a batch of the validation."""
SCALED_BY = 2000, 200
"""About how many whole photos, or photos to crop, the scale of the residual is taken on."""


def portions(x: Tensor) -> list[Tensor]:
    """A set of images in batches for validation."""
    return [x[start : start + PORTION] for start in range(0, len(x), PORTION)]


def crop(images: Sequence[Tensor], size: int, multiple: int, rng: torch.Generator) -> list[Tensor]:
    """Random squares of sets of square images (N, C, side, side), for each image at one place in all sets.

    Their corners are at multiples of `multiple`.
    """
    count, _, _, side = images[0].shape
    corners = multiple * torch.randint((side - size) // multiple + 1, (count, 2), generator=rng)
    return [torch.stack([_square(x, corner, size) for x, corner in zip(s, corners, strict=True)]) for s in images]


def _square(image: Tensor, corner: Tensor, size: int) -> Tensor:
    top, left = corner.tolist()
    return image[:, top : top + size, left : left + size]


def flip(images: Tensor, rng: torch.Generator) -> Tensor:
    """Mirror each image left-right with probability one half."""
    chosen = torch.rand(len(images), generator=rng) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(-1), images)


class Resizer:
    """The one resize as torch matrices: `down` rounds to 8 bit as a server receives it, `up` stays in float."""

    def __init__(self, low: int, high: int) -> None:
        self.down_matrix = torch.from_numpy(resize_matrix(high, low).copy()).float()
        self.up_matrix = torch.from_numpy(resize_matrix(low, high).copy()).float()

    def down(self, x: Tensor) -> Tensor:
        """(N, 3, high, high) in [-1, 1] -> (N, 3, low, low), rounded to the 8-bit grid."""
        y = self.down_matrix @ x @ self.down_matrix.T
        return ((y.clamp(-1, 1) + 1) * 127.5 + 0.5).floor() / 127.5 - 1

    def up(self, x: Tensor) -> Tensor:
        """(N, 3, low, low) -> (N, 3, high, high)."""
        return self.up_matrix @ x @ self.up_matrix.T


def _training_images(config: TrainingConfig) -> NDArray[np.uint8]:
    try:
        if config.crops:
            return load_sharpest(config.train, config.crops.photo, config.crops.sharpest)
        images = load_images(config.train, config.high)
        if config.races is None:
            return images
        return images[choose_races(config.train, config.races, config.seed)]
    except ValueError as error:
        raise ConfigError(f"{config.name}: {error}") from error


class Pairs:
    """The training and validation photos of a config, and the scale of the residual over bicubic.

    The photos, of `side` pixels, are whole: those of a training on crops are still to be cropped.
    """

    def __init__(self, config: TrainingConfig) -> None:
        side = config.crops.photo if config.crops else config.high
        self.images = _training_images(config)
        held_out = load_images(config.validation, side)
        self.held_out = held_out[shuffled(len(held_out))]
        self.resizer = Resizer(side * config.low // config.high, side)
        sample = to_model(self.images[:: max(1, len(self.images) // SCALED_BY[config.crops is not None])])
        self.std = float((sample - self.resizer.up(self.resizer.down(sample))).std())

    def batch(self, indices: Tensor, rng: torch.Generator) -> Tensor:
        """Training photos (N, 3, side, side), half of them mirrored."""
        return flip(to_model(self.images[indices.numpy()]), rng)

    def figures(self, x: Tensor) -> dict[str, float]:
        """LPIPS and KID of outputs (N, 3, high, high) for the first N validation photos; none for tiny images."""
        return paired_figures(x, self.held_out[: len(x)])


def paired_figures(x: Tensor, targets: NDArray[np.uint8]) -> dict[str, float]:
    """LPIPS and KID of outputs (N, 3, H, W) against the photos (N, H, W, 3) that they stand for."""
    if x.shape[-1] < LPIPS_MINIMUM:
        return {}
    outputs = to_uint8(pixels.to_images(x).astype(np.float64))
    lpips = score("lpips_alex", outputs, targets, outputs, 1)
    features = open_network("alexnet").features
    kid = kid_paired(features(outputs), features(targets)).value
    return {"lpips_alex": float(lpips.mean()), "kid_alexnet": kid}
