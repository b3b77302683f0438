"""A run folder as the report sees it: run.json and its tables, every text bounded, every gap named.

`load` never fails because something was not measured: the table is then absent and `Run.missing` says why.
"""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from harness.audit import COLUMNS
from harness.errors import StoreError, one_line
from harness.score import BASELINE
from harness.scores import headline

TEXT_LIMIT = 300
COMMAND_LIMIT = 2000
LIST_LIMIT = 1000

NO_FACES = "the suite asks for no instruments that look at faces"
NO_MAPS = "the suite asks for no explanations, or they have not run"
NO_GENERATION = "no generator has made images"
ABSENT: dict[str, str] = {
    "summary": "no case was scored",
    "differences": "no backend was scored on the same images as the baseline",
    "pairs": "fewer than two backends could be compared on the same images",
    "groups": "the dataset has no group labels, or the group audit has not run",
    "gaps": "the dataset has no group labels, or the group audit has not run",
    "contrasts": "the suite claims nothing of groups",
    "subgroups": "the suite claims nothing of groups",
    "flips": NO_FACES,
    "excess_flips": NO_FACES,
    "parity": NO_FACES,
    "posterior": "the suite asks for no further outputs of an input, or no backend is stochastic",
    "reliability": "the suite asks for no further outputs of an input, or no backend is stochastic",
    "perceptual": NO_FACES,
    "verification": "the suite does not compare identities, or that instrument is not installed",
    "indices": "the suite does not compare identities, or that instrument is not installed",
    "seeds": "the suite asks for no further outputs of an input, or no backend is stochastic",
    "probes": "the dataset is no counterfactual series",
    "instruments": NO_FACES,
    "disagreement": "the suite has one instrument",
    "unread": NO_FACES,
    "noise": "the suite lists no noise, or the noise cases have not run",
    "corruptions": "the suite asks for no corruptions, or those cases have not run",
    "degradation": "no corrupted input was scored",
    "crossings": "no corrupted input was scored",
    "corruption_errors": "no corruption was scored by a metric that errors are ratios of",
    "robustness": "no corrupted input was scored",
    "amplification": "no input was corrupted",
    "corruption_gaps": "no groups, or no corrupted input was scored",
    "group_slopes": "no groups, or no corrupted input was scored",
    "corruption_seeds": "the suite asks for no further draws of a corruption",
    "speed": "the timed pass has not run",
    "scenarios": "the timed pass has not run",
    "untimed": "what was left out of the timed passes is not listed",
    "worst": "no case was scored",
    "samples": "no sample pictures were kept",
    "explanations": NO_MAPS,
    "diffusion_index": f"{NO_MAPS}, or not LAM",
    "maps": NO_MAPS,
    "attacks": "the suite asks for no attacks, or they have not run",
    "stages": "no backend of the suite is a chain",
    "failures": "failures were not counted",
    "diversity": "the suite asks for no diversity, or it has not run",
    "best_of": "the suite asks for no diversity, or there is no ground truth",
    "sets": "the suite lists no measures of sets, or they have not run",
    "set_pairs": "the suite does not list KID, or fewer than two backends could be compared by it",
    "generated": NO_GENERATION,
    "modes": NO_GENERATION,
    "classification": "the suite asks for no classification accuracy, or no class has images on all sides",
    "drawn": NO_GENERATION,
    "generators": "fewer than two generators have made images of the same classes",
    "hallucination": "the suite does not ask for hallucination, or it has not run",
    "hallucinated": "the suite does not ask for hallucination, or it has not run",
    "preservation": NO_FACES,
    "uncertainty": "the suite does not ask for uncertainty, or it has not run",
}


@dataclass(frozen=True, eq=False)
class Run:
    """A run folder, read: `record` is run.json; `tables` holds what was measured, `missing` why the rest was not.

    Nobody changes it; each is equal to itself alone.
    """

    folder: Path
    record: dict[str, Any]
    tables: dict[str, pd.DataFrame]
    missing: dict[str, str] = field(default_factory=dict)

    def table(self, name: str, metric: str | None = None) -> pd.DataFrame:
        """The table `name` (of one metric); without rows when it was not measured."""
        frame = self.tables.get(name, pd.DataFrame(columns=COLUMNS[name].split()))
        return frame if metric is None else frame[frame["metric"] == metric]

    @cached_property
    def backends(self) -> dict[str, dict[str, Any]]:
        """What run.json says of each backend, by label."""
        return {str(b.get("label", b.get("name", "?"))): b for b in self.record["backends"]}

    @cached_property
    def labels(self) -> list[str]:
        """Every backend of run.json or the summary, in that order."""
        return list(dict.fromkeys([*self.backends, *self.table("summary")["backend"]]))

    def is_control(self, label: str) -> bool:
        """Whether the backend is a control arm: the ground truth or the baseline."""
        return label == BASELINE or self.backends.get(label, {}).get("family") == "control"

    @cached_property
    def compared(self) -> list[str]:
        """The labels that are no control arms."""
        return [label for label in self.labels if not self.is_control(label)]

    @cached_property
    def reference(self) -> bool:
        """Whether the run has a ground truth; without one, the photos themselves were the inputs."""
        return not (self.record["suite"].get("content") or {}).get("photos")

    @cached_property
    def generative(self) -> bool:
        """Whether the run is of generators, which enlarge nothing."""
        return bool((self.record["suite"].get("content") or {}).get("generation"))

    @cached_property
    def headline(self) -> str:
        """The metric that comes first."""
        return headline(self.record)

    @cached_property
    def measures(self) -> dict[str, dict[str, Any]]:
        """What run.json says of the metrics of images and of what instruments read in faces."""
        return {**self.record["metrics"], **self.record["measures"]}

    def metrics(self, table: str = "summary") -> list[str]:
        """The metrics of a table, in the order of run.json."""
        present = list(dict.fromkeys(self.table(table)["metric"]))
        known = [name for name in self.measures if name in present]
        return known + [name for name in present if name not in known]

    def title(self, metric: str) -> str:
        """The metric's title with its unit."""
        about = {**self.measures, **self.record["set_metrics"]}.get(metric, {})
        unit = about.get("unit")
        return f"{about.get('title', metric)} ({unit})" if unit else str(about.get("title", metric))

    def higher_is_better(self, metric: str) -> bool | None:
        """Whether larger values of the metric are better; None where they are neither better nor worse."""
        direction = self.measures.get(metric, {}).get("higher_is_better", False)
        return None if direction is None else bool(direction)


def load(folder: Path) -> Run:
    """Reads a run folder.

    Raises:
        StoreError: run.json is missing or is no JSON object.
    """
    record = _record(folder / "run.json")
    tables, missing = {}, {}
    for name in COLUMNS:
        frame, why = _table(folder / "tables" / f"{name}.parquet", name)
        if frame is None:
            missing[name] = why
        else:
            tables[name] = frame
    run = Run(folder, record, tables, missing)
    if not run.reference:
        none = "KID and FID compare with the ground truth, which this run does not have"
        missing |= dict.fromkeys(("sets", "set_pairs"), none)
    return run


def _record(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: cannot be read ({one_line(str(error), 120)}): give the folder of a run") from error
    if not isinstance(record, dict):
        raise StoreError(f"{path}: holds no JSON object: give the folder of a run")
    command = one_line(str(record.get("command", "")), COMMAND_LIMIT)
    return _shaped({**bounded(record), "command": command})


def _shaped(record: dict[str, Any]) -> dict[str, Any]:
    """The record with every part present and of its kind, so that no reader has to ask."""
    parts = (
        "suite",
        "dataset",
        "inputs",
        "metrics",
        "set_metrics",
        "diversity",
        "instruments",
        "measures",
        "uncertainty",
        "generation",
    )
    for key in (*parts, "environment", "speed"):
        record[key] = record[key] if isinstance(record.get(key), dict) else {}
    for key in ("backends", "warnings"):
        record[key] = record[key] if isinstance(record.get(key), list) else []
    record["backends"] = [b for b in record["backends"] if isinstance(b, dict)]
    for key in ("metrics", "set_metrics", "measures"):
        record[key] = {k: v for k, v in record[key].items() if isinstance(v, dict)}
    return record


def bounded(value: Any) -> Any:  # noqa: ANN401 - any JSON value in, the same kind out
    """A JSON value with every text as one bounded line and every list cut at 1000 entries."""
    if isinstance(value, str):
        return one_line(value, TEXT_LIMIT)
    if isinstance(value, dict):
        return {one_line(str(k), TEXT_LIMIT): bounded(v) for k, v in list(value.items())[:LIST_LIMIT]}
    if isinstance(value, list):
        return [bounded(v) for v in value[:LIST_LIMIT]]
    return value


def _table(path: Path, name: str) -> tuple[pd.DataFrame | None, str]:
    if not path.is_file():
        return None, f"tables/{name}.parquet is missing: {ABSENT[name]}"
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        return None, f"tables/{name}.parquet cannot be read: {one_line(str(error), 120)}"
    lacking = [c for c in COLUMNS[name].split() if c not in frame]
    if frame.empty and name in (
        "failures",
        "untimed",
        "unread",
    ):  # nothing failed or was left out: a finding, not a gap
        return pd.DataFrame(columns=COLUMNS[name].split()), ""
    if frame.empty:
        return None, f"tables/{name}.parquet holds no rows: {ABSENT[name]}"
    if lacking:
        return None, f"tables/{name}.parquet lacks the columns {', '.join(lacking)}"
    return _bounded_frame(frame), ""


def _bounded_frame(frame: pd.DataFrame) -> pd.DataFrame:
    frame = frame.copy()
    for name in frame.columns:
        if not pd.api.types.is_numeric_dtype(frame[name]):
            frame[name] = frame[name].map(bounded)
    return frame
