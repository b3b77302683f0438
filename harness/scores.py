"""The rows of a run as tables begin with them: scores by image and backend, and the group of each image."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.datasets import UNKNOWN
from harness.plan import CLEAN
from harness.score import group_attributes, identity
from harness.statistics import bootstrap_interval
from harness.store import RunFolder, read_table

Float = NDArray[np.float64]
IDENTITY = ["backend", "digest", "options"]


@dataclass(frozen=True)
class Scores:
    """The rows of a run that belong to its record, with the table of images."""

    folder: RunFolder
    record: dict[str, Any]
    rows: pd.DataFrame
    images: pd.DataFrame

    @classmethod
    def of(cls, folder: RunFolder) -> "Scores":
        """Read a run folder; rows of backends, digests or options that the record no longer names are left out."""
        record = folder.read_record() or {"backends": [], "metrics": {}}
        rows = folder.rows()
        current = pd.DataFrame([identity(b, "") for b in record["backends"]], columns=IDENTITY, dtype="str")
        keep = pd.MultiIndex.from_frame(rows[IDENTITY]).isin(pd.MultiIndex.from_frame(current))
        return cls(folder, record, rows[keep], read_table(folder.path / "images.parquet"))

    @property
    def labels(self) -> list[str]:
        """Backends in the order of the record."""
        return [b["label"] for b in self.record["backends"]]

    @property
    def attributes(self) -> list[str]:
        """Group attributes, with race x gender where both are there."""
        names = group_attributes(self.images)
        return [*names, *(["race x gender"] if {"race", "gender"} <= set(names) else [])]

    @cached_property
    def measures(self) -> dict[str, dict[str, Any]]:
        """What the record says of the metrics of images and of what instruments read in faces."""
        return {**self.record["metrics"], **self.record.get("measures", {})}

    @property
    def claims(self) -> list[dict[str, Any]]:
        """The primary claims of the suite."""
        fairness = self.record["suite"]["content"].get("fairness") or {}
        return list(fairness.get("claims", []))

    def higher_is_better(self, metric: str) -> bool | None:
        """The metric's direction; None where more is neither better nor worse."""
        direction: bool | None = self.measures[metric]["higher_is_better"]
        return direction

    @cached_property
    def scores(self) -> pd.DataFrame:
        """Rows that hold a score of an image, of the first output for each input."""
        mine = self.rows["metric"].isin(self.measures) & self.rows["value"].notna()
        return self.rows[mine & (self.rows["sample"] == 0)]

    def values(self, metric: str, condition: str = CLEAN.name, severity: int = 0) -> pd.DataFrame:
        """Image x backend table of one metric under one condition."""
        s = self.scores
        chosen = s[(s["metric"] == metric) & (s["condition"] == condition) & (s["severity"] == severity)]
        table = chosen.pivot_table(index="image", columns="backend", values="value", aggfunc="first", dropna=False)
        return table.reindex(columns=[b for b in self.labels if b in table])

    def groups_of(self, attribute: str) -> pd.Series:
        """The group of each image; a crossed group with an unknown part is unknown."""
        frame = self.images.set_index("image")
        if attribute != "race x gender":
            return frame[attribute]
        known = (frame[["race", "gender"]] != UNKNOWN).all(axis=1)
        return (frame["race"] + " x " + frame["gender"]).where(known, UNKNOWN)


def headline(record: dict[str, Any]) -> str:
    """The metric that a run is judged by first: LPIPS; without ground truth, consistency with the input."""
    return "lr_psnr" if (record["suite"].get("content") or {}).get("photos") else "lpips_alex"


def mean_interval(values: Float) -> dict[str, float]:
    """Mean and interval of the finite values; infinite if all are (identical images)."""
    finite = values[np.isfinite(values)]
    if len(values) and not len(finite):
        return {"mean": float(values[0]), "low": float(values[0]), "high": float(values[0])}
    low, high = bootstrap_interval(finite)
    return {"mean": float(finite.mean()) if len(finite) else np.nan, "low": low, "high": high}
