"""The classes of class-conditional models: their names, from the weights' metadata, and their places in a request."""

import json
from collections.abc import Sequence

import torch
from torch import Tensor

from backends.base import Refused


def class_names(metadata: dict[str, str], count: int) -> tuple[str, ...]:
    """The names of a model's classes, in index order.

    Raises:
        ValueError: the metadata do not name `count` classes.
    """
    names = json.loads(metadata.get("classes", "[]"))
    if not isinstance(names, list) or not 0 < len(names) == count or not all(map(_is_name, names)):
        raise ValueError(f"the weights' metadata do not name the {count} classes of their network")
    return tuple(names)


def _is_name(name: object) -> bool:
    return isinstance(name, str) and 0 < len(name) <= 100 and name.isprintable()


def needed(classes: Sequence[int | None]) -> Tensor:
    """The classes of images to generate, (N,) int64.

    Raises:
        Refused: an image has none.
    """
    for i, place in enumerate(classes):
        if place is None:
            raise Refused(f"images[{i}].class_index", "is needed: this model makes images of a class")
    return torch.tensor(classes)


def one_hot(classes: Sequence[int | None], count: int) -> Tensor:
    """Classes as the labels of a U-Net, (N, count); zeros for an image that has none."""
    labels = torch.zeros(len(classes), count)
    for i, place in enumerate(classes):
        if place is not None:
            labels[i, place] = 1
    return labels
