"""What networks make of generated images and of the real ones, stored: features, readings, and LPIPS of pairs.

    features/NETWORK-VERSION/SET.parquet        image, 0 ... d - 1
    readings/INSTRUMENT-VERSION/SET.parquet     image, ATTRIBUTE ...: the most probable label, "" for none

SET is a backend, the control arm (photos of the training split) or the reference (those of the run's dataset).
"""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.progress import Progress

from harness.errors import ConfigError, StoreError
from harness.images import load
from harness.metrics import METRICS, score
from harness.networks import BATCH, Network, open_network
from harness.sampling import GENERATED, REAL, generated_images, reference_images, training_images
from harness.score import identity
from harness.store import Row, RunFolder, read_table, slug
from harness.suite import Generation, Suite, stored_suite

Images = NDArray[np.uint8]

REFERENCE = "reference"
"""What the images of the run's dataset are called among the sets."""
PAIR_LPIPS = "pair_lpips"
"""The metric of the rows that compare two images of one class."""
MOST_PAIRS = 50
"""Pairs of a class; each image is in one, so that they are independent."""


def describe_generation(suite: Suite) -> dict[str, Any]:
    """For the run record: the recipes of the networks, of the instrument with its labels, and of the pairs.

    Raises:
        ConfigError, WeightsError: one of them cannot be used.
    """
    part = suite.generation
    if part is None:
        return {}
    networks = {name: _network(suite, name).recipe for name in part.networks}
    tool = _instrument(suite, part.instrument) if part.instrument else None
    instrument = {"recipe": tool.recipe, "labels": _labels(tool)} if tool else {"recipe": "", "labels": {}}
    pairs = f"mean over pairs of images of one class, each image in one pair; {METRICS['lpips_alex'].recipe}"
    return {"networks": networks, "instrument": instrument, "pairs": pairs}


def _network(suite: Suite, name: str) -> Network:
    network = open_network(name, suite.networks.get(name, ""))
    if not network.width:
        raise ConfigError(f"{suite.networks[name]}: features names no output, and generation compares features")
    return network


def _instrument(suite: Suite, name: str) -> Network:
    tool = open_network(name, suite.networks.get(name, ""))
    if not _labels(tool):
        raise ConfigError(f"generation.instrument: {name} reads no labels in images; give another one, or none")
    return tool


def _labels(tool: Network) -> dict[str, tuple[str, ...]]:
    return {attribute: labels for attribute, labels in tool.labels.items() if labels}


def image_sets(folder: RunFolder, record: dict[str, Any], part: Generation, suite: Suite) -> dict[str, pd.DataFrame]:
    """All sets of stored images by name: columns image, class, path, and labels where they are real."""
    made = {b["label"]: generated_images(folder, suite, b) for b in record["backends"] if b["label"] != REAL}
    sets = {REFERENCE: reference_images(folder, part), REAL: training_images(folder, part)}
    if part.classes:
        sets = {name: frame[frame["class"].isin(part.classes)] for name, frame in sets.items()}
    return sets | {label: frame for label, frame in made.items() if len(frame)}


def measure_generation(folder: RunFolder, progress: Progress) -> None:
    """Store what is not there yet: features and readings of all sets, and a row for each pair of images.

    Raises:
        ConfigError, WeightsError, StoreError: a network is needed and is not there, or is no longer the run's.
    """
    record = folder.read_record() or {}
    suite = stored_suite(record)
    if suite.generation is None:
        return
    sets = image_sets(folder, record, suite.generation, suite)
    task = progress.add_task("features", total=len(sets))
    for name, images in sets.items():
        for network, recipe in record["generation"]["networks"].items():
            _keep(folder, feature_file(folder, record, network, name), images, _features(suite, network, recipe))
        if reads := suite.generation.instrument:
            about = record["generation"]["instrument"]
            _keep(folder, reading_file(folder, record, reads, name), images, _readings(suite, reads, about["recipe"]))
        progress.advance(task)
    _measure_pairs(folder, record, sets, progress)


def feature_file(folder: RunFolder, record: dict[str, Any], network: str, name: str) -> Path:
    """Where the features of a set are stored."""
    return _file(folder.path / "features", record, network, record["generation"]["networks"][network], name)


def reading_file(folder: RunFolder, record: dict[str, Any], instrument: str, name: str) -> Path:
    """Where the readings of a set are stored."""
    return _file(folder.path / "readings", record, instrument, record["generation"]["instrument"]["recipe"], name)


def _file(place: Path, record: dict[str, Any], network: str, recipe: str, name: str) -> Path:
    version = hashlib.sha256(recipe.encode()).hexdigest()[:8]
    backend = next((str(identity(b, "")) for b in record["backends"] if b["label"] == name), name)
    return place / f"{network}-{version}" / f"{slug(name)}.{slug(backend)[-16:]}.parquet"


def _keep(folder: RunFolder, path: Path, images: pd.DataFrame, make: Callable[[Images], pd.DataFrame]) -> None:
    """Store what `make` says of each image, unless it is there for exactly these."""
    if path.exists() and read_table(path)["image"].tolist() == images["image"].tolist():
        return
    parts = [
        make(np.stack([load(file) for file in images["path"][start : start + BATCH]]))
        for start in range(0, len(images), BATCH)
    ]
    frame = pd.concat(parts, ignore_index=True)
    frame.insert(0, "image", images["image"].to_list())
    folder.write_table(str(path.relative_to(folder.path).with_suffix("")), frame)


def _same(network: Network, recipe: str) -> Network:
    if network.recipe != recipe:
        raise StoreError(f"network {network.name} is no longer that of this run; choose another --output")
    return network


def _features(suite: Suite, name: str, recipe: str) -> Callable[[Images], pd.DataFrame]:
    def make(images: Images) -> pd.DataFrame:
        features = _same(_network(suite, name), recipe).features(images)
        return pd.DataFrame(features.astype(np.float32)).rename(columns=str)

    return make


def _readings(suite: Suite, name: str, recipe: str) -> Callable[[Images], pd.DataFrame]:
    def make(images: Images) -> pd.DataFrame:
        tool = _same(_instrument(suite, name), recipe)
        tables = {a: table for a, table in tool.predictions(images).items() if a in _labels(tool)}
        return pd.DataFrame({attribute: _said(table) for attribute, table in tables.items()})

    return make


def _said(table: pd.DataFrame) -> list[str]:
    """The most probable label of each row; "" where there is no reading."""
    sure = table.notna().all(axis=1)
    return table.fillna(0).idxmax(axis=1).astype(str).where(sure, "").tolist()


def _measure_pairs(
    folder: RunFolder, record: dict[str, Any], sets: dict[str, pd.DataFrame], progress: Progress
) -> None:
    """A row for each pair of images of one class that has none yet."""
    rows = folder.rows("part")
    keys = ["backend", "digest", "options", "image"]
    done = set(rows.loc[rows["metric"] == PAIR_LPIPS, keys].itertuples(index=False, name=None))
    task = progress.add_task("LPIPS of pairs", total=len(sets) - 1)
    for backend in record["backends"]:
        who = identity(backend, record["dataset"]["spec"])
        pairs = [
            pair
            for pair in _pairs(sets[backend["label"]] if backend["label"] in sets else pd.DataFrame())
            if (*(who[key] for key in keys[:3]), pair.iloc[0]["image"]) not in done
        ]
        common = who | {"condition": GENERATED, "metric": PAIR_LPIPS}
        for start in range(0, len(pairs), BATCH):
            folder.append([common | row for row in _pair_rows(pairs[start : start + BATCH])])
        progress.advance(task, backend["label"] in sets)


def _pairs(images: pd.DataFrame) -> Iterator[pd.DataFrame]:
    """Two rows each: the first and second image of a class, the third and fourth, ..."""
    for kind, mine in images.groupby("class", sort=False) if len(images) else ():
        for start in range(0, min(len(mine) - 1, 2 * MOST_PAIRS), 2) if kind else ():
            yield mine.iloc[start : start + 2]


def _pair_rows(pairs: list[pd.DataFrame]) -> Iterator[Row]:
    first, second = (np.stack([load(pair.iloc[i]["path"]) for pair in pairs]) for i in (0, 1))
    for pair, value in zip(pairs, score("lpips_alex", first, second, second, 1), strict=True):
        yield {"image": pair.iloc[0]["image"], "class": pair.iloc[0]["class"], "value": float(value)}
