"""How often the audit's tests find what is not there, as Markdown: `python -m benchmarks.calibration DATASET`.

DATASET is one of `harness.datasets`, with race, gender and age, not a test split. Its photos are enlarged by bicubic
and scored by PSNR; then the scores are shuffled over the labels, so that no group differs but by chance. Beside ours
stands the chi-squared test of Lasz et al. (2024). Exit status 1 when one of ours is not within `ALLOWED`.
"""

import argparse
import gc
import sys
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import chi2_contingency

from benchmarks.enlarged import enlarge
from harness.datasets import UNKNOWN, open_dataset
from harness.errors import ConfigError, HarnessError
from harness.fairness.inference import (
    LEVEL,
    any_difference,
    contrasts,
    equivalent,
    goodness_of_fit,
    holm,
    homogeneity,
    scan,
)
from harness.statistics import INSUFFICIENT

Float = NDArray[np.float64]
Check = Callable[[Float], bool]

SHUFFLES = 2000
ALLOWED = (0.03, 0.07)
ATTRIBUTES = ["race", "gender", "age"]
CROSSED = "race x gender"

GROUPS, SIZE = 7, 200
"""The test set of Lasz et al. (2024): races, and images of each."""
RATES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9)
SEED = 20260110


def judged(values: Float, labels: pd.DataFrame) -> tuple[Float, pd.DataFrame]:
    """The photos of known race, gender and age whose race x gender has enough of them, and that crossed label."""
    labels = labels.assign(**{CROSSED: labels["race"] + " x " + labels["gender"]})
    sizes = labels.groupby(CROSSED)[CROSSED].transform("size")
    keep = (labels != UNKNOWN).all(axis=1) & (sizes >= INSUFFICIENT)
    if labels.loc[keep, "race"].nunique() < 2:
        raise ConfigError(f"fewer than two races have {INSUFFICIENT} labelled photos of one gender: take a larger set")
    return values[keep], labels[keep].reset_index(drop=True)


def checks(values: Float, labels: pd.DataFrame) -> dict[str, Check]:
    """The tests by name: each says of shuffled scores whether it would call them a finding."""
    race, crossed = labels["race"], labels[CROSSED]
    sizes = race.value_counts()
    lower, rare = np.quantile(values, [0.25, 0.02])
    rng = np.random.default_rng(SEED)
    return {
        "gap, race": lambda shuffled: _gap(shuffled, race),
        "gap, smallest race varies twice as much": lambda shuffled: _gap(
            _spread(shuffled, race, sizes.index[-1]), race
        ),
        f"gap, {CROSSED}": lambda shuffled: _gap(shuffled, crossed),
        "homogeneity, rate .25, race": lambda shuffled: _rates(shuffled < lower, race),
        f"homogeneity, rate .02, {CROSSED}": lambda shuffled: _rates(shuffled < rare, crossed),
        "goodness of fit, race": lambda _: _mix(rng, race, len(race)),
        f"goodness of fit, {CROSSED}, 50 images": lambda _: _mix(rng, crossed, 50),
        "contrasts after Holm, race": lambda shuffled: _contrasts(shuffled, race),
        f"contrasts after Holm, {CROSSED}": lambda shuffled: _contrasts(shuffled, crossed),
        "worst subgroup, race, gender, age": lambda shuffled: _scan(shuffled, labels[ATTRIBUTES]),
        "TOST, largest race": lambda shuffled: _at_margin(shuffled, race, sizes.index[0]),
        "TOST, smallest race": lambda shuffled: _at_margin(shuffled, race, sizes.index[-1]),
    }


def _gap(values: Float, groups: pd.Series) -> bool:
    return any_difference(values, list(groups)) < LEVEL


def _spread(values: Float, groups: pd.Series, group: str) -> Float:
    """The scores, those of one group twice as far from the mean of all."""
    mean = values.mean()
    spread: Float = mean + (values - mean) * np.where(groups == group, 2, 1)
    return spread


def _rates(hits: NDArray[np.bool_], groups: pd.Series) -> bool:
    table = pd.Series(hits).groupby(groups).agg(["sum", "size"])
    return homogeneity(table["sum"], table["size"]) < LEVEL


def _mix(rng: np.random.Generator, groups: pd.Series, n: int) -> bool:
    """Labels that an upscaler blind to its input would give `n` images, drawn from the true mix."""
    shares = groups.value_counts(normalize=True)
    return goodness_of_fit(rng.multinomial(n, shares), shares) < LEVEL


def _contrasts(values: Float, groups: pd.Series) -> bool:
    return bool(holm(np.array([c.p_value for c in contrasts(values, list(groups))])).min() < LEVEL)


def _scan(values: Float, labels: pd.DataFrame) -> bool:
    found = scan(values, labels)
    return found is not None and found.p_value < LEVEL


def _at_margin(values: Float, groups: pd.Series, group: str) -> bool:
    """Whether the group, moved by just the margin of one standard deviation, is called equivalent."""
    margin = float(values.std())
    moved = contrasts(values + margin * (groups == group).to_numpy(), list(groups))
    return equivalent([contrast for contrast in moved if contrast.group == group], margin)


def shares(values: Float, labels: pd.DataFrame, shuffles: int) -> dict[str, float]:
    """The share of shuffles in which each test finds something.

    The scores move and the labels stay: the draws of a permutation test are seeded, and differ only with the order of
    the scores. Labels that move would meet the same draws 2,000 times.
    """
    tests = checks(values, labels)
    rng = np.random.default_rng(SEED)
    found = dict.fromkeys(tests, 0)
    for _ in range(shuffles):
        shuffled = rng.permutation(values)
        for name, check in tests.items():
            found[name] += check(shuffled)
    return {name: count / shuffles for name, count in found.items()}


def published(counts: Sequence[int], n: int) -> float:
    """The p-value of Lasz et al. (2024): `counts` and equal counts as two random samples."""
    return float(chi2_contingency([counts, [n / len(counts)] * len(counts)]).pvalue)


def beside_published(trials: int) -> dict[str, tuple[float, float]]:
    """Shares of p < .05, theirs and ours, where all seven groups are alike: a rate in each, and the mix of labels."""
    rng = np.random.default_rng(SEED)
    n = GROUPS * SIZE
    rows = {}
    for rate in RATES:
        hits = rng.binomial(SIZE, rate, (trials, GROUPS))
        fictitious = (n * hits / hits.sum(axis=1, keepdims=True)).astype(int)
        theirs = [published(row, n) < LEVEL for row in fictitious]
        ours = [homogeneity(row, [SIZE] * GROUPS) < LEVEL for row in hits]
        rows[f"RDP, rate {rate}"] = float(np.mean(theirs)), float(np.mean(ours))
    counts = rng.multinomial(n, [1 / GROUPS] * GROUPS, trials)
    theirs = [published(row, n) < LEVEL for row in counts]
    ours = [goodness_of_fit(row, [1 / GROUPS] * GROUPS) < LEVEL for row in counts]
    return rows | {"PR": (float(np.mean(theirs)), float(np.mean(ours)))}


def main() -> int:
    """Print both tables; returns the exit status."""
    parser = argparse.ArgumentParser(description="False positives of the audit's tests, as Markdown.")
    parser.add_argument("dataset", help="KIND:PATH[#SPLIT], with race, gender and age")
    try:
        photos = enlarge(open_dataset(parser.parse_args().dataset))
        if missing := [name for name in ATTRIBUTES if name not in photos.labels]:
            raise ConfigError(f"the dataset has no labels of {', '.join(missing)}: take one that has")
        values, labels = judged(photos.psnr(), photos.labels[ATTRIBUTES])
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    gc.freeze()  # statsmodels collects garbage in every adjustment by Holm
    ours, beside = shares(values, labels, SHUFFLES), beside_published(SHUFFLES)
    print(f"{len(values)} photos, {SHUFFLES} shuffles:\n\n| test | false positives |\n| --- | --- |")
    print("\n".join(f"| {name} | {share:.3f} |" for name, share in ours.items()))
    print("\n| all groups alike | Lasz et al. | here |\n| --- | --- | --- |")
    print("\n".join(f"| {name} | {theirs:.4f} | {here:.3f} |" for name, (theirs, here) in beside.items()))
    low, high = ALLOWED
    return int(not all(low <= share <= high for share in [*ours.values(), *(here for _, here in beside.values())]))


if __name__ == "__main__":
    sys.exit(main())
