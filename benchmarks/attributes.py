"""How right an attribute network is, per group, as Markdown: `python -m benchmarks.attributes DATASET`.

DATASET is one of `harness.datasets`, with labels; `--network` names a description instead of the shipped network.
Photos are cropped to their centre square and measured twice: reduced to 64 pixels, as upscaled outputs are, and at
their own size. `--card` puts the text under the heading "Measured" of a model card.

Shares have Wilson intervals, mean errors bootstrap intervals, all 95 %. An attribute is left out if the dataset has
other labels than the network; photos of unknown label, and those on which the network fails, are counted.
"""

import argparse
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby, islice
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.datasets import UNKNOWN, Dataset, Record, open_dataset
from harness.degrade import make_target
from harness.errors import ConfigError, HarnessError, ImageError, one_line
from harness.fairness.inference import wilson
from harness.images import centre_square
from harness.label_tables import listing
from harness.networks import BATCH, VALUE, Network, open_network
from harness.statistics import bootstrap_interval

Photo = tuple[Record, NDArray[np.uint8]]

GROUPS = ("race", "gender")
FAILED = "no prediction"
MEASURED = "## Measured\n"


def predict(dataset: Dataset, network: Network, side: int | None) -> tuple[pd.DataFrame, list[str]]:
    """A row for each photo, made `side` pixels large if it is given; and the photos that cannot be used.

    Columns: "id", the labels of the dataset, "NAME_said" for each classifier of the network, "age_error" in years.
    """
    unusable: list[str] = []
    frames = [_compare(network, batch) for batch in _batches(_photos(dataset, side, unusable))]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(), unusable


def _photos(dataset: Dataset, side: int | None, unusable: list[str]) -> Iterator[Photo]:
    for record in dataset.records:
        try:
            image = dataset.image(record)
            yield record, centre_square(image) if side is None else make_target(image, side)
        except ImageError as error:
            unusable.append(f"{record.id}: {error}")


def _batches(photos: Iterable[Photo]) -> Iterator[list[Photo]]:
    """Photos of one size, as many in a row as there are, `BATCH` at most."""
    for _, alike in groupby(photos, key=lambda photo: photo[1].shape):
        while batch := list(islice(alike, BATCH)):
            yield batch


def _compare(network: Network, batch: list[Photo]) -> pd.DataFrame:
    said = network.predictions(np.stack([image for _, image in batch]))
    frame = pd.DataFrame([{"id": record.id, **record.labels} for record, _ in batch])
    for name, labels in network.labels.items():
        if labels:
            sure = said[name].notna().all(axis=1)
            frame[f"{name}_said"] = said[name].fillna(0).idxmax(axis=1).where(sure, FAILED)
    years = np.array([np.nan if record.age_years is None else record.age_years for record, _ in batch])
    frame["age_error"] = abs(said["age"][VALUE] - years) if network.labels.get("age") == () else np.nan
    return frame


def comparable(frame: pd.DataFrame, network: Network) -> list[str]:
    """The attributes whose labels in the dataset are all labels of the network."""
    known = [name for name, labels in network.labels.items() if labels and name in frame]
    return [name for name in known if set(frame[name]) - {UNKNOWN} <= set(network.labels[name])]


def accuracy(frame: pd.DataFrame, attributes: list[str]) -> str:
    """The table of shares that are right and of the error of age: all photos, then each race x gender."""
    groups = [name for name in GROUPS if name in frame]
    split = frame.groupby(groups) if groups else ()
    parts = [("all", frame), *((" ".join(map(str, key)), part) for key, part in split)]
    lines = [_row(["group", "n", *(f"{name} right" for name in attributes), "age error, years"])]
    lines.append(_row(["---"] * (len(attributes) + 3)))
    for name, part in parts:
        shares = [_share(part[part[a] != UNKNOWN], a) for a in attributes]
        lines.append(_row([name, str(len(part)), *shares, _error(part["age_error"].dropna().to_numpy(float))]))
    return "\n".join(lines)


def _share(part: pd.DataFrame, attribute: str) -> str:
    if part.empty:
        return "–"
    right = int((part[attribute] == part[f"{attribute}_said"]).sum())
    low, high = wilson(right, len(part))
    return f"{right / len(part):.3f} [{low:.3f}, {high:.3f}]"


def _error(errors: NDArray[np.float64]) -> str:
    if not len(errors):
        return "–"
    low, high = bootstrap_interval(errors)
    return f"{errors.mean():.1f} [{low:.1f}, {high:.1f}]"


def confusion(frame: pd.DataFrame, attribute: str, by: list[str]) -> str:
    """What was said, as shares of each true label; `by` names the columns that split the rows."""
    said = f"{attribute}_said"
    labels = sorted({*frame[attribute], *frame[said]} - {UNKNOWN})
    counts = frame[frame[attribute] != UNKNOWN].pivot_table(index=by, columns=said, values="id", aggfunc="count")
    counts = counts.reindex(columns=labels).fillna(0).astype(int)
    lines = [_row([*by, "n", *(f"says {label}" for label in labels)]), _row(["---"] * (len(by) + 1 + len(labels)))]
    for key, row in counts.iterrows():
        names = key if isinstance(key, tuple) else (key,)
        lines.append(_row([*map(str, names), str(row.sum()), *(f"{share:.3f}" for share in row / row.sum())]))
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def section(dataset: Dataset, network: Network, side: int | None) -> Iterator[str]:
    """The Markdown blocks for photos of one size."""
    yield f"### {'Photos at their own size' if side is None else f'Photos reduced to {side} pixels a side'}"
    frame, unusable = predict(dataset, network, side)
    if frame.empty:
        raise ConfigError(f"{dataset.spec}: no photo can be used: {unusable[0]}")
    attributes = comparable(frame, network)
    yield accuracy(frame, attributes)
    if "race" in attributes:
        yield "Race, shares of each true race:"
        yield confusion(frame, "race", ["race"])
    if "gender" in attributes:
        yield "Gender, shares of each true gender:"
        yield confusion(frame, "gender", [*(["race"] if "race" in frame else []), "gender"])
    yield from _left_out(frame, attributes, unusable)


def _left_out(frame: pd.DataFrame, attributes: list[str], unusable: list[str]) -> Iterator[str]:
    for name in (name for name in GROUPS if name in frame and name not in attributes):
        yield f"The network does not tell the {name} labels of this dataset apart: {listing(sorted(set(frame[name])))}."
    for name in attributes:
        if unknown := int((frame[name] == UNKNOWN).sum()):
            yield f"{unknown} photos have no {name} label and count for no {name}."
    failed = frame.loc[(frame.filter(like="_said") == FAILED).any(axis=1), "id"]
    if len(failed):
        yield f"{len(failed)} photos got no finite prediction, which counts as wrong: {listing(list(failed))}."
    if unusable:
        yield f"{len(unusable)} photos could not be used, the first: {one_line(unusable[0])}."


def measured(dataset: Dataset, network: Network, command: str) -> str:
    """The whole text, with the command that makes it and the network's recipe."""
    blocks = [f"`{command}`: {len(dataset.records)} photos.", f"Network: {network.recipe}."]
    for side in (64, None):
        blocks += section(dataset, network, side)
    return "\n\n".join(blocks) + "\n"


def main() -> int:
    """Run the command line; returns the exit status."""
    parser = argparse.ArgumentParser(description="Accuracy of an attribute network per group, as Markdown.")
    parser.add_argument("dataset", help="KIND:PATH[#SPLIT], labelled")
    parser.add_argument("--network", metavar="FILE.yaml", default="", help="instead of the shipped network")
    parser.add_argument("--card", type=Path, help="put the text under '## Measured' of this file")
    arguments = parser.parse_args()
    try:
        network = open_network(Path(arguments.network).stem if arguments.network else "attributes", arguments.network)
        command = one_line(f"python -m benchmarks.attributes {arguments.dataset}").replace("`", "'")
        text = measured(open_dataset(arguments.dataset), network, command)
        if arguments.card:
            before, _, rest = arguments.card.read_text(encoding="utf-8").partition(MEASURED)
            after = "".join(rest.partition("\n## ")[1:])
            arguments.card.write_text(f"{before}{MEASURED}\n{text}{after}", encoding="utf-8")
    except (HarnessError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
