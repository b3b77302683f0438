"""From the rows of timed passes to tables: what an image costs at each size, the scenarios, and what was left out.

`record` is the run record; every function gives one dictionary a table row.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.score import BASELINE
from harness.speed import BATCH, LEFT_OUT, OFFLINE, SIZE, in_turns_with, reference_of
from harness.statistics import percentile, ratio_of_medians, typical
from harness.timing import OTHER_LOAD_LIMIT

RowDict = dict[str, Any]
Float = NDArray[np.float64]

APPLIED = {"interpolation": 0, "gan": 1, "regression": 1}
"""How often these families apply a network to an image; a diffusion model does it once a step."""


@dataclass(frozen=True)
class Pass:
    """One timed pass: the values of its rows by metric."""

    backend: str
    stage: str
    metrics: dict[str, Float]

    def one(self, metric: str) -> float:
        """A value that the pass has once; NaN where it has none."""
        found = self.metrics.get(metric)
        return math.nan if found is None else float(found[-1])

    @property
    def size(self) -> int:
        """Side of the output in pixels."""
        return int(self.one("output_px"))

    @property
    def batch(self) -> int:
        """Images a request."""
        return int(self.one("batch_size"))

    @property
    def images(self) -> int:
        """Images of the whole pass."""
        return self.batch * len(self.metrics["end_to_end_s"])

    @property
    def valid(self) -> bool:
        """False if others used the processor meanwhile."""
        return not self.one("other_load") > OTHER_LOAD_LIMIT

    @property
    def quality(self) -> RowDict:
        """Whether the pass counts, and what is to be said of the load of others."""
        load = self.one("other_load")
        unknown = "attached by address: the load of others is unknown" if math.isnan(load) else ""
        note = unknown if self.valid else f"others used {load:.2f} cores during the pass; run it again"
        return {"valid": self.valid, "note": note}


def passes(rows: pd.DataFrame, labels: list[str]) -> list[Pass]:
    """Every pass that was made, by backend in the order of `labels`, then by size, kind and batch or rate."""
    timed = rows[rows["condition"].str.startswith(SIZE)]
    found = [
        Pass(str(label), str(stage), {str(m): v["value"].to_numpy(float) for m, v in mine.groupby("metric")})
        for (label, _, stage), mine in timed.groupby(["backend", "condition", "stage"])
    ]
    made = [p for p in found if "wall_s" in p.metrics and p.backend in labels]
    return sorted(made, key=lambda p: (labels.index(p.backend), p.size, p.stage.partition("-")[0], p.batch, p.stage))


def speed_rows(rows: pd.DataFrame, record: RowDict) -> list[RowDict]:
    """One row per backend, size and request size; times are seconds a request, energy is joules an image."""
    backends = {b["label"]: b for b in record["backends"]}
    content = record["suite"]["content"].get("speed") or {}
    every = passes(rows, list(backends))
    made = [p for p in every if p.stage.startswith(BATCH)]
    fastest = _fastest(made)
    reference = reference_of(content, record["backends"])
    turns = [p for p in every if p.stage == in_turns_with(reference, p.batch)]
    return [
        _times(p)
        | _resources(p, backends[p.backend], float(content.get("watts_per_core", math.nan)))
        | {"steps": steps(backends[p.backend])}
        | _against_bicubic(p, made)
        | _against(p, _same(turns, p.backend, p), _same(made, reference, p))
        | {"reference": reference}
        | {"best": p is fastest[p.backend, p.size]}
        | p.quality
        for p in made
    ]


def _fastest(made: list[Pass]) -> dict[tuple[str, int], Pass]:
    """The pass with the most images a second, for each backend and size."""
    best: dict[tuple[str, int], Pass] = {}
    for p in made:
        key = (p.backend, p.size)
        if key not in best or _rate(p) > _rate(best[key]):
            best[key] = p
    return best


def _rate(p: Pass) -> float:
    return p.images / float(p.metrics["end_to_end_s"].sum())


def _times(p: Pass) -> RowDict:
    total, compute = p.metrics["end_to_end_s"], p.metrics["compute_s"]
    return (
        {"backend": p.backend, "output_px": p.size, "batch": p.batch, "n": len(total)}
        | {f"end_to_end_p{q}": percentile(total, q) for q in (50, 90, 95, 99)}
        | {"end_to_end_mean": float(total.mean())}
        | {"compute_p50": percentile(compute, 50), "compute_mean": float(compute.mean())}
        | {"transport_p50": percentile(p.metrics["transport_s"], 50)}
        | {"images_per_s": _rate(p), "cold_start_s": p.one("cold_start_s")}
        | {"warm_up_s": p.one("warm_up_s")}
    )


def _resources(p: Pass, backend: RowDict, watts: float) -> RowDict:
    """Memory in MiB, of the process and of its device; energy in joules an image, and how it was found."""
    memory, whole = p.one("peak_memory_mb"), p.one("peak_memory_since_start_mb")
    energy, method = _energy(p, backend, watts)
    since = "" if math.isnan(whole) else "since the start of the process"
    peak = whole if math.isnan(memory) else memory
    memories = {"peak_memory_mb": peak, "memory_note": since, "peak_device_memory_mb": p.one("peak_device_memory_mb")}
    return memories | {"energy_j": energy, "energy_method": method}


def _energy(p: Pass, backend: RowDict, watts: float) -> tuple[float, str]:
    if not str(backend["device"]).startswith("cpu") or math.isnan(p.one("cpu_s")):
        return math.nan, "not known: it does not run on this machine's processor"
    if not math.isnan(p.one("package_j")):
        return p.one("package_j") / p.images, "measured: counters of the whole processor"
    return p.one("cpu_s") * watts / p.images, f"estimate: processor seconds x {watts:g} W"


def steps(backend: RowDict) -> float:
    """Network evaluations an image, as the option `steps` or the family says; NaN where neither does.

    Those of a chain are its stages' together.
    """
    if stages := backend.get("stages"):
        return sum(map(steps, stages))
    given = backend["options"].get("steps")
    return float(given if isinstance(given, int | float) else APPLIED.get(backend["family"], math.nan))


def _against_bicubic(p: Pass, made: list[Pass]) -> RowDict:
    base = _same(made, BASELINE, p)
    if base is None or not base.valid:
        return {"ratio_compute_bicubic": math.nan}
    mine, other = (percentile(x.metrics["compute_s"], 50) for x in (p, base))
    return {"ratio_compute_bicubic": mine / other}


def _against(p: Pass, turns: Pass | None, reference: Pass | None) -> RowDict:
    """The typical compute time as a multiple of the reference's, from the pass of both in turns.

    `reference_s` is that of the reference's own pass, as the times beside it are.
    """
    ratio, low, high = math.nan, math.nan, math.nan
    if turns is not None:
        ratio, low, high = ratio_of_medians(turns.metrics["compute_s"], turns.metrics["reference_compute_s"])
    elif reference is p:
        ratio = 1.0
    seconds = math.nan if reference is None else typical(reference.metrics["compute_s"])
    figures = {"ratio": ratio, "ratio_low": low, "ratio_high": high, "reference_s": seconds}
    return figures | {"ratio_valid": (turns or p).valid and not math.isnan(ratio)}


def _same(made: list[Pass], backend: str, p: Pass) -> Pass | None:
    return next((x for x in made if (x.backend, x.size, x.batch) == (backend, p.size, p.batch)), None)


def scenario_rows(rows: pd.DataFrame, record: RowDict) -> Iterator[RowDict]:
    """MLPerf's scenarios: single stream from the pass of single images, server a row a rate, offline."""
    content = record["suite"]["content"].get("speed") or {}
    bound = float(content.get("server_p90_s", math.nan))
    for p in passes(rows, [b["label"] for b in record["backends"]]):
        kind = _scenario(p)
        if kind:
            latency = p.metrics.get("latency_s", p.metrics["end_to_end_s"])
            p90 = percentile(latency, 90)
            judged = kind == "server" and not math.isnan(p90)
            yield (
                {"backend": p.backend, "output_px": p.size, "scenario": kind, "batch": p.batch, "n": len(latency)}
                | {"rate": p.one("rate"), "latency_p50": percentile(latency, 50), "latency_p90": p90}
                | {"bound_s": bound if kind == "server" else math.nan}
                | {"holds": ("yes" if p90 <= bound else "no") if judged else ""}
                | {"images_per_s": p.images / p.one("wall_s")}
                | p.quality
            )


def _scenario(p: Pass) -> str:
    if p.stage == "batch-1":
        return "single stream"
    return "server" if p.stage.startswith("server-") else OFFLINE if p.stage == OFFLINE else ""


def untimed_rows(rows: pd.DataFrame) -> list[RowDict]:
    """The passes that were left out or failed, each with its reason; one for all where a size is not taken."""
    left = rows[rows["metric"].isin(tuple(LEFT_OUT)) & rows["condition"].str.startswith(SIZE)]
    return [
        {
            "backend": row["backend"],
            "output_px": int(row["condition"].removeprefix(SIZE)),
            "stage": row["stage"] or "all",
            "status": LEFT_OUT[row["metric"]],
            "reason": row["error"],
        }
        for row in left.to_dict("records")
    ]
