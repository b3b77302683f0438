"""Diversity: how far the outputs of a stochastic backend for one input differ when only the seed does.

The measure is the mean LPIPS over all pairs of the outputs of one input (Zhu et al. 2017, "Toward multimodal
image-to-image translation", section 5). It needs no ground truth, and more of it is neither better nor worse: what an
input does not settle an upscaler has to invent, and diversity shows how much that is.

Where there is a ground truth, the best of the first k outputs says whether diversity comes near it: `best_of` is the
mean over images of the smallest LPIPS to the target among them.
"""

from collections.abc import Iterator, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.progress import Progress

from harness.degrade import sample_seed
from harness.images import load
from harness.metrics import METRICS, score
from harness.plan import CLEAN
from harness.score import identity, image_labels, output_path, scale_of
from harness.statistics import mean_intervals
from harness.store import Row, RunFolder, is_whole, read_table

DIVERSITY = {
    "name": "diversity",
    "title": "Diversity (LPIPS, AlexNet)",
    "recipe": f"mean over all pairs of the outputs of one input under several seeds; {METRICS['lpips_alex'].recipe}",
}
"""The metric of its rows, and what the run record says of it."""
SAMPLE_LPIPS = "sample_lpips"
"""The metric of the rows that compare each of several outputs with the target."""
BATCH = 16
KEY = ["backend", "digest", "options", "image"]


def pairwise_lpips(images: NDArray[np.uint8]) -> float:
    """Mean LPIPS (AlexNet) over all pairs of (K, H, W, 3) images, K at least 2; NaN for images too small for it."""
    first, second = (list(side) for side in zip(*combinations(range(len(images)), 2), strict=True))
    return float(score("lpips_alex", images[first], images[second], images[second], 1).mean())


def measure_diversity(folder: RunFolder, progress: Progress) -> None:
    """Append a row for each input whose samples are all stored and that has none yet."""
    record = folder.read_record() or {}
    if not record["suite"]["content"].get("diversity"):
        return
    images = read_table(folder.path / "images.parquet")
    labels = image_labels(images)
    rows = folder.rows("part")
    done = set(rows.loc[rows["metric"] == DIVERSITY["name"], KEY].itertuples(index=False, name=None))
    for backend in record["backends"]:
        who = identity(backend, record["dataset"]["spec"])
        count = record["suite"]["content"]["diversity"]["samples"]
        stored = {} if backend["deterministic"] else stored_samples(folder, record, backend, images, count)
        pending = [image for image in stored if (*(who[k] for k in KEY[:3]), image) not in done]
        common = who | {"condition": CLEAN.name, "scale": scale_of(record), "metric": DIVERSITY["name"]}
        task = progress.add_task(f"{backend['label']}: diversity", total=len(pending))
        for start in range(0, len(pending), BATCH):
            batch = pending[start : start + BATCH]
            folder.append(
                [
                    common | labels[image] | {"image": image} | row
                    for image in batch
                    for row in _figures(stored[image], folder.target(image))
                ]
            )
            progress.advance(task, len(batch))


def stored_samples(
    folder: RunFolder, record: dict[str, Any], backend: dict[str, Any], images: pd.DataFrame, samples: int
) -> dict[str, list[Path]]:
    """The files of the first so many outputs of each input that has them all, by image."""
    scale, found = scale_of(record), {}
    for image, seed in images.loc[images["error"] == "", ["image", "seed"]].itertuples(index=False):
        seeds = [sample_seed(int(seed), sample) for sample in range(samples)]
        paths = [output_path(folder, backend, CLEAN, str(image), s, scale) for s in seeds]
        whole = [path for path in paths if path is not None and is_whole(path)]
        if len(whole) == len(paths):
            found[str(image)] = whole
    return found


def _figures(files: list[Path], target: Path) -> Iterator[Row]:
    """The row of diversity, and where there is a target, one for each output."""
    images = np.stack([load(file) for file in files])
    value = pairwise_lpips(images)
    yield {"value": value, "error": "too small for this metric" if np.isnan(value) else ""}
    if target.exists():
        truth = np.broadcast_to(load(target), images.shape)
        for sample, distance in enumerate(score("lpips_alex", images, truth, truth, 1)):
            yield {"metric": SAMPLE_LPIPS, "sample": sample, "value": float(distance)}


def best_of(rows: pd.DataFrame, labels: Sequence[str]) -> Iterator[Row]:
    """For each backend and k the mean LPIPS to the target of the best of the first k outputs, from the rows of a run.

    The interval covers the images, for the seeds as they are.
    """
    mine = rows[(rows["metric"] == SAMPLE_LPIPS) & rows["value"].notna()]
    for label in labels:
        one = mine[mine["backend"] == label].pivot_table(index="image", columns="sample", values="value").dropna()
        best = np.minimum.accumulate(one.to_numpy(float), axis=1)
        for k, (mean, low, high) in enumerate(mean_intervals(best) if len(best) else [], 1):
            yield {"backend": label, "k": k, "n": len(best), "value": mean, "low": low, "high": high}
