"""Decodes a dataset once and writes what the backends will receive: targets, inputs, and the table of images."""

import hashlib
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.datasets import Dataset, Record, dataset_hash
from harness.degrade import gaussian_noise, make_input, make_target, seed_of
from harness.errors import DatasetError, ImageError, StoreError
from harness.plan import CLEAN, Step
from harness.store import RunFolder
from harness.suite import Suite


def prepare(
    folder: RunFolder, dataset: Dataset, suite: Suite, steps: Sequence[Step], tick: Callable[[], None]
) -> pd.DataFrame:
    """Write targets and inputs, and return the table of images: id, seed, labels, and an error where one is unusable.

    A folder prepared before is checked and used as it is. `tick` is called once an image.

    Raises:
        StoreError: the folder was prepared from other images or for another suite.
        DatasetError: no image of the dataset can be used.
    """
    identity = hashlib.sha256(f"{dataset_hash(dataset)} {suite.sha256}".encode()).hexdigest()
    table = folder.path / "images.parquet"
    if table.exists():
        images = pd.read_parquet(table)
        if set(images["prepared"]) != {identity}:
            raise StoreError(f"{folder.path}: holds a run of other images or another suite; choose another --output")
        return images
    rows = []
    for record in dataset.records:
        rows.append(_prepare_image(folder, dataset, record, suite, steps))
        tick()
    images = pd.DataFrame(rows).assign(prepared=identity)
    if (images["error"] != "").all():
        raise DatasetError(f"{dataset.spec}: none of its {len(images)} images can be used: {images['error'].iloc[0]}")
    folder.write_table("images", images)
    return images


def _prepare_image(
    folder: RunFolder, dataset: Dataset, record: Record, suite: Suite, steps: Sequence[Step]
) -> dict[str, object]:
    row: dict[str, object] = {
        "image": record.id,
        "seed": seed_of(suite.seed, record.id),
        "age_years": record.age_years,
        **record.labels,
        "error": "",
    }
    try:
        target = folder.cached_image(folder.target(record.id), lambda: _target(dataset, record, suite))
    except ImageError as error:
        return row | {"error": str(error)}
    clean = folder.cached_image(folder.input(CLEAN.folder, record.id), lambda: make_input(target, suite.low))
    for step in steps:
        condition = step.condition
        if condition != CLEAN and record.id in step.images:
            seed = seed_of(suite.seed, record.id, condition.name, condition.severity)
            path = folder.input(condition.folder, record.id)
            if not path.exists():
                folder.write_image(path, gaussian_noise(clean, condition.sigma, seed))
    return row


def _target(dataset: Dataset, record: Record, suite: Suite) -> NDArray[np.uint8]:
    return make_target(dataset.image(record), suite.high, suite.target_kernel)
