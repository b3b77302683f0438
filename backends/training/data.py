"""Training images: decoded once, resized by the product's one resize, kept as uint8 arrays on disk."""

import hashlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.training.config import ConfigError
from harness.datasets import UNKNOWN, Dataset, dataset_hash, open_dataset
from harness.degrade import make_target
from harness.errors import one_line
from harness.metrics import score

RACES = ("white", "black", "asian", "indian", "other")
GENDERS = ("male", "female")
CLASSES = {"race": RACES, "gender": GENDERS}
"""Labels that classes of a model can be made of."""


def load_images(spec: str, size: int) -> NDArray[np.uint8]:
    """All photos of a dataset of the harness, `KIND:PATH#SPLIT`, as (N, size, size, 3) uint8; cached under .cache/.

    They are cropped to their centre square and resized as the harness does it.

    Raises:
        DatasetError, ImageError: one line; there is no such dataset, or a photo cannot be read.
    """
    dataset = open_dataset(spec)
    return _cached(dataset, str(size), lambda: np.stack(list(_photos(dataset, size))))


def shuffled(count: int) -> NDArray[np.intp]:
    """The places of `count` held-out photos in an order of chance, always the same.

    Figures are taken on the first photos, and a dataset's own order goes by names, which may begin with the age.
    """
    return np.random.default_rng(0).permutation(count)


def load_sharpest(spec: str, size: int, count: int) -> NDArray[np.uint8]:
    """The `count` sharpest photos of a dataset, as `load_images` gives them, in the order of the dataset; cached.

    Sharpness is the metric of that name, the variance of the Laplacian, which grain and JPEG's blocks raise, too.

    Raises:
        ValueError: the dataset has fewer photos.
        DatasetError, ImageError: as `load_images`.
    """
    dataset = open_dataset(spec)
    if len(dataset.records) < count:
        raise ValueError(f"sharpest: {count} images are asked for, {spec} has {len(dataset.records)}")

    def choose() -> NDArray[np.uint8]:
        photos = (photo[None] for photo in _photos(dataset, size))
        sharpness = np.concatenate([score("sharpness", photo, None, photo, 1) for photo in photos])
        chosen = set(np.argsort(-sharpness, kind="stable")[:count].tolist())
        return np.stack([photo for i, photo in enumerate(_photos(dataset, size)) if i in chosen])

    return _cached(dataset, f"{size} sharpest {count}", choose)


def _photos(dataset: Dataset, size: int) -> Iterator[NDArray[np.uint8]]:
    return (make_target(dataset.image(record), size) for record in dataset.records)


def _cached(dataset: Dataset, recipe: str, make: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """What `make` makes of a dataset, kept in a file that is named after the dataset's hash and the recipe."""
    key = hashlib.sha256(f"{dataset_hash(dataset)}{recipe}".encode()).hexdigest()[:16]
    cache = Path(".cache/training") / f"{key}.npy"
    images = read_array(cache)
    if images is None:
        images = write_array(cache, make())
    return images


def read_array(path: Path) -> NDArray[Any] | None:
    """The array of a file; None where that is missing or damaged."""
    try:
        array: NDArray[Any] = np.load(path)
    except (FileNotFoundError, EOFError, ValueError):
        return None
    return array


def write_array(path: Path, array: NDArray[Any]) -> NDArray[Any]:
    """Write a file whole, also while another training writes the same one; returns the array as it will be read.

    Its layout in memory is that of the file, for that decides the last bits of what is computed with it.
    """
    array = np.ascontiguousarray(array)
    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=path.parent) as folder:
        partial = Path(folder) / path.name
        np.save(partial, array)
        partial.rename(path)
    return array


def choose_races(spec: str, counts: dict[str, int], seed: int) -> NDArray[np.intp]:
    """Indices of `counts[race]` photos of each race, drawn without replacement by `seed`, in the order of the dataset.

    Raises:
        ValueError: the split has no such race, or fewer of its photos than asked for; names it.
    """
    races = np.array(_labels(open_dataset(spec), "race"))
    rng = np.random.default_rng(seed)
    chosen = []
    for race, count in sorted(counts.items()):
        there = np.flatnonzero(races == race)
        if len(there) < count:
            raise ValueError(f"races: {count} of {race!r} are asked for, {spec} has {len(there)}")
        chosen.append(rng.permutation(there)[:count])
    return np.sort(np.concatenate(chosen))


def load_labels(spec: str) -> Tensor:
    """Labels of a dataset's photos as (N, 9) float: one-hot race (5) and gender (2), age / 100, and a constant 1.

    Raises:
        ConfigError: a photo has no age, or another race or gender than those of `CLASSES`.
    """
    dataset = open_dataset(spec)
    ages = [record.age_years for record in dataset.records]
    if any(age is None for age in ages):
        raise ConfigError(f"{spec}: a photo has no age in years")
    try:
        return label_vectors(_labels(dataset, "race"), _labels(dataset, "gender"), [float(age or 0) for age in ages])
    except ValueError as error:
        raise ConfigError(f"{spec}: a label is none of {', '.join((*RACES, *GENDERS))}") from error


def class_names(labels: Sequence[str]) -> tuple[str, ...]:
    """The classes of a model that tells these labels apart, in index order: "white male", "white female", ..."""
    return tuple(" ".join(values) for values in itertools.product(*(CLASSES[label] for label in labels)))


def load_classes(spec: str, labels: Sequence[str]) -> Tensor:
    """The place in `class_names(labels)` of each photo of a dataset, (N,) int64.

    Raises:
        ConfigError: a photo's labels are none of them.
    """
    places = {name: i for i, name in enumerate(class_names(labels))}
    dataset = open_dataset(spec)
    names = [" ".join(values) for values in zip(*(_labels(dataset, label) for label in labels), strict=True)]
    if unknown := set(names) - places.keys():
        raise ConfigError(f"{spec}: {one_line(min(unknown), 60)!r} is no class; there are {', '.join(places)}")
    return torch.tensor([places[name] for name in names])


def _labels(dataset: Dataset, name: str) -> list[str]:
    return [record.labels.get(name, UNKNOWN) for record in dataset.records]


def label_vectors(races: list[str], genders: list[str], ages: list[float]) -> Tensor:
    """The (N, 9) conditioning vectors of the portrait generator; an all-zero row means "no label"."""
    vectors = torch.zeros(len(races), 9)
    for i, (race, gender, age) in enumerate(zip(races, genders, ages, strict=True)):
        vectors[i, RACES.index(race)] = 1
        vectors[i, 5 + GENDERS.index(gender)] = 1
        vectors[i, 7] = age / 100
        vectors[i, 8] = 1
    return vectors


def batches(count: int, batch: int, seed: int, first: int) -> Iterator[tuple[int, Tensor]]:
    """(step, indices) from step `first` on, each epoch a permutation drawn from (seed, epoch) alone."""
    per_epoch = count // batch
    step = first
    while True:
        epoch, place = divmod(step, per_epoch)
        order = torch.randperm(count, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch))
        for i in range(place, per_epoch):
            yield step, order[i * batch : (i + 1) * batch]
            step += 1
