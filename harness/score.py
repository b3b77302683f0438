"""Scores stored outputs: one row per image and metric, appended batch by batch, never twice, no backend needed."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.progress import Progress

from harness.errors import StoreError
from harness.images import load
from harness.metrics import METRICS, score
from harness.plan import CLEAN, Condition, conditions
from harness.store import Row, RunFolder, cache_key, equal_sizes, is_whole, read_table
from harness.suite import stored_suite

BATCH = 32
BATCH_PIXELS = 2**24
"""Most pixels of a batch of several outputs that are scored together: bounds memory."""
BASELINE = "bicubic"
"""The backend that every other one is compared with; it is part of every run."""
CONTROL = "passthrough"
"""The control arm that returns the ground truth itself: it shows what the instruments say of a perfect output."""

CONTROL_RECORD: dict[str, Any] = {
    "label": CONTROL,
    "name": CONTROL,
    "address": None,
    "options": {},
    "family": "control",
    "digest": CONTROL,
    "device": "",
    "precision": "",
    "licence": "",
    "domain": "the ground truth itself, seen through the same instruments",
    "domain_minimum": 0,
    "out_of_domain": False,
    "deterministic": True,
    "status": "ok",
    "error": None,
}


@dataclass(frozen=True)
class Stored:
    """Outputs of one backend under one condition: what identifies their rows, and image id -> output file."""

    identity: Row
    condition: Condition
    outputs: dict[str, Path]
    metrics: tuple[str, ...]


def identity(backend: dict[str, Any], dataset: str) -> Row:
    """The columns that all rows of a backend share, from its entry in the run record."""
    options = json.dumps(backend["options"], sort_keys=True)
    shared = {key: backend[key] for key in ("digest", "device", "precision")}
    return {"backend": backend["label"], "options": options, **shared, "dataset": dataset}


def score_run(folder: RunFolder, progress: Progress) -> None:
    """Append the rows that the stored outputs of a run still lack.

    Raises:
        StoreError: the stored rows were made by another recipe than this version's.
    """
    record = folder.read_record() or {}
    images = read_table(folder.path / "images.parquet")
    for name, metric in record["metrics"].items():
        if name not in METRICS or METRICS[name].recipe != metric["recipe"]:
            raise StoreError(f"{folder.path}: {name} was scored by another recipe; run again into another --output")
    suite = stored_suite(record)
    work = [
        Stored(identity(backend, record["dataset"]["spec"]), condition, outputs, metrics)
        for backend in record["backends"]
        for condition, metrics in conditions(suite)
        if (outputs := stored_outputs(folder, images, backend, condition, suite.scale))
    ]
    task = progress.add_task("scores", total=sum(len(w.outputs) * len(w.metrics) for w in work))
    done = _done(folder.rows())
    labels = image_labels(images)
    for item in work:
        progress.advance(task, sum(key in done for key in _keys(item)))
        for names, batch in _pending(item, done):
            scored = _score_batch(folder, item, names, batch, suite.scale)
            folder.append([row | labels[row["image"]] for row in scored])
            progress.advance(task, len(scored))


def stored_outputs(
    folder: RunFolder, images: pd.DataFrame, backend: dict[str, Any], condition: Condition, scale: int
) -> dict[str, Path]:
    """Image id -> file of the outputs that a backend (its entry in the record) has given under a condition."""
    found = {}
    for row in images[images["error"] == ""].to_dict("records"):
        path = output_path(folder, backend, condition, str(row["image"]), int(row["seed"]), scale)
        if path is not None and is_whole(path):
            found[str(row["image"])] = path
    return found


def output_path(  # noqa: PLR0913, PLR0917 - what a cache key is made of
    folder: RunFolder, backend: dict[str, Any], condition: Condition, image: str, seed: int, scale: int
) -> Path | None:
    """Where an output lies, or None if the condition does not use the image."""
    if backend["label"] == CONTROL:
        return folder.target(image) if condition == CLEAN else None
    source = folder.input(condition.folder, image)
    if not source.exists():
        return None
    key = cache_key(backend["digest"], load(source), scale, seed, backend["options"])
    return folder.output(backend["label"], condition.folder, image, key)


def scale_of(record: dict[str, Any]) -> int:
    """The factor of upscaling of a run, from its record."""
    content = record["suite"]["content"]
    photos = content.get("photos")
    return int(photos["scale"] if photos else content["high"] // content["low"])


def image_labels(images: pd.DataFrame) -> dict[str, Row]:
    """What every row of an image carries: its seed and its group labels."""
    attributes = group_attributes(images)
    return {str(row["image"]): {a: row[a] for a in ("seed", *attributes)} for row in images.to_dict("records")}


def group_attributes(images: pd.DataFrame) -> list[str]:
    """Names of the label columns of the table of images."""
    return [str(c) for c in images.columns if c not in ("image", "seed", "age_years", "error", "prepared")]


KEY = ("backend", "digest", "options", "condition", "severity", "image", "metric")
Key = tuple[Any, ...]


def _done(rows: pd.DataFrame) -> set[Key]:
    return set(rows[list(KEY)].itertuples(index=False, name=None)) if len(rows) else set()


def _key(item: Stored, image: str, metric: str) -> Key:
    who = (item.identity[k] for k in KEY[:3])
    return (*who, item.condition.name, item.condition.severity, image, metric)


def _keys(item: Stored) -> Iterator[Key]:
    return (_key(item, image, metric) for image in item.outputs for metric in item.metrics)


def _pending(item: Stored, done: set[Key]) -> Iterator[tuple[tuple[str, ...], list[tuple[str, Path]]]]:
    missing: dict[tuple[str, ...], list[tuple[str, Path]]] = {}
    for image, path in item.outputs.items():
        if names := tuple(m for m in item.metrics if _key(item, image, m) not in done):
            missing.setdefault(names, []).append((image, path))
    for names, entries in missing.items():
        for batch in equal_sizes(entries, BATCH, BATCH_PIXELS):
            yield names, batch


def _score_batch(
    folder: RunFolder, item: Stored, names: tuple[str, ...], batch: list[tuple[str, Path]], scale: int
) -> list[Row]:
    outputs = np.stack([load(path) for _, path in batch])
    compared = any(METRICS[name].reference for name in names)
    targets = np.stack([load(folder.target(image)) for image, _ in batch]) if compared else None
    inputs = np.stack([load(folder.input(item.condition.folder, image)) for image, _ in batch])
    where = {"condition": item.condition.name, "severity": item.condition.severity, "scale": scale}
    rows = []
    for name in names:
        values = score(name, outputs, targets, inputs, scale)
        common = item.identity | where | {"metric": name, "unit": METRICS[name].unit}
        for (image, _), value in zip(batch, values, strict=True):
            error = "too small for this metric" if np.isnan(value) else ""
            rows.append(common | {"image": image, "value": float(value), "error": error})
    return rows
