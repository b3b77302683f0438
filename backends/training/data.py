"""Training images: decoded once, resized by the product's one resize, kept as uint8 arrays on disk."""

import hashlib
import io
import itertools
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from harness.metrics import score
from harness.resize import resize, to_uint8

RACES = ("white", "black", "asian", "indian", "other")
GENDERS = ("male", "female")
CLASSES = {"race": RACES, "gender": GENDERS}
"""Labels that classes of a model can be made of."""


def data_root() -> Path:
    """The folder that holds the data sets: $HARNESS_DATA, else ../shared/data."""
    return Path(os.environ.get("HARNESS_DATA", "../shared/data"))


def load_images(spec: str, size: int) -> NDArray[np.uint8]:
    """All images of `FOLDER#SPLIT` as (N, size, size, 3) uint8, centre-cropped and resized; cached under .cache/."""
    return _cached(spec, str(size), lambda: np.stack([_decode(data, size) for data in _all(spec)]))


def load_sharpest(spec: str, size: int, count: int) -> NDArray[np.uint8]:
    """The `count` sharpest images of `FOLDER#SPLIT`, as `load_images` gives them, in the order of the split; cached.

    Sharpness is the metric of that name, the variance of the Laplacian, which grain and JPEG's blocks raise, too.

    Raises:
        ValueError: the split has fewer images.
    """

    def choose() -> NDArray[np.uint8]:
        images = (_decode(data, size)[None] for data in _all(spec))
        sharpness = np.concatenate([score("sharpness", image, None, image, 1) for image in images])
        if len(sharpness) < count:
            raise ValueError(f"sharpest: {count} images are asked for, {spec} has {len(sharpness)}")
        chosen = set(np.argsort(-sharpness, kind="stable")[:count].tolist())
        return np.stack([_decode(data, size) for i, data in enumerate(_all(spec)) if i in chosen])

    return _cached(spec, f"{size} sharpest {count}", choose)


def _cached(spec: str, recipe: str, make: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """What `make` makes of a split, kept in a file that is named after the split's files and the recipe."""
    key = hashlib.sha256("".join(f"{f}{f.stat().st_size}{recipe}" for f in _files(spec)).encode()).hexdigest()[:16]
    cache = Path(".cache/training") / f"{key}.npy"
    if not cache.exists():
        cache.parent.mkdir(parents=True, exist_ok=True)
        partial = cache.with_name(cache.name + ".part.npy")
        np.save(partial, make())
        partial.rename(cache)
    loaded: NDArray[np.uint8] = np.load(cache)
    return loaded


def choose_races(spec: str, counts: dict[str, int], seed: int) -> NDArray[np.intp]:
    """Indices of `counts[race]` photos of each race, drawn without replacement by `seed`, in the order of the split.

    Raises:
        ValueError: the split has no such race, or fewer of its photos than asked for; names it.
    """
    frame = pd.concat([pq.read_table(f, columns=["race"]).to_pandas() for f in _files(spec)], ignore_index=True)
    rng = np.random.default_rng(seed)
    chosen = []
    for race, count in sorted(counts.items()):
        there = np.flatnonzero(frame["race"] == race)
        if len(there) < count:
            raise ValueError(f"races: {count} of {race!r} are asked for, {spec} has {len(there)}")
        chosen.append(rng.permutation(there)[:count])
    return np.sort(np.concatenate(chosen))


def load_labels(spec: str) -> Tensor:
    """Labels of `FOLDER#SPLIT` as (N, 9) float: one-hot race (5) and gender (2), age / 100, and a constant 1."""
    frame = pd.concat([pq.read_table(f, columns=["age", "gender", "race"]).to_pandas() for f in _files(spec)])
    return label_vectors(list(frame["race"]), list(frame["gender"]), list(frame["age"]))


def class_names(labels: Sequence[str]) -> tuple[str, ...]:
    """The classes of a model that tells these labels apart, in index order: "white male", "white female", ..."""
    return tuple(" ".join(values) for values in itertools.product(*(CLASSES[label] for label in labels)))


def load_classes(spec: str, labels: Sequence[str]) -> Tensor:
    """The place in `class_names(labels)` of each image of `FOLDER#SPLIT`, (N,) int64."""
    frame = pd.concat([pq.read_table(f, columns=list(labels)).to_pandas() for f in _files(spec)])
    names = frame[list(labels)].agg(" ".join, axis=1)
    return torch.from_numpy(pd.Index(class_names(labels)).get_indexer(names).astype(np.int64))


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


def _files(spec: str) -> list[Path]:
    folder, _, split = spec.partition("#")
    files = sorted((data_root() / folder).glob(f"{split}-*.parquet"))
    if not files:
        raise FileNotFoundError(f"{data_root() / folder}: no {split}-*.parquet; set HARNESS_DATA to the data folder")
    return files


def _all(spec: str) -> Iterator[bytes]:
    """The encoded images of a split."""
    return itertools.chain.from_iterable(map(_bytes, _files(spec)))


def _bytes(file: Path) -> Iterator[bytes]:
    for chunk in pq.ParquetFile(file).iter_batches(batch_size=256, columns=["image"]):
        for row in chunk.to_pylist():
            yield row["image"]["bytes"]


def _decode(data: bytes, size: int) -> NDArray[np.uint8]:
    image = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"), dtype=np.float64)
    side = min(image.shape[:2])
    top, left = (image.shape[0] - side) // 2, (image.shape[1] - side) // 2
    return to_uint8(resize(image[top : top + side, left : left + side], size, size))
