"""How far outputs of one backend for one photo differ from each other; no ground truth is needed.

change_mse        mean squared error between the outputs for the corrupted and for the clean input, at one seed
draw_variance     variance over the outputs for several draws of a corruption, at one seed of the backend
sampler_variance  variance over the outputs for one corrupted input, under several seeds of the backend

Means over pixels and channels, on a scale of 0 to 1. Their rows come from the stored outputs alone.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.progress import Progress

from harness.degrade import sample_seed
from harness.images import load
from harness.plan import CLEAN, Condition, conditions
from harness.score import identity, image_labels, stored_outputs
from harness.store import Row, RunFolder, read_table
from harness.suite import Seeds, Suite, stored_suite

CHANGE = "change_mse"
DRAWS = "draw_variance"
SAMPLER = "sampler_variance"
BATCH = 256
KEY = ["backend", "digest", "options", "condition", "severity", "image", "metric"]
Images = NDArray[np.uint8]


def change(outputs: Images) -> float:
    """Mean squared error between two images, (2, H, W, 3)."""
    first, second = outputs / 255
    return float(np.square(second - first).mean())


def variance(outputs: Images) -> float:
    """The unbiased variance of each value over (K, H, W, 3) images, K at least 2, averaged over the values."""
    return float(outputs.var(axis=0, ddof=1).mean()) / 255**2


MEASURES: dict[str, Callable[[Images], float]] = {CHANGE: change, DRAWS: variance, SAMPLER: variance}


@dataclass(frozen=True)
class Comparison:
    """Stored outputs that a measure is taken of."""

    metric: str
    condition: Condition
    image: str
    outputs: tuple[Path, ...]

    @property
    def row(self) -> Row:
        """What its row says besides whose it is; without a value."""
        where = {"condition": self.condition.name, "severity": self.condition.severity}
        return where | {"image": self.image, "metric": self.metric}

    def value(self) -> float:
        """The measure."""
        return MEASURES[self.metric](np.stack([load(path) for path in self.outputs]))


def measure_changes(folder: RunFolder, progress: Progress) -> None:
    """Append a row for each comparison whose outputs are all stored and that has none yet."""
    record = folder.read_record() or {}
    suite = stored_suite(record)
    if not (suite.noise or suite.corruptions):
        return
    images = read_table(folder.path / "images.parquet")
    labels, rows = image_labels(images), folder.rows("part")
    done = set(rows.loc[rows["metric"].isin(MEASURES), KEY].itertuples(index=False, name=None))
    for backend in record["backends"]:
        who = identity(backend, record["dataset"]["spec"]) | {"scale": suite.scale}
        made = ((who | found.row, found) for found in comparisons(Outputs(folder, images, backend, suite.scale), suite))
        pending = [(row, found) for row, found in made if tuple(row[key] for key in KEY) not in done]
        task = progress.add_task(f"{backend['label']}: changes", total=len(pending))
        for start in range(0, len(pending), BATCH):
            batch = pending[start : start + BATCH]
            folder.append([row | labels[found.image] | {"value": found.value()} for row, found in batch])
            progress.advance(task, len(batch))


@dataclass(frozen=True)
class Outputs:
    """The stored outputs of a backend, by its entry in the record."""

    folder: RunFolder
    images: pd.DataFrame
    backend: dict[str, Any]
    scale: int

    def under(self, condition: Condition, sample: int = 0) -> dict[str, Path]:
        """Image id -> file, of one of the samples under a condition."""
        images = self.images.assign(seed=[sample_seed(int(seed), sample) for seed in self.images["seed"]])
        return stored_outputs(self.folder, images, self.backend, condition, self.scale)


def comparisons(outputs: Outputs, suite: Suite) -> Iterator[Comparison]:
    """Everything that can be compared."""
    clean = outputs.under(CLEAN)
    for condition, _ in conditions(suite)[1:]:
        yield from _together(CHANGE, condition, [clean, outputs.under(condition)])
    if suite.corruptions and suite.corruptions.seeds:
        yield from _by_seed(outputs, suite.corruptions.seeds)


def _by_seed(outputs: Outputs, seeds: Seeds) -> Iterator[Comparison]:
    for name in seeds.names:
        first, tries = Condition(name, seeds.severity), range(seeds.samples)
        yield from _together(DRAWS, first, [outputs.under(replace(first, draw=k)) for k in tries])
        if not outputs.backend["deterministic"]:
            yield from _together(SAMPLER, first, [outputs.under(first, sample=k) for k in tries])


def _together(metric: str, condition: Condition, sets: list[dict[str, Path]]) -> Iterator[Comparison]:
    """A comparison for each image that is in all of the sets."""
    for image in sorted(set.intersection(*map(set, sets))):
        yield Comparison(metric, condition, image, tuple(files[image] for files in sets))
