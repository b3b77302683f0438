"""Hallucination: what an output adds that is not there, what it leaves out, and what it gets right.

The triplet of opensr-test (Aybar et al. 2024, "A Comprehensive Benchmark for Optical Remote Sensing Image
Super-Resolution"), carried over to photos. With a distance d at every pixel, SR the output, HR the truth and LR the
input enlarged by bicubic:

    D = max(d(LR, HR), least),  im = d(SR, HR) / D,  om = d(SR, LR) / D,  H = im + om - 1
    improvement      im + om (1 - exp(-0.8 H))      0 where the output is the truth
    omission         om + im (1 - exp(-0.8 H))      0 where the output is the enlarged input
    hallucination    exp(-0.4 im om)                small where the output is far from both

The weights of a pixel are the soft-min of the three, so they sum to 1; a share of an image is the mean weight over the
pixels where any of the three distances reaches `least`. The constants are those of opensr-test 1.3.3's functions. Ours
are the distances, `least` as a floor under D, and that outputs are compared as they are: a shifted or tinted output is
not brought into line first. docs/hallucination.md says what the shares can and cannot tell.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.progress import Progress

from harness.errors import StoreError
from harness.fairness.inference import wilson
from harness.images import load
from harness.metrics import METRICS, Images, lpips_map
from harness.plan import CLEAN
from harness.resize import resize, to_uint8
from harness.score import BATCH, BATCH_PIXELS, CONTROL, identity, image_labels, stored_outputs
from harness.scores import Scores, mean_interval
from harness.store import Row, RunFolder, equal_sizes, read_table
from harness.suite import Suite, stored_suite

Float = NDArray[np.float64]

BEYOND, BOTH = 0.8, 0.4
"""How fast what is beyond the line from input to truth counts, and what is far from both."""
TEMPERATURE = 0.25
GOAL = 45.0
"""Consistency in dB that an output should reach (NTIRE 2021, "Learning the Super-Resolution Space")."""
KINDS = ("hallucination", "omission", "improvement")
UNIT = "share"
NOTHING_TO_TELL = "nothing differs by enough to tell"
RECIPE = f"split of opensr-test, {BEYOND:g} and {BOTH:g}, soft-min at temperature {TEMPERATURE:g}, outputs as they are"
KEY = ["backend", "digest", "options", "image"]


@dataclass(frozen=True)
class Distance:
    """A distance of two batches of images at every pixel: two (N, H, W, 3) to (N, H, W).

    Below `least` two pixels count as equal: it is what saving as JPEG of quality 75 changes at most in 95 % of the
    pixels of faces of 64 x 64.
    """

    title: str
    recipe: str
    least: float
    between: Callable[[Images, Images], Float]


class Split(NamedTuple):
    """The weights of the three kinds, (3, N, H, W) in the order of `KINDS`, and the pixels that count, (N, H, W)."""

    weights: Float
    counted: NDArray[np.bool_]

    def shares(self) -> Float:
        """Mean weights of each image, (3, N); NaN where no pixel counts."""
        n = self.counted.sum(axis=(1, 2))
        sums = (self.weights * self.counted).sum(axis=(2, 3))
        means: Float = np.divide(sums, n, out=np.full(sums.shape, np.nan), where=n > 0)
        return means


def _l1(first: Images, second: Images) -> Float:
    distance: Float = np.abs(first.astype(np.float64) - second).mean(axis=-1)
    return distance


def _root_lpips(first: Images, second: Images) -> Float:
    """LPIPS sums squares; its root is a metric, as H >= 0 takes for granted."""
    distance: Float = np.sqrt(lpips_map(first, second))
    return distance


DISTANCES = {
    "lpips": Distance(
        "patches", f"square root of the map of LPIPS at every pixel; {METRICS['lpips_alex'].recipe}", 0.08, _root_lpips
    ),
    "l1": Distance("pixels", "mean absolute difference of R, G and B in levels of 255", 7.0, _l1),
}


def enlarged(inputs: Images, scale: int) -> Images:
    """(N, h, w, 3) inputs made larger by bicubic and rounded to 8 bit: what the input alone shows."""
    _, height, width, _ = inputs.shape
    return to_uint8(resize(inputs.astype(np.float64), height * scale, width * scale))


def split(distance: Distance, outputs: Images, targets: Images, plain: Images) -> Split:
    """The weights at every pixel of (N, H, W, 3) outputs, their truths, and the enlarged inputs `plain`."""
    between = distance.between(plain, targets), distance.between(outputs, targets), distance.between(outputs, plain)
    reference = np.maximum(between[0], distance.least)
    im, om = between[1] / reference, between[2] / reference
    beyond = -np.expm1(-BEYOND * (im + om - 1))
    far = np.stack([np.exp(-BOTH * im * om), om + im * beyond, im + om * beyond])
    weights = np.exp(-(far - far.min(axis=0)) / TEMPERATURE)
    return Split(weights / weights.sum(axis=0), np.max(between, axis=0) >= distance.least)


# Rows


def describe_split(suite: Suite) -> dict[str, dict[str, Any]]:
    """For the run record: title, unit, direction and recipe of each share that the suite asks for, by metric."""
    names = suite.hallucination.distances if suite.hallucination else ()
    return {
        f"{kind}_{name}": {
            "title": f"{kind.title()} ({DISTANCES[name].title})",
            "unit": UNIT,
            "higher_is_better": kind == "improvement",
            "recipe": f"{RECIPE}; from {DISTANCES[name].least:g} on, {DISTANCES[name].recipe}",
        }
        for name in names
        for kind in KINDS
    }


def measure_hallucination(folder: RunFolder, progress: Progress) -> None:
    """Append the shares of every clean output that has none yet.

    Raises:
        StoreError: the run's shares follow another recipe than this version's.
        WeightsError: LPIPS is asked for and its network is not to be had.
    """
    record = folder.read_record() or {}
    suite = stored_suite(record)
    metrics = describe_split(suite)
    if not metrics:
        return
    if any(record["measures"].get(metric) != about for metric, about in metrics.items()):
        raise StoreError(f"{folder.path}: {RECIPE} is not this run's recipe; run again into another --output")
    images, rows = read_table(folder.path / "images.parquet"), folder.rows("part")
    done = set(rows.loc[rows["metric"].isin(metrics), KEY].itertuples(index=False, name=None))
    labels, task = image_labels(images), progress.add_task("hallucination", total=len(record["backends"]))
    for backend in record["backends"]:
        who = identity(backend, record["dataset"]["spec"])
        common = who | {"condition": CLEAN.name, "scale": suite.scale, "unit": UNIT}
        stored = stored_outputs(folder, images, backend, CLEAN, suite.scale)
        pending = [(i, path) for i, path in stored.items() if (*(who[k] for k in KEY[:3]), i) not in done]
        for batch in equal_sizes(pending, BATCH, BATCH_PIXELS):
            folder.append([common | labels[row["image"]] | row for row in _rows(folder, suite, batch)])
        progress.advance(task)


def _rows(folder: RunFolder, suite: Suite, batch: list[tuple[str, Path]]) -> Iterator[Row]:
    """All rows of a batch of outputs: they are appended together, so one of them says that all are there."""
    names = [image for image, _ in batch]
    pictures = triplet(folder, names, [path for _, path in batch], suite.scale)
    for name in suite.hallucination.distances if suite.hallucination else ():
        shares = split(DISTANCES[name], *pictures).shares()
        for kind, values in zip(KINDS, shares, strict=True):
            for image, value in zip(names, values, strict=True):
                error = "" if np.isfinite(value) else NOTHING_TO_TELL
                yield {"image": image, "metric": f"{kind}_{name}", "value": float(value), "error": error}


def triplet(folder: RunFolder, images: list[str], outputs: list[Path], scale: int) -> tuple[Images, Images, Images]:
    """The outputs in these files, the truths of these images, and their inputs enlarged: (N, H, W, 3) each."""
    inputs = np.stack([load(folder.input(CLEAN.folder, image)) for image in images])
    targets = np.stack([load(folder.target(image)) for image in images])
    return np.stack([load(path) for path in outputs]), targets, enlarged(inputs, scale)


# The table


def hallucination_rows(scores: Scores) -> Iterator[Row]:
    """For each backend its consistency with the input, how often that is below the goal, and its shares."""
    metrics = [metric for metric in scores.measures if metric.partition("_")[0] in KINDS]
    for label in scores.labels if metrics else ():
        yield from ({"backend": label, **row} for row in _consistency(scores, label))
        yield from ({"backend": label, "measure": m} | _mean(_of(scores, m, label)) for m in metrics)


def _consistency(scores: Scores, label: str) -> Iterator[Row]:
    """LR-PSNR, its lowest percent, and the share of images under `GOAL`, or under what the truth itself reaches."""
    values, floor = _of(scores, "lr_psnr", label), _of(scores, "lr_psnr", CONTROL)
    n, missed = len(values), int((values < floor.reindex(values.index).fillna(GOAL).clip(upper=GOAL)).sum())
    yield {"measure": "lr_psnr"} | _mean(values)
    lowest = float(np.percentile(values, 1, method="lower")) if n else np.nan
    note = "the lowest: fewer than 100 images" if n < 100 else ""
    yield {"measure": "lr_psnr_p01", "n": n, "value": lowest, "low": np.nan, "high": np.nan, "note": note}
    low, high = wilson(missed, n)
    share = missed / n if n else np.nan
    yield {"measure": "below_goal", "n": n, "value": share, "low": low, "high": high, "note": f"goal {GOAL:g} dB"}


def _mean(values: "pd.Series[float]") -> Row:
    known = mean_interval(np.asarray(values, np.float64))
    return {"n": len(values), "value": known["mean"], "low": known["low"], "high": known["high"], "note": ""}


def _of(scores: Scores, metric: str, label: str) -> "pd.Series[float]":
    table = scores.values(metric)
    return table[label].dropna() if label in table else pd.Series(dtype=float)
