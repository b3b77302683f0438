"""Our scores of published outputs against their authors': `python -m benchmarks.published RUN NAME=CSV...`.

RUN is a folder that `harness run published` wrote, NAME a backend of it, CSV the authors' table: a column `file` and
their scores of each image. Exit status 1 when a correlation is not above `ENOUGH`.
"""

import sys
from pathlib import Path

import pandas as pd

from harness.errors import ConfigError, HarnessError, one_line
from harness.scores import Scores
from harness.store import open_run

THEIRS = {"lpips_alex": ("lpips", 1), "sharpness": ("blur", -1)}
"""Our metric -> their column, and its sign."""
ENOUGH = 0.999


def compare(scores: Scores, name: str, csv: Path) -> pd.DataFrame:
    """One row per metric: number of images, correlation, and the largest difference between ours and theirs.

    Raises:
        ConfigError: the run has no such backend, or the table lacks a column.
    """
    if name not in scores.labels:
        raise ConfigError(f"the run has no backend {one_line(name, 40)!r}; it has {', '.join(scores.labels)}")
    try:
        table = pd.read_csv(csv, usecols=["file", *(column for column, _ in THEIRS.values())])
    except (OSError, ValueError) as error:
        raise ConfigError(f"{csv}: {one_line(str(error))}") from error
    table.index = table["file"].map(lambda file: Path(file).stem)
    rows = []
    for metric, (column, sign) in THEIRS.items():
        if name not in scores.values(metric):
            raise ConfigError(f"{name} has no {metric} in this run; run the suite published")
        both = pd.DataFrame({"ours": scores.values(metric)[name], "theirs": sign * table[column]}).dropna()
        largest = (both["ours"] - both["theirs"]).abs().max()
        rows.append((name, metric, len(both), both["ours"].corr(both["theirs"]), largest))
    return pd.DataFrame(rows, columns=["backend", "metric", "n", "correlation", "largest difference"])


def main() -> int:
    """Print the table; returns the exit status."""
    pairs = [text.partition("=") for text in sys.argv[2:]]
    if not pairs or not all(csv for _, _, csv in pairs):
        print("usage: python -m benchmarks.published RUN NAME=CSV...", file=sys.stderr)
        return 2
    try:
        scores = Scores.of(open_run(Path(sys.argv[1])))
        table = pd.concat([compare(scores, name, Path(csv)) for name, _, csv in pairs])
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(table.to_string(index=False))
    return int(not (table["correlation"] > ENOUGH).all())


if __name__ == "__main__":
    sys.exit(main())
