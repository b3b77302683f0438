"""The run record: what was run on what, with which code, written as run.json."""

import datetime as dt
import math
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import pandas as pd

from harness import __version__, environment
from harness.classification import RECIPE
from harness.corruptions import column_of
from harness.datasets import AGE_RULE, Dataset
from harness.diversity import DIVERSITY
from harness.fairness.readings import describe_instruments, describe_measures
from harness.generated_sets import describe_generation
from harness.hallucination import describe_split
from harness.meters import package_joules
from harness.metrics import METRICS
from harness.plan import Job, Step
from harness.sampling import REAL_RECORD
from harness.score import CONTROL_RECORD
from harness.set_measures import describe
from harness.store import SCHEMA
from harness.suite import Speed, Suite
from harness.uncertainty import describe_uncertainty

Size = tuple[int, int]
"""Height and width in pixels."""


def now() -> str:
    """The time in UTC, to the second."""
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")


def continued(before: dict[str, Any] | None, record: dict[str, Any]) -> dict[str, Any]:
    """What a record takes over from an earlier attempt: when it all started, and each attempt's command and code."""
    attempt = {"started": record["started"], "command": record["command"], "git": record["environment"]["git"]}
    earlier = (before or {}).get("attempts", [])
    return {"started": (before or record)["started"], "attempts": [*earlier, attempt][-50:]}


def new_record(
    job: Job, dataset: Dataset, dataset_sha256: str, images: pd.DataFrame, steps: Sequence[Step]
) -> dict[str, Any]:
    """The record of a run that starts, before any backend is opened."""
    instruments = describe_instruments(job.suite)
    return {
        "schema": SCHEMA,
        "harness_version": __version__,
        "command": job.command,
        "status": "running",
        "started": now(),
        "finished": None,
        "suite": _suite(job.suite),
        "dataset": _dataset(dataset, dataset_sha256, images),
        "backends": _controls(job.suite),
        "metrics": {name: _metric(name) for name in METRICS if any(name in step.metrics for step in steps)},
        "diversity": DIVERSITY if job.suite.diversity else {},
        "set_metrics": describe(job.suite),
        "instruments": instruments,
        "measures": describe_measures(instruments) | describe_split(job.suite),
        "uncertainty": describe_uncertainty(job.suite, dataset),
        "generation": _generation(job.suite),
        "speed": _speed(job.suite.speed),
        "environment": environment.describe(),
        "warnings": [],
    }


def _controls(suite: Suite) -> list[dict[str, Any]]:
    """The control arms that are no servers."""
    if suite.generation:
        return [REAL_RECORD]
    return [CONTROL_RECORD] if suite.reference else []


def usual_size(sizes: Iterable[Size]) -> Size:
    """The size that most inputs have, the smallest among equals: the timed pass uses it, for a request holds one."""
    count = Counter(sizes)
    return min(count, key=lambda size: (-count[size], size[0] * size[1], size))


def input_sizes(sizes: Collection[Size]) -> dict[str, Any]:
    """What the record says of the sizes of the inputs; texts are WIDTH x HEIGHT.

    `columns` are those of `harness.corruptions.SEVERITIES` that fit them. Nothing where there are none.
    """
    if not sizes:
        return {}
    ordered = sorted(set(sizes), key=lambda size: (size[0] * size[1], size))
    named = {"smallest": ordered[0], "largest": ordered[-1], "timed": usual_size(sizes)}
    columns = sorted({column_of(max(size)) for size in ordered})
    texts = {name: f"{width} x {height}" for name, (height, width) in named.items()}
    return {"sizes": len(ordered), "columns": columns} | texts


def _suite(suite: Suite) -> dict[str, Any]:
    content = suite.model_dump(mode="json")
    return {"name": suite.name, "title": suite.title, "sha256": suite.sha256, "content": content}


INPUTS = (
    "the dataset's photos, cut to their centre square and resized to each size by the one resize; smaller ones are "
    "enlarged, since what a picture shows does not change how long a network takes"
)


def _speed(speed: Speed | None) -> dict[str, Any] | None:
    """What the timed passes sent, and how their energy is found."""
    if speed is None:
        return None
    watts = f"{speed.watts_per_core:g} W"
    estimate = f"estimate: processor seconds of the backend's process x {watts} a core (assumed), by image"
    counters = "joules that the whole processor used during the pass, whoever used them, by image"
    measured = not math.isnan(package_joules())
    return {"inputs": INPUTS, "energy": f"measured: {counters}" if measured else estimate}


def _generation(suite: Suite) -> dict[str, Any]:
    """What measures generated images, and the recipe of the classifier that learns from them."""
    part = suite.generation
    return describe_generation(suite) | ({"classifier": RECIPE} if part and part.classification else {})


def _metric(name: str) -> dict[str, Any]:
    metric = METRICS[name]
    return {
        "title": metric.title,
        "unit": metric.unit,
        "higher_is_better": metric.higher_is_better,
        "recipe": metric.recipe,
    }


def _dataset(dataset: Dataset, dataset_sha256: str, images: pd.DataFrame) -> dict[str, Any]:
    unusable = images.loc[images["error"] != "", "error"]
    notes = [*dataset.notes, *(f"left out: {text}" for text in unusable.head(20))]
    if len(unusable):
        more = "; the first 20 are named, all are in images.parquet" if len(unusable) > 20 else ""
        notes.insert(0, f"{len(unusable)} of {len(images)} images left out because they could not be used{more}")
    return {
        "spec": dataset.spec,
        "name": dataset.name,
        "sha256": dataset_sha256,
        "licence": dataset.licence,
        "demonstration": dataset.demonstration,
        "images": len(images) - len(unusable),
        "notes": notes,
        "age_rule": AGE_RULE,
    }
