"""Decodes a dataset once and writes what the backends will receive: targets, inputs, and the table of images."""

import hashlib
import itertools
import json
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.datasets import UNKNOWN, Dataset, Record
from harness.degrade import (
    average_face,
    corrupt,
    given_input,
    make_input,
    make_target,
    parameters_of,
    seed_of,
    uninformative,
)
from harness.errors import DatasetError, ImageError, StoreError
from harness.fairness.readings import describe_instruments
from harness.generated_sets import describe_generation
from harness.hallucination import describe_split
from harness.images import load
from harness.metrics import METRICS
from harness.plan import AVERAGE, AVERAGE_NOISE, CLEAN, Condition, Step
from harness.set_measures import describe
from harness.statistics import INSUFFICIENT
from harness.store import RunFolder, read_table, write_atomic
from harness.suite import Suite


def identity_of(dataset_sha256: str, suite: Suite) -> str:
    """What a run folder is for: the images, the suite, and the recipes of its metrics."""
    recipes = [METRICS[name].recipe for name in sorted(suite.used_metrics)]
    described = (describe(suite), describe_instruments(suite), describe_split(suite))
    recipes += [about["recipe"] for part in described for about in part.values()]
    recipes += [json.dumps(about) for about in describe_generation(suite).values()]
    return hashlib.sha256(json.dumps([dataset_sha256, suite.sha256, recipes]).encode()).hexdigest()


def _claim(folder: RunFolder, identity: str) -> None:
    """Mark an empty folder as this run's before anything is written into it; refuse another run's."""
    stamp = folder.path / "identity"
    if stamp.exists():
        if stamp.read_text(errors="replace") != identity:
            raise StoreError(f"{folder.path}: holds a run of other images or another suite; choose another --output")
        return
    if any(p.name != ".lock" for p in folder.path.iterdir()):
        raise StoreError(f"{folder.path}: is not empty and holds no run of this version; choose another --output")
    write_atomic(stamp, identity.encode())


def prepare(  # noqa: PLR0913, PLR0917 - everything that a picture's way begins with
    folder: RunFolder,
    dataset: Dataset,
    dataset_sha256: str,
    suite: Suite,
    steps: Sequence[Step],
    tick: Callable[[], None],
) -> pd.DataFrame:
    """Write targets and inputs, and return the table of images: id, seed, labels, and an error where one is unusable.

    A folder prepared before is checked and used as it is. `tick` is called once an image.

    Raises:
        StoreError: the folder was prepared from other images or for another suite.
        DatasetError: no image of the dataset can be used.
    """
    _claim(folder, identity_of(dataset_sha256, suite))
    table = folder.path / "images.parquet"
    if table.exists():
        return read_table(table)
    rows = []
    for record in dataset.records:
        rows.append(_prepare_image(folder, dataset, record, suite, steps))
        tick()
    images = pd.DataFrame(rows)
    _prepare_uninformative(folder, images, suite, steps)
    if (images["error"] != "").all():
        raise DatasetError(f"{dataset.spec}: none of its {len(images)} images can be used: {images['error'].iloc[0]}")
    folder.write_table("images", images)
    return images


def _prepare_image(
    folder: RunFolder, dataset: Dataset, record: Record, suite: Suite, steps: Sequence[Step]
) -> dict[str, object]:
    row: dict[str, object] = {
        "image": record.id,
        "seed": seed_of(suite.seed, dataset.unit(record)),
        "age_years": record.age_years,
        **record.labels,
        "error": "",
    }
    try:
        clean = _clean_input(folder, dataset, record, suite)
    except ImageError as error:
        return row | {"error": _named(record, error)}
    for step in steps:
        condition = step.condition
        if condition.severity and record.id in step.images:
            make = partial(_corrupted, clean, condition, _seed(suite.seed, record.id, condition))
            folder.cached_image(folder.input(condition.folder, record.id), make)
    return row


def _seed(seed: int, image: str, condition: Condition) -> int:
    """What fixes a corruption of an image; another for each draw."""
    further = ("draw", condition.draw) if condition.draw else ()
    return seed_of(seed, image, condition.name, condition.severity, *further)


def _corrupted(clean: NDArray[np.uint8], condition: Condition, seed: int) -> NDArray[np.uint8]:
    parameters = condition.parameters or parameters_of(condition.name, condition.severity, max(clean.shape))
    return corrupt(clean, condition.name, parameters=parameters, seed=seed)


def _prepare_uninformative(folder: RunFolder, images: pd.DataFrame, suite: Suite, steps: Sequence[Step]) -> None:
    """Write the inputs that say nothing but the group, whose average is taken over all usable images of it.

    Groups of fewer than `INSUFFICIENT` images have none: a face can be told from the average of a few. So it is with a
    dataset without the attribute.
    """
    wanted = [step for step in steps if step.condition.name in (AVERAGE, AVERAGE_NOISE)]
    part = suite.fairness.uninformative if suite.fairness else None
    if not wanted or part is None or part.attribute not in images:
        return
    usable = images[images["error"] == ""]
    for _, members in usable[usable[part.attribute] != UNKNOWN].groupby(part.attribute)["image"]:
        if len(members) < INSUFFICIENT:
            continue
        average = average_face(load(folder.target(str(image))) for image in members)
        for step, image in itertools.product(wanted, set(members)):
            if image in step.images:
                seed = seed_of(suite.seed, image, step.condition.name)
                sigma = sum(step.condition.parameters)
                make = partial(uninformative, average, suite.low, sigma, seed)
                folder.cached_image(folder.input(step.condition.folder, str(image)), make)


def _clean_input(folder: RunFolder, dataset: Dataset, record: Record, suite: Suite) -> NDArray[np.uint8]:
    """What the backends receive, made from the ground truth where there is one."""
    path = folder.input(CLEAN.folder, record.id)
    if suite.photos:
        bound = suite.photos.max_pixels
        return folder.cached_image(path, lambda: given_input(dataset.image(record), bound))
    target = folder.cached_image(folder.target(record.id), lambda: _target(dataset, record, suite))
    if suite.generation:
        return target  # nothing is enlarged
    return folder.cached_image(path, lambda: make_input(target, suite.low))


def _named(record: Record, error: ImageError) -> str:
    text = str(error)
    return text if record.source in text else f"{record.source}: {text}"


def _target(dataset: Dataset, record: Record, suite: Suite) -> NDArray[np.uint8]:
    return make_target(dataset.image(record), suite.side, suite.target_kernel)
