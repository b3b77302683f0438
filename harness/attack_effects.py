"""What attacks did: rows from the stored pictures, and the table of them.

change            MSE(f(x'), f(x)), in squared levels: attacked against clean output, both rounded, of one seed
amplification     change / MSE(b(x'), b(x)) on the same x', b being bicubic: 1 is bicubic's own
versus_bicubic    change / what the same attack on bicubic itself does to bicubic
versus_signs      change / what random signs of the same size do to the same backend
psnr, lpips       against the ground truth, attacked less clean

All are ratios of means over images; the intervals are bootstrap, images resampled together on both sides.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.progress import Progress

from harness.attacker import SEARCH, SIGNS, Attack, attacks_on, seeds_of
from harness.attacks import mse
from harness.hallucination import enlarged
from harness.images import load
from harness.metrics import METRICS, score
from harness.plan import CLEAN
from harness.score import BASELINE, CONTROL, identity, image_labels, scale_of, stored_outputs
from harness.scores import Scores
from harness.statistics import INSUFFICIENT, mean_intervals, ratio_of_means
from harness.store import Row, RunFolder, is_whole, read_table
from harness.suite import Attacks

CHANGE, BICUBIC = "attack_change", "attack_bicubic"
"""The metrics of the rows: change of the backend's output, and of bicubic's for the same inputs."""
QUALITY = {"psnr": "psnr", "lpips_alex": "lpips"}
"""The metrics against the ground truth that are taken, if the run has them, and what the table calls them."""
KEY = ["backend", "digest", "options", "condition", "severity", "image"]
BATCH = 16
AMPLIFIES, DAMPS, OPEN, FEW = "amplifies", "damps", "not separated", "insufficient"
NO_GRADIENT = "not run: no Gradient"
NOTHING = (math.nan, math.nan, math.nan)
Values = dict[tuple[Any, ...], "pd.Series[float]"]


def settings(record: dict[str, Any]) -> Attacks | None:
    """The part of the suite that asks for attacks."""
    content = (record["suite"].get("content") or {}).get("attacks")
    return Attacks.model_validate(content) if content else None


def measure_attacks(folder: RunFolder, progress: Progress) -> None:
    """Append the rows that the stored attacks of a run still lack."""
    record = folder.read_record() or {}
    part = settings(record)
    if part is None:
        return
    images = read_table(folder.path / "images.parquet")
    rows = folder.rows("part")
    done = set(rows.loc[rows["metric"] == CHANGE, KEY].itertuples(index=False, name=None))
    for backend in record["backends"]:
        measured = _Measured(folder, record, backend, images)
        pending = [one for one in measured.stored(part) if measured.key(*one[:2]) not in done]
        task = progress.add_task(f"{backend['label']}: effects of attacks", total=len(pending))
        for start in range(0, len(pending), BATCH):
            batch = pending[start : start + BATCH]
            folder.append([row for one in batch for row in measured.rows(*one)])
            progress.advance(task, len(batch))


class _Measured:
    """The attacks on one backend (its entry in the record) as rows."""

    def __init__(
        self, folder: RunFolder, record: dict[str, Any], backend: dict[str, Any], images: pd.DataFrame
    ) -> None:
        self.folder, self.record, self.backend, self.images = folder, record, backend, images
        self.scale, self.labels = scale_of(record), image_labels(images)
        self.who = identity(backend, record["dataset"]["spec"])

    def stored(self, part: Attacks) -> Iterator[tuple[Attack, str, Path]]:
        """Each attack whose pictures are there, with the image and its clean output."""
        attacks = attacks_on(self.backend, part)
        outputs = stored_outputs(self.folder, self.images, self.backend, CLEAN, self.scale) if attacks else {}
        for attack in attacks:
            for image, output in outputs.items():
                if all(map(is_whole, attack.files(self.folder, self.backend["label"], output))):
                    yield attack, image, output

    def key(self, attack: Attack, image: str) -> tuple[Any, ...]:
        """What tells its rows from others, see `KEY`."""
        return (*(self.who[k] for k in KEY[:3]), attack.condition, attack.epsilon, image)

    def rows(self, attack: Attack, image: str, output: Path) -> Iterator[Row]:
        """The rows of one attacked image."""
        changed, after = (load(path) for path in attack.files(self.folder, self.backend["label"], output))
        clean, before = load(self.folder.input(CLEAN.folder, image)), load(output)
        plain = enlarged(np.stack([clean, changed]), self.scale)
        values = {CHANGE: _change(after, before), BICUBIC: _change(*plain)}
        for name in (n for n in QUALITY if n in self.record["metrics"]):
            target = load(self.folder.target(image))
            values[name] = float(score(name, after[None], target[None], changed[None], self.scale)[0])
        where = {"condition": attack.condition, "severity": attack.epsilon, "scale": self.scale, "image": image}
        for name, value in values.items():
            unit = METRICS[name].unit if name in METRICS else "squared levels"
            error = "too small for this metric" if math.isnan(value) else ""
            yield self.who | self.labels[image] | where | {"metric": name, "value": value, "unit": unit, "error": error}


def _change(after: NDArray[np.uint8], before: NDArray[np.uint8]) -> float:
    return float(mse(after[None], before[None])[0])


# Tables


def tables(scores: Scores) -> dict[str, list[Row]]:
    """The rows of the table, under its name; none where the suite asks for no attacks."""
    part = settings(scores.record)
    if part is None:
        return {"attacks": []}
    values = _values(scores)
    backends = [b for b in scores.record["backends"] if b["label"] != CONTROL]
    return {"attacks": [row for backend in backends for row in _of_backend(scores, values, backend, part)]}


def _values(scores: Scores) -> Values:
    """Values by image of each backend, attack, epsilon and metric."""
    mine = scores.rows[scores.rows["condition"].str.startswith("attack_") & scores.rows["value"].notna()]
    by = mine.set_index("image").groupby(["backend", "condition", "severity", "metric"], sort=False)
    return dict(iter(by["value"]))


def _of_backend(scores: Scores, values: Values, backend: dict[str, Any], part: Attacks) -> Iterator[Row]:
    attacks, label = attacks_on(backend, part), backend["label"]
    for name in part.names:
        if name not in {attack.name for attack in attacks}:
            yield {"backend": label, "attack": name, "n": 0, "verdict": _reason(backend)}
    for attack in attacks:
        rival = Attack(part.names[0], attack.epsilon) if attack.name == SEARCH else attack
        row = _compared(values, label, attack, rival) | _quality(scores, values, label, attack)
        yield row | {"seeds": seeds_of(backend, part)}


def _reason(backend: dict[str, Any]) -> str:
    if backend["status"] != "ok":
        return "not run: the backend could not be used"
    return "not run: stored outputs answer no other input" if backend["family"] == "replay" else NO_GRADIENT


def _compared(values: Values, label: str, attack: Attack, rival: Attack) -> Row:
    """The change and its ratios; `rival` is the attack on bicubic itself."""

    def of(who: str, which: Attack, metric: str) -> "pd.Series[float]":
        return values.get((who, which.condition, which.epsilon, metric), pd.Series(dtype=float))

    own = of(label, attack, CHANGE)
    row: Row = {"backend": label, "attack": attack.name, "epsilon": attack.epsilon, "n": len(own)}
    others = {
        "amplification": of(label, attack, BICUBIC),
        "versus_bicubic": of(BASELINE, rival, CHANGE),
        "versus_signs": of(label, Attack(SIGNS, attack.epsilon), CHANGE),
    }
    row |= _figures("change", [math.sqrt(figure) for figure in _mean(own)])
    for name, other in others.items():
        row |= _figures(name, _ratio(own, other))
    return row | {"verdict": _verdict(row)}


def _quality(scores: Scores, values: Values, label: str, attack: Attack) -> Row:
    """What the attack changes against the ground truth, on the images that have both scores."""
    row: Row = {}
    for metric, name in QUALITY.items():
        attacked = values.get((label, attack.condition, attack.epsilon, metric))
        clean = scores.values(metric).get(label) if metric in scores.record["metrics"] else None
        if attacked is not None and clean is not None:
            row |= _figures(name, _mean((attacked - clean).replace([np.inf, -np.inf], np.nan).dropna()))
    return row


def _mean(values: "pd.Series[float]") -> tuple[float, float, float]:
    return mean_intervals(_column(values))[0] if len(values) else NOTHING


def _ratio(above: "pd.Series[float]", below: "pd.Series[float]") -> tuple[float, float, float]:
    """Ratio of the means over the images that both have; nothing where there is nothing to divide by."""
    common = above.index.intersection(below.index)
    if not len(common) or not below[common].any():
        return NOTHING
    return ratio_of_means(_column(above[common]), _column(below[common]))


def _column(values: "pd.Series[float]") -> NDArray[np.float64]:
    return np.asarray(values, np.float64)[:, None]


def _figures(name: str, figures: Sequence[float]) -> Row:
    return dict(zip((name, f"{name}_low", f"{name}_high"), figures, strict=True))


def _verdict(row: Row) -> str:
    if row["n"] < INSUFFICIENT or math.isnan(row["amplification"]):
        return FEW
    return AMPLIFIES if row["amplification_low"] > 1 else DAMPS if row["amplification_high"] < 1 else OPEN
