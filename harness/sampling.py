"""Images that a generator makes of a class and a seed, stored, and the real ones that they are held against.

    outputs/BACKEND/generated/ID.KEY.png    made; KEY stands for the backend's digest, class, seed and options
    targets/                                the images of the run's dataset: the reference
    training.parquet, training/             as many of the split that generators were trained on

The real images of the training split are the control arm: in the place of generated ones they show what the measures
say of a generator that is as good as reality.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from rich.progress import Progress

from harness.client import Draw, Pixels
from harness.datasets import UNKNOWN, Dataset, Record, open_split
from harness.degrade import make_target, seed_of
from harness.errors import BackendError, ConfigError, DatasetError, ImageError
from harness.replicas import Replicas
from harness.score import CONTROL_RECORD
from harness.stages import generation_rows
from harness.store import SCHEMA, Row, RunFolder, is_whole, read_table, slug
from harness.suite import Generation, Suite

GENERATED = "generated"
"""The condition of rows that are about generated images."""
ALL = "all"
"""What all classes together are called, and the class of a generator that has none."""
REAL = "real images"
"""The label of the control arm."""
REAL_RECORD: dict[str, Any] = CONTROL_RECORD | {
    "label": REAL,
    "name": REAL,
    "digest": REAL,
    "domain": "photos of the training split in the place of generated images",
}
REQUEST_PIXELS = 2**23
"""Most pixels of a request of several images."""


class Sample(NamedTuple):
    """One image to generate: what it is called, its class by name and by place, its seed, and its file."""

    id: str
    kind: str
    place: int | None
    seed: int
    path: Path


def classes_of(part: Generation, backend: dict[str, Any]) -> dict[str, int | None]:
    """Name -> place of the classes that are asked of a backend (its entry in the record), which it has."""
    known: list[str] = backend["classes"]
    return {name: known.index(name) for name in part.classes or known} or {ALL: None}


def samples_of(folder: RunFolder, suite: Suite, backend: dict[str, Any]) -> list[Sample]:
    """What is asked of a backend (its entry in the record), a class after the other; nothing of one that failed."""
    part = suite.generation
    if part is None or backend["status"] != "ok" or backend["label"] == REAL:
        return []
    found = []
    for kind, place in classes_of(part, backend).items():
        for number in range(part.samples):
            seed, name = seed_of(suite.seed, GENERATED, kind, number), f"{kind} {number:05d}"
            path = folder.output(backend["label"], GENERATED, name, _key(backend, kind, seed))
            found.append(Sample(name, kind, place, seed, path))
    return found


def _key(backend: dict[str, Any], kind: str, seed: int) -> str:
    """Everything that may change a generated image."""
    text = json.dumps([SCHEMA, GENERATED, backend["digest"], kind, seed, backend["options"]], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@dataclass(frozen=True)
class Sampler:
    """Asks one backend for images; `identity` is what all its rows say."""

    folder: RunFolder
    suite: Suite
    backend: Replicas
    identity: Row

    def run(self, progress: Progress) -> Iterator[Row]:
        """Store the images that are missing, and the times that they took; yields what to note of a failure."""
        record = self.backend.record
        samples = samples_of(self.folder, self.suite, record)
        pending = [sample for sample in samples if not is_whole(sample.path)]
        task = progress.add_task(
            f"{record['label']}: images", total=len(samples), completed=len(samples) - len(pending)
        )
        pool = ThreadPoolExecutor(len(self.backend.sessions))
        try:
            batches = [*self._batches(pending)]
            for batch, failures in zip(batches, pool.map(self._store, batches), strict=True):
                progress.advance(task, len(batch))
                yield from failures
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _batches(self, samples: Sequence[Sample]) -> Iterator[Sequence[Sample]]:
        most = max(1, min(self.backend.batch, REQUEST_PIXELS // self.suite.side**2))
        return (samples[start : start + most] for start in range(0, len(samples), most))

    def _store(self, samples: Sequence[Sample]) -> list[Row]:
        """Ask for a batch and store it, the rows of its times first; returns a row for each image that failed.

        An image that is there is not made again, so what is known of its making must be there before it.
        """
        failures, times, images = list[Row](), list[Row](), list[tuple[Path, Pixels]]()
        results = self.backend.staged([Draw(s.id, s.seed, s.place) for s in samples])
        for sample, result in zip(samples, results, strict=True):
            about = {"image": sample.id, "class": sample.kind, "seed": sample.seed, "condition": GENERATED}
            if isinstance(result, BackendError):
                failures.append(about | {"metric": "output", "error": f"{type(result).__name__}: {result}"})
            else:
                images.append((sample.path, result[-1].image))
                rows = generation_rows(self.backend.record, sample.seed, result)
                times += [self.identity | about | row for row in rows]
        self.folder.append(times)
        for path, image in images:
            self.folder.write_image(path, image)
        return failures


def training_split(dataset: Dataset, part: Generation) -> Dataset:
    """The split that generators were trained on.

    Raises:
        ConfigError: the dataset lacks an attribute that classes are made of.
        DatasetError: there is no such split beside the one to test on.
    """
    lacking = next((a for a in part.attributes if a not in dataset.attributes), None)
    if lacking:
        raise ConfigError(f"{dataset.spec}: has no labels of {lacking}, which the classes are made of; see attributes")
    return open_split(dataset, part.training)


def prepare_training(folder: RunFolder, training: Dataset, suite: Suite, part: Generation) -> None:
    """Store `samples` images of each class of the training split, where they are not there yet.

    Raises:
        DatasetError: none of its images can be used.
    """
    if (folder.path / "training.parquet").exists():
        return
    rows = [row for record in _chosen(training, suite, part) if (row := _stored(folder, training, record, suite))]
    if not rows:
        raise DatasetError(f"{training.spec}: none of its images can be used")
    folder.write_table("training", pd.DataFrame(rows))


def _chosen(training: Dataset, suite: Suite, part: Generation) -> Iterator[Record]:
    """The first of each known class by their seeds."""
    taken: dict[str, int] = {}
    for record in sorted(training.records, key=lambda record: seed_of(suite.seed, record.id)):
        values = [record.labels.get(attribute, UNKNOWN) for attribute in part.attributes]
        kind = " ".join(values)
        if UNKNOWN not in values and taken.setdefault(kind, 0) < part.samples:
            taken[kind] += 1
            yield record


def _stored(folder: RunFolder, training: Dataset, record: Record, suite: Suite) -> Row | None:
    try:
        folder.cached_image(_training_file(folder, record.id), lambda: make_target(training.image(record), suite.side))
    except ImageError:
        return None
    return {"image": record.id, **record.labels}


def _training_file(folder: RunFolder, image: str) -> Path:
    return folder.path / "training" / f"{slug(image)}.png"


def generated_images(folder: RunFolder, suite: Suite, backend: dict[str, Any]) -> pd.DataFrame:
    """The stored images of a backend (its entry in the record), columns image, class and path."""
    rows = [(s.id, s.kind, s.path) for s in samples_of(folder, suite, backend) if is_whole(s.path)]
    return pd.DataFrame(rows, columns=["image", "class", "path"])


def training_images(folder: RunFolder, part: Generation) -> pd.DataFrame:
    """The stored images of the training split, as `generated_images`, and their labels."""
    table = read_table(folder.path / "training.parquet")
    return _described(table, part).assign(path=table["image"].map(lambda image: _training_file(folder, str(image))))


def reference_images(folder: RunFolder, part: Generation) -> pd.DataFrame:
    """The images of the run's dataset by their seeds, as `training_images`; those of unknown class have class ""."""
    table = read_table(folder.path / "images.parquet")
    table = table[table["error"] == ""].sort_values("seed", kind="stable").reset_index(drop=True)
    return _described(table, part).assign(path=table["image"].map(lambda image: folder.target(str(image))))


def _described(table: pd.DataFrame, part: Generation) -> pd.DataFrame:
    labels = table[list(part.attributes)]
    known = (labels != UNKNOWN).all(axis=1)
    return table.assign(**{"class": labels.agg(" ".join, axis=1).where(known, "")})
