"""Fairness figures of published outputs against the published ones: `python -m benchmarks.fairness_published CSV...`.

CSV is a table of Lasz et al. 2024: a row for each of 1,400 faces, `race` what the face is, `race_recon` what their
classifier sees in the output; its name is one of `PUBLISHED`. Beside their chi2 test of each parity, which takes the
expectation for a second sample, and shares for counts, stands a valid one: homogeneity of the hit rates for RDP,
goodness of fit for PR. Exit status 1 when a figure is not the published one.

With `--predictions FILE`, what their classifier sees is written there as the suite published-fairness reads it; the
tables' names are then those of its backends.
"""

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.stats import chi2_contingency, chisquare

from harness.errors import ConfigError, HarnessError, one_line
from harness.fairness.parity import Parity, pr, rdp, turned_into, uniform

RACES = ("White", "Black", "East Asian", "Southeast Asian", "Indian", "Latino_Hispanic", "Middle Eastern")


@dataclass(frozen=True)
class Published:
    """Divergences of RDP and PR (chi2, Chebyshev), hit rates in the order of `RACES`, and P(White | not White)."""

    rdp: tuple[float, float]
    pr: tuple[float, float]
    hit_rates: tuple[float, ...]
    to_white: float


PUBLISHED = {
    "ddrm-unfairface": Published((0.698, 0.267), (1.493, 0.411), (0.93, 0.41, 0.28, 0.06, 0.09, 0.25, 0.26), 0.49),
    "psp-fairface": Published((0.037, 0.066), (0.130, 0.102), (0.64, 0.71, 0.68, 0.73, 0.64, 0.68, 0.34), 0.05),
}
TOLERANCE = 0.006
"""Of rates, which were published with two digits."""


def read(path: Path) -> tuple[pd.DataFrame, Published]:
    """The columns `file`, `race` and `race_recon` of a table, and what was published of it.

    Raises:
        ConfigError: the table cannot be read, lacks a column, or is not one whose figures were published.
    """
    published = PUBLISHED.get(path.stem)
    if not published:
        raise ConfigError(f"{path}: no published figures; the file is one of {', '.join(PUBLISHED)}")
    try:
        return pd.read_csv(path, usecols=["file", "race", "race_recon"], dtype=str), published
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: {one_line(str(error))}") from error


def figures(table: pd.DataFrame, published: Published) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Our figures beside the published ones, and the p-values of both tests."""
    demographic, proportional = rdp(table["race"], table["race_recon"]), pr(table["race_recon"], uniform(RACES))
    to_white = turned_into("White", labels=table["race"], predictions=table["race_recon"])
    rows = [*_divergences("dRDP", demographic, published.rdp), *_divergences("dPR", proportional, published.pr)]
    rates = zip(RACES, demographic.table.loc[list(RACES), "rate"], published.hit_rates, strict=True)
    rows += [(f"hit rate {race}", ours, theirs, TOLERANCE) for race, ours, theirs in rates]
    rows += [("to White", to_white.value, published.to_white, TOLERANCE)]
    compared = pd.DataFrame(rows, columns=["figure", "ours", "published", "tolerance"])
    agrees = (compared["ours"] - compared["published"]).abs() <= compared["tolerance"]
    return compared.assign(agrees=agrees), p_values(demographic, proportional)


def _divergences(name: str, parity: Parity, published: tuple[float, float]) -> list[tuple[str, float, float, float]]:
    pairs = zip(("chi2", "Cheb"), (parity.chi2, parity.chebyshev), published, strict=True)
    return [(f"{name}-{which}", ours, theirs, 0.0005) for which, ours, theirs in pairs]


def p_values(demographic: Parity, proportional: Parity) -> pd.DataFrame:
    """P-values of RDP and PR: the valid test, and the published one."""
    counts = demographic.table
    valid = [
        chi2_contingency(np.stack([counts["hits"], counts["n"] - counts["hits"]])).pvalue,
        chisquare(proportional.table["hits"]).pvalue,
    ]
    return pd.DataFrame(
        {"parity": ["RDP", "PR"], "valid p": valid, "published p": [*map(published_test, (demographic, proportional))]}
    )


def published_test(parity: Parity) -> float:
    """The test of Lasz et al. 2024: shares as counts of n images against uniform counts, as two samples."""
    counts = (parity.n * parity.table["share"]).astype(int)
    return float(chi2_contingency(np.stack([counts, parity.n * parity.table["reference"]])).pvalue)


def predictions(tables: dict[str, pd.DataFrame]) -> pd.DataFrame:
    """The instrument's table (backend, image, race) of the classifier's readings of each backend's outputs."""
    parts = [
        pd.DataFrame({"backend": name, "image": table["file"].map(lambda f: Path(f).stem), "race": table["race_recon"]})
        for name, table in tables.items()
    ]
    return pd.concat(parts)


def main() -> int:
    """Print both tables of each file; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fairness_published")
    parser.add_argument("csv", nargs="+", type=Path)
    parser.add_argument("--predictions", type=Path)
    arguments = parser.parse_args()
    agree = True
    try:
        tables = {path.stem: read(path) for path in arguments.csv}
        if arguments.predictions:
            predictions({name: table for name, (table, _) in tables.items()}).to_csv(arguments.predictions, index=False)
        for name, table in tables.items():
            compared, p = figures(*table)
            print(f"{name}\n{compared.to_string(index=False)}\n\n{p.to_string(index=False)}\n")
            agree &= bool(compared["agrees"].all())
    except (HarnessError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return int(not agree)


if __name__ == "__main__":
    sys.exit(main())
