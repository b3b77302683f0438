"""What the stages of a chain made, stage by stage: rows of their time, and how good what they hand on is.

Rows of a stage carry its number and name in `stage`, its own seed and its own scale. What a stage other than the last
made of a clean input is kept beside the output and scored against the ground truth at its size.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from rich.progress import Progress

from harness.chain import stage_seed
from harness.degrade import make_input
from harness.images import load
from harness.metrics import METRICS, score
from harness.plan import CLEAN
from harness.score import BATCH, identity, image_labels, scale_of, stored_outputs
from harness.scores import Scores, mean_interval
from harness.session import Passage
from harness.speed_tables import steps
from harness.store import Row, RunFolder, is_whole, read_table

COMPUTE, STEPS = "stage_compute_s", "stage_steps"
QUALITY = {"psnr": "stage_psnr", "lpips_alex": "stage_lpips_alex"}
"""The metrics that what a stage hands on is scored by, where the suite has them, and the metrics of their rows."""
KEY = ("backend", "digest", "options", "stage")


def stage_rows(backend: dict[str, Any], seed: int, passages: Sequence[Passage]) -> Iterator[Row]:
    """The time and the steps of each stage for one image; `backend` is an entry of the run record: of a chain."""
    for place, (stage, passage) in enumerate(zip(backend.get("stages", ()), passages, strict=False)):
        who = {"stage": stage["stage"], "scale": stage["scale"], "seed": stage_seed(seed, place)}
        yield who | {"metric": COMPUTE, "value": passage.compute_s, "unit": "s"}
        yield who | {"metric": STEPS, "value": steps(stage)}


def generation_rows(backend: dict[str, Any], seed: int, passages: Sequence[Passage]) -> Iterator[Row]:
    """As `stage_rows` for a generated image; a backend that is no chain has one row, of no stage."""
    if backend.get("stages"):
        yield from stage_rows(backend, seed, passages)
    else:
        yield {"metric": COMPUTE, "value": passages[-1].compute_s, "unit": "s"}


def handed_on(output: Path, number: int) -> Path:
    """Where what a stage, counted from 1, made on the way to an output lies."""
    return output.parent / f"stage-{number}" / output.name


def measure_stages(folder: RunFolder, progress: Progress) -> None:
    """Score what the stages of chains have handed on, where that is not done yet."""
    record = folder.read_record() or {}
    names = [name for name in QUALITY if name in record["suite"]["content"]["metrics"]]
    chains = [backend for backend in record["backends"] if backend.get("stages")]
    if not (names and chains and (folder.path / "targets").exists()):
        return
    images = read_table(folder.path / "images.parquet")
    labels = image_labels(images)
    for backend in chains:
        outputs = stored_outputs(folder, images, backend, CLEAN, scale_of(record))
        who = identity(backend, record["dataset"]["spec"]) | {"condition": CLEAN.name}
        task = progress.add_task(f"{backend['label']}: stages", total=len(backend["stages"]) - 1)
        for number, stage in enumerate(backend["stages"][:-1], 1):
            where = who | {"stage": stage["stage"], "scale": stage["scale"]}
            left = _unscored(folder, where, {image: handed_on(output, number) for image, output in outputs.items()})
            for start in range(0, len(left), BATCH):
                scored = _scored(folder, names, left[start : start + BATCH])
                folder.append([where | labels[row["image"]] | row for row in scored])
            progress.advance(task)


def _unscored(folder: RunFolder, where: Row, files: dict[str, Path]) -> list[tuple[str, Path]]:
    """The files that are there and have no row yet."""
    rows = folder.rows("part")
    mine = (rows[[*KEY]] == [where[k] for k in KEY]).all(axis=1) & rows["metric"].isin(QUALITY.values())
    done = set(rows.loc[mine, "image"])
    return [(image, file) for image, file in files.items() if image not in done and is_whole(file)]


def _scored(folder: RunFolder, names: Sequence[str], files: list[tuple[str, Path]]) -> Iterator[Row]:
    """Rows of images of one size."""
    outputs = np.stack([load(file) for _, file in files])
    targets = np.stack([make_input(load(folder.target(image)), outputs.shape[1]) for image, _ in files])
    for name in names:
        for (image, _), value in zip(files, score(name, outputs, targets, targets, 1), strict=True):
            error = "too small for this metric" if np.isnan(value) else ""
            what = {"metric": QUALITY[name], "value": float(value), "unit": METRICS[name].unit, "error": error}
            yield {"image": image} | what


def stage_table(scores: Scores) -> Iterator[dict[str, Any]]:
    """One row per chain and stage: its steps, output size, time an image, share of the time, and quality."""
    for backend in scores.record["backends"]:
        mine = scores.rows[scores.rows["backend"] == backend["label"]]
        stages = backend.get("stages") or []
        side, times = _first_side(scores, stages), compute_times(mine)
        for number, stage in enumerate(stages, 1):
            side *= stage["scale"]
            yield {
                "backend": backend["label"],
                "stage": number,
                "name": stage["label"],
                "model": stage["name"],
                "scale": stage["scale"],
                "output_px": side,
                "steps": steps(stage),
                **_time(times, stage["stage"]),
                **_quality(scores, backend["label"], mine[mine["stage"] == stage["stage"]], last=number == len(stages)),
            }


def compute_times(mine: pd.DataFrame) -> pd.DataFrame:
    """Output x stage table of a backend's compute seconds, whatever the outputs were made of."""
    key = ["condition", "severity", "image", "sample", "stage"]
    seconds = mine[mine["metric"] == COMPUTE].drop_duplicates(key, keep="last")
    return seconds.pivot(index=key[:-1], columns="stage", values="value")  # noqa: PD010 - pivot_table drops NaN in a key, which generated images have


def _time(times: pd.DataFrame, stage: str) -> dict[str, float]:
    """The time of a stage, and its share of all stages' time; NaN where no output was made with its times kept."""
    seconds = times[stage] if stage in times else pd.Series(dtype=float)
    total = times.to_numpy().sum()
    share = seconds.sum() / total if total else np.nan
    return {"n": len(seconds), "compute_p50": seconds.median(), "compute_mean": seconds.mean(), "share": share}


def _first_side(scores: Scores, stages: Sequence[dict[str, Any]]) -> float:
    """The side in pixels of what the first stage enlarges, or makes; NaN where inputs have many sizes."""
    low = scores.record["suite"]["content"].get("low")
    return float(low or (stages[0]["generated_size"] if stages else 0) or np.nan)


def _quality(scores: Scores, label: str, mine: pd.DataFrame, *, last: bool) -> dict[str, float]:
    """Mean scores with intervals; those of the last stage are the chain's own."""
    found: dict[str, float] = {}
    for metric, stored in QUALITY.items():
        table = scores.values(metric) if last else mine[mine["metric"] == stored].rename(columns={"value": label})
        values = table[label].dropna().to_numpy(float) if label in table else np.empty(0)
        short = metric.removesuffix("_alex")
        found |= {{"mean": short}.get(k, f"{short}_{k}"): v for k, v in mean_interval(values).items()}
    return found
