"""Uncertainty: whether the outputs of one input differ where they are wrong, and a band that holds the truth.

Of K outputs of an input, m is the mean and s the standard deviation at every pixel and channel. A band is m - q w to
m + q w, with w = s + `LEAST` ("spread") or w = 1 level everywhere ("constant"), which is all that a deterministic
backend can have. It holds an image if it holds `PART` of its values, so the score of an image is that quantile of
|truth - m| / w, and q comes from calibration images by split conformal prediction (Vovk et al. 2005; Angelopoulos and
Bates 2023, "Conformal Prediction: A Gentle Introduction", section 1): of n scores, the one of rank ceil((n + 1) c).

The unit is the image. Where images are exchangeable, the number of m test images that are held is beta-binomial with
a = rank and b = n + 1 - rank (Vovk 2012, "Conditional validity of inductive conformal predictors"), whatever the
backend: so the coverage tells whether calibration carries over, and the width what the band is worth.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.progress import Progress

from harness.datasets import UNKNOWN, Dataset
from harness.degrade import seed_of
from harness.diversity import stored_samples
from harness.errors import StoreError
from harness.images import load
from harness.plan import CLEAN, images_of
from harness.score import CONTROL, identity, image_labels, scale_of
from harness.scores import Scores, mean_interval
from harness.statistics import INSUFFICIENT
from harness.store import Row, RunFolder, read_table
from harness.suite import Suite

Float = NDArray[np.float64]
Pixels = NDArray[np.uint8]

LEAST = 1.0
"""Levels added to the standard deviation: as fine as 8 bits and a few samples can tell."""
PART = 0.95
"""Share of an image's values that a band must hold."""
RECIPE = f"bands of {PART:g} of an image's values, split conformal over images, {LEAST:g} level added to the deviation"
SPREAD, CONSTANT = "spread", "constant"
KEY = ["backend", "digest", "options", "image"]
ONE_OUTPUT = "not available: one output for all seeds"
BATCH = 16


def describe_uncertainty(suite: Suite, dataset: Dataset) -> dict[str, Any]:
    """For the run record: the recipe, and the images that are used of stochastic and deterministic backends alike."""
    if suite.uncertainty is None:
        return {}
    return {"recipe": RECIPE, "images": list(images_of(suite, dataset, suite.uncertainty.images))}


# One image


def deviation(outputs: Pixels) -> Float:
    """Standard deviation over K outputs (K, H, W, 3) of an input, in levels: (H, W, 3); K is at least 2."""
    sd: Float = outputs.std(axis=0, ddof=1)
    return sd


def figures(outputs: Pixels, truth: Pixels) -> dict[str, float]:
    """What is stored of one image, from its (K, H, W, 3) outputs and its (H, W, 3) truth.

    band_constant   score for the constant band, in levels
    band_spread     score for the band that follows the deviation
    spread          mean of s + `LEAST`, in levels
    spread_rank     rank correlation of s and |truth - m| over the values; NaN where one of them is the same everywhere

    Only the first of a single output.
    """
    error = np.abs(truth - outputs.mean(axis=0))
    found = {"band_constant": _part(error)}
    if len(outputs) > 1:
        sd = deviation(outputs)
        found |= {"band_spread": _part(error / (sd + LEAST)), "spread": float(sd.mean() + LEAST)}
        found |= {"spread_rank": _rank_correlation(sd, error)}
    return found


def _part(ratios: Float) -> float:
    """The smallest value that `PART` of them do not exceed."""
    return float(np.quantile(ratios, PART, method="inverted_cdf"))


def _rank_correlation(first: Float, second: Float) -> float:
    from scipy.stats import spearmanr

    if not (np.ptp(first) and np.ptp(second)):
        return math.nan
    return float(spearmanr(first, second, axis=None).statistic)


# Calibration


class Expected(NamedTuple):
    """The expected share of test images that a band holds, and the range of 95 % of test sets of this size."""

    share: float
    low: float
    high: float


def rank_of(n: int, coverage: float) -> int:
    """Which of n calibration scores, from 1 on, a band must reach; more than n where they are too few."""
    return math.ceil((n + 1) * coverage - 1e-9)


def threshold(scores: Float, coverage: float) -> float:
    """The score that a band must reach to hold `coverage` of the images; NaN from too few calibration scores."""
    rank = rank_of(len(scores), coverage)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else math.nan


def expected_coverage(calibration: int, test: int, coverage: float) -> Expected:
    """What holds for exchangeable images, by the beta-binomial distribution; NaN from too few calibration images."""
    from scipy.stats import betabinom

    rank = rank_of(calibration, coverage)
    if rank > calibration or not test:
        return Expected(math.nan, math.nan, math.nan)
    held = betabinom(test, rank, calibration + 1 - rank)
    return Expected(rank / (calibration + 1), float(held.ppf(0.025)) / test, float(held.ppf(0.975)) / test)


def calibrates(seed: int) -> bool:
    """Whether the image of this seed is one of the half that calibrates."""
    return seed_of(seed, "calibration") % 2 == 0


# Rows


def measure_uncertainty(folder: RunFolder, progress: Progress) -> None:
    """Append the figures of each image whose samples are all stored and that has none yet.

    Raises:
        StoreError: the run's figures follow another recipe than this version's.
    """
    record = folder.read_record() or {}
    about, part = record.get("uncertainty"), record["suite"]["content"].get("uncertainty")
    if not about:
        return
    if about["recipe"] != RECIPE:
        raise StoreError(f"{folder.path}: {RECIPE} is not this run's recipe; run again into another --output")
    images = read_table(folder.path / "images.parquet")
    labels, images = image_labels(images), images[images["image"].isin(about["images"])]
    rows = folder.rows("part")
    done = set(rows.loc[rows["metric"] == "band_constant", KEY].itertuples(index=False, name=None))
    for backend in (b for b in record["backends"] if b["label"] != CONTROL):
        who = identity(backend, record["dataset"]["spec"])
        common = who | {"condition": CLEAN.name, "scale": scale_of(record)}
        stored = stored_samples(folder, record, backend, images, 1 if backend["deterministic"] else part["samples"])
        pending = [image for image in stored if (*(who[k] for k in KEY[:3]), image) not in done]
        task = progress.add_task(f"{backend['label']}: uncertainty", total=len(pending))
        for start in range(0, len(pending), BATCH):
            batch = pending[start : start + BATCH]
            folder.append([common | labels[i] | row for i in batch for row in _rows(folder, i, stored[i])])
            progress.advance(task, len(batch))


def _rows(folder: RunFolder, image: str, files: list[Any]) -> Iterator[Row]:
    found = figures(np.stack([load(file) for file in files]), load(folder.target(image)))
    for metric, value in found.items():
        error = "the same everywhere" if math.isnan(value) else ""
        yield {"image": image, "metric": metric, "value": value, "error": error}


# The table


def uncertainty_rows(scores: Scores) -> Iterator[Row]:
    """For each backend and band: the coverage on the test half, in all and by group, and the width."""
    if not scores.record.get("uncertainty"):
        return
    for backend in scores.record["backends"]:
        if backend["label"] == CONTROL or backend["status"] != "ok":
            continue
        mine = _images_of(scores, backend["label"])
        for band in (SPREAD, CONSTANT):
            who = {"backend": backend["label"], "band": band}
            if band == SPREAD and backend["deterministic"]:
                yield who | {"attribute": "all", "group": "all", "calibration": 0, "n": 0} | _untold(ONE_OUTPUT)
            else:
                yield from (who | row for row in _band(scores, mine, band))


def _images_of(scores: Scores, label: str) -> pd.DataFrame:
    """Image x figure of a backend; of several images with one seed, which are one unit, the first."""
    rows = scores.rows[(scores.rows["backend"] == label) & (scores.rows["condition"] == CLEAN.name)]
    table = rows.pivot_table(index="image", columns="metric", values="value", aggfunc="first", dropna=False)
    units = scores.images.drop_duplicates("seed").set_index("image")["seed"]
    wanted = ["band_constant", "band_spread", "spread", "spread_rank"]
    table = table.reindex(columns=wanted, index=units.index.intersection(table.index))
    return table.assign(calibrates=[calibrates(int(seed)) for seed in units[table.index]])


def _band(scores: Scores, images: pd.DataFrame, band: str) -> Iterator[Row]:
    coverage = scores.record["suite"]["content"]["uncertainty"]["coverage"]
    images = images[images[f"band_{band}"].notna()]
    calibration, test = images[images["calibrates"]], images[~images["calibrates"]]
    q = threshold(calibration[f"band_{band}"].to_numpy(float), coverage)
    width = 2 * q * (test["spread"] if band == SPREAD else pd.Series(1.0, test.index))
    rank = test["spread_rank"] if band == SPREAD else pd.Series(np.nan, test.index)
    found = pd.DataFrame({"held": test[f"band_{band}"] <= q, "width": width, "correlation": rank})
    for attribute, group, members in [("all", "all", test.index), *_groups(scores, test.index)]:
        who = {"attribute": attribute, "group": group, "calibration": len(calibration), "n": len(members)}
        few = "fewer than 30 test images" if len(members) < INSUFFICIENT else ""
        few = few or ("too few images to calibrate" if math.isnan(q) or not len(members) else "")
        expected = expected_coverage(len(calibration), len(members), coverage)
        yield who | (_untold(few) if few else {"factor": q} | _judged(found.loc[members], expected))


def _groups(scores: Scores, images: pd.Index) -> Iterator[tuple[str, str, pd.Index]]:
    for attribute in scores.attributes:
        groups = scores.groups_of(attribute).reindex(images)
        for group in sorted(set(groups) - {UNKNOWN}):
            yield attribute, str(group), images[(groups == group).to_numpy()]


def _judged(found: pd.DataFrame, expected: Expected) -> Row:
    share = float(found["held"].mean())
    word = "too low" if share < expected.low else "too high" if share > expected.high else "holds"
    row: Row = {"coverage": share, "verdict": word, "note": ""}
    row |= {"expected": expected.share, "expected_low": expected.low, "expected_high": expected.high}
    for name in ("width", "correlation"):
        known = mean_interval(found[name].dropna().to_numpy(float))
        row |= {name: known["mean"], f"{name}_low": known["low"], f"{name}_high": known["high"]}
    return row


def _untold(note: str) -> Row:
    return {"verdict": "not measured", "note": note}
