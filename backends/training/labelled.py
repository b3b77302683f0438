"""Photos with their classes for training a class-conditional generator, and the figures that its validation prints."""

import math
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from backends import pixels
from backends.pixels import enlarge, to_model
from backends.training.config import TrainingConfig
from backends.training.data import class_names, load_classes, load_images, shuffled
from backends.training.pairs import flip
from harness.networks import open_network
from harness.resize import to_uint8
from harness.set_measures import kid

ENOUGH = 40
"""Validation photos of a class from which it counts in the mean over classes."""
SEEN = 64
"""Side in pixels to which smaller images are enlarged before AlexNet sees them."""


class Labelled:
    """The training and validation photos of a config, (N, high, high, 3) uint8, and their classes, (N,) int64."""

    def __init__(self, config: TrainingConfig) -> None:
        self.names = class_names(config.classes)
        self.images, self.classes = load_images(config.train, config.high), load_classes(config.train, config.classes)
        held_out, classes = load_images(config.validation, config.high), load_classes(config.validation, config.classes)
        order = shuffled(len(held_out))
        self.held_out, self.held_out_classes = held_out[order], classes[order]

    def batch(self, indices: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Training photos (N, 3, high, high), half of them mirrored, and their classes."""
        return flip(to_model(self.images[indices.numpy()]), rng), self.classes[indices]

    def photos(self, places: Tensor) -> Tensor:
        """Validation photos by their places, (N, 3, high, high)."""
        return to_model(self.held_out[places.numpy()])

    def one_hot(self, classes: Tensor) -> Tensor:
        """Classes as the labels of a U-Net, (N, number of classes)."""
        return F.one_hot(classes, len(self.names)).float()

    def figures(self, x: Tensor) -> dict[str, float]:
        """KID (AlexNet) of samples (N, 3, high, high) of the validation photos' classes against these photos.

        Of all, and the mean over the classes with `ENOUGH` of them.
        """
        ours, theirs, classes = _features(_to_uint8(x)), self._real_features, self.held_out_classes.numpy()
        within = [kid(ours[chosen], theirs[chosen]).value for chosen in self._large_classes(classes)]
        return {
            "kid_alexnet": kid(ours, theirs).value,
            "kid_alexnet_within_classes": float(np.mean(within)) if within else math.nan,
        }

    def _large_classes(self, classes: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
        return [chosen for i in range(len(self.names)) if (chosen := classes == i).sum() >= ENOUGH]

    @cached_property
    def _real_features(self) -> NDArray[np.float64]:
        return _features(self.held_out)


def _to_uint8(x: Tensor) -> NDArray[np.uint8]:
    return to_uint8(pixels.to_images(x).astype(np.float64))


def _features(images: NDArray[np.uint8]) -> NDArray[np.float64]:
    scale = math.ceil(SEEN / images.shape[1])
    seen = _to_uint8(enlarge(images, scale)) if scale > 1 else images
    return open_network("alexnet").features(seen)
