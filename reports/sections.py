"""The report's sections as plain tables and sentences, before HTML or Markdown: both are written from these.

Texts here are not escaped; whoever writes them out escapes them.
"""

import json
import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import pandas as pd

from harness.score import BASELINE
from reports import attacks, explanations, fairness, generation, hallucination, robustness, stages
from reports.findings import DISTORTION, ranks
from reports.load import Run
from reports.numbers import NOTHING, Format, count, duration, fit, multiple, names, significant, times
from reports.parts import (
    Cell,
    Column,
    Section,
    Table,
    by_backend,
    label_cell,
    metric_column,
    not_measured,
    number_cell,
    short_label,
    spread,
    text_or_nothing,
)

WHOLE_SIZE = ("all", "batch-1")  # what is left out takes the rest of its size with it
MINIMUM = {"end_to_end_p50": 11, "end_to_end_p90": 64, "end_to_end_p95": 130, "end_to_end_p99": 662}


@lru_cache(maxsize=1)
def sections(run: Run) -> tuple[Section, ...]:
    """All numbered sections, in the order of the report: made once for the page and for the Markdown text."""
    if run.generative:
        return tuple(part(run) for part in (generation.section, stages.section, _failures, _tested, _reproduce))
    parts: list[Callable[[Run], Section]] = [
        _comparison,
        _speed,
        stages.section,
        _noise,
        robustness.section,
        attacks.section,
        fairness.section,
        hallucination.section,
        explanations.section,
        _worst,
        _failures,
        _tested,
        _reproduce,
    ]
    return tuple(part(run) for part in parts)


# ---------------------------------------------------------------- 1 Comparison


def _comparison(run: Run) -> Section:
    lead = [
        (
            "Mean over the images, 95 % interval. Rank = 1 + the number of compared backends that are separably "
            "better in paired differences on the same images; “=” marks a shared rank. Bold: rank 1."
        )
    ]
    controls = [label for label in run.labels if run.is_control(label)]
    if controls:
        lead.append(f"{names(controls)}: control arms, run through the same instruments and not ranked.")
    tables = [
        t
        for t in (
            *(_summary(run), _differences(run), _pairs(run)),
            *(_diversity(run), _best_of(run), _sets(run), _set_pairs(run)),
        )
        if t.rows
    ]
    measured = ("summary", "differences", "pairs", "diversity", "best_of", "sets", "set_pairs", "samples")
    absent = not_measured(run, *measured)
    return Section("comparison", "Comparison", lead, tables, absent)


def _summary(run: Run) -> Table:
    metrics = run.metrics()
    how = {m: spread(run.table("summary", m)) for m in metrics}
    rank = {m: ranks(run, m, run.compared) for m in metrics}
    rows = []
    for label, mine in by_backend(run, run.table("summary")).groupby("backend", sort=False):
        by_metric = {row["metric"]: row for _, row in mine.iterrows()}
        cells = [_mean(by_metric.get(m), how[m], _place(rank[m], str(label))) for m in metrics]
        n = number_cell(count(mine["n"].max()), f"{count(mine['failed'].max())} failed" if mine["failed"].max() else "")
        rows.append([label_cell(run, str(label)), n, *cells])
    columns = [Column("Backend"), Column("n", "images"), *(metric_column(run, m, how[m]) for m in metrics)]
    return Table("Quality of each backend, clean inputs", columns, rows, "summary", "perception-distortion")


def _diversity(run: Run) -> Table:
    frame = run.table("diversity")
    how = spread(frame)
    rows = [
        [
            label_cell(run, row["backend"]),
            number_cell(count(row["n"])),
            number_cell(count(row["samples"])),
            Cell(row["note"]) if row["note"] else _mean(row, how, ""),
        ]
        for _, row in by_backend(run, frame).iterrows()
    ]
    columns = [Column("Backend"), Column("n", "images"), Column("Outputs", "of each image")]
    columns += [Column(f"Mean LPIPS {how.power}".strip(), "more is not better")]
    return Table("Diversity: how far the outputs of one input differ with the seed", columns, rows, "diversity")


def _best_of(run: Run) -> Table:
    frame = by_backend(run, run.table("best_of"), "k")
    how = fit(frame["value"], frame["high"] - frame["low"])
    rows = []
    for label, mine in frame.groupby("backend", sort=False):
        cells = {
            row["k"]: number_cell(how.interval(row["value"], row["low"], row["high"])) for _, row in mine.iterrows()
        }
        n = number_cell(count(mine["n"].max()))
        rows.append([label_cell(run, str(label)), n, *(cells.get(k, number_cell(NOTHING)) for k in _tried(frame))])
    columns = [Column("Backend"), Column("n", "images"), *(Column(f"Best of {count(k)}") for k in _tried(frame))]
    caption = f"Best of the first outputs of an input: LPIPS (AlexNet) to the target {how.power}".strip()
    return Table(f"{caption}, lower is better", columns, rows, "best_of", "best-of")


def _tried(frame: pd.DataFrame) -> list[float]:
    """Powers of two, and the last."""
    tried = sorted(set(frame["k"]))
    return [k for k in tried if k == tried[-1] or math.log2(k).is_integer()]


def _sets(run: Run) -> Table:
    frame = run.table("sets")
    how = {m: fit(rows["value"], rows["high"] - rows["low"]) for m, rows in frame.groupby("metric")}
    rows = [
        [
            label_cell(run, row["backend"]),
            number_cell(count(row["n"]), str(row["note"])),
            Cell(run.title(row["metric"])),
            number_cell(
                f"{how[row['metric']].interval(row['value'], row['low'], row['high'])} {how[row['metric']].power}"
            ),
        ]
        for _, row in by_backend(run, frame).iterrows()
    ]
    columns = [Column("Backend"), Column("n", "images"), Column("Measure"), Column("Value", "lower is better")]
    return Table("All outputs together against all targets, by the features of a network", columns, rows, "sets")


def _set_pairs(run: Run) -> Table:
    frame = run.table("set_pairs").rename(columns={"difference": "mean"})
    rows = [row for metric in run.metrics("set_pairs") for row in _pair_rows(run, frame[frame["metric"] == metric])]
    caption = "Differences between backends of all outputs together, on the same images"
    return Table(caption, PAIR_COLUMNS, rows, "set_pairs", folded=len(rows) > 12)


def _with_power(how: Format, row: "pd.Series[Any]") -> str:
    return f"{how.interval(row['value'], row['low'], row['high'])} {how.power}"


def _place(found: dict[str, int | None], label: str) -> str:
    if label not in found or len(found) < 2:
        return ""
    place = found[label]
    if place is None:
        return "rank open"
    return f"rank {place}{'=' if list(found.values()).count(place) > 1 else ''}"


def _mean(row: "pd.Series[Any] | None", how: Format, place: str) -> Cell:
    if row is None or math.isnan(row["mean"]):
        return number_cell("not measured", kind="muted")
    if math.isinf(row["mean"]):
        return number_cell("identical", f"{count(row['identical'])} of {count(row['n'])}")
    strong = "strong" if place in {"rank 1", "rank 1="} else ""
    return number_cell(how.interval(row["mean"], row["low"], row["high"]), place, strong)


def _differences(run: Run) -> Table:
    frame, metrics = run.table("differences"), run.metrics("differences")
    how = {m: spread(run.table("differences", m)) for m in metrics}
    rows = []
    for label, mine in by_backend(run, frame).groupby("backend", sort=False):
        by_metric = {row["metric"]: row for _, row in mine.iterrows()}
        cells = [_difference(by_metric.get(m), how[m]) for m in metrics]
        rows.append([label_cell(run, str(label)), number_cell(count(mine["n"].min())), *cells])
    columns = [Column("Backend"), Column("n", "pairs"), *(metric_column(run, m, how[m]) for m in metrics)]
    return Table(f"Paired difference to {BASELINE}, backend minus {BASELINE}", columns, rows, "differences")


def _difference(row: "pd.Series[Any] | None", how: Format) -> Cell:
    if row is None or math.isnan(row["mean"]):
        return number_cell("not measured", kind="muted")
    return number_cell(how.interval(row["mean"], row["low"], row["high"], signed=True), str(row["verdict"]))


def _pairs(run: Run) -> Table:
    frame = run.table("pairs")
    rows = [row for metric in run.metrics("pairs") for row in _pair_rows(run, frame[frame["metric"] == metric])]
    caption = "Paired differences between the compared backends"
    return Table(caption, PAIR_COLUMNS, rows, "pairs", folded=len(rows) > 12)


PAIR_COLUMNS = [
    Column("Pair"),
    Column("Metric", wide=True),
    Column("n"),
    Column("Difference"),
    Column("Verdict", wide=True),
]


def _pair_rows(run: Run, rows: pd.DataFrame) -> list[list[Cell]]:
    """The rows of one metric."""
    how = spread(rows)
    return [
        [
            Cell(f"{row['first']} − {row['second']}"),
            Cell(f"{run.title(row['metric'])} {how.power}".strip()),
            number_cell(count(row["n"])),
            number_cell(NOTHING if math.isnan(row["mean"]) else _signed(how, row)),
            Cell(_verdict(row)),
        ]
        for _, row in rows.iterrows()
    ]


def _signed(how: Format, row: "pd.Series[Any]") -> str:
    return how.interval(row["mean"], row["low"], row["high"], signed=True)


def _verdict(row: "pd.Series[Any]") -> str:
    return "tie" if row["verdict"] == "tie" else f"{row['first']} {row['verdict']}"


# --------------------------------------------------------------------- 2 Speed


def _speed(run: Run) -> Section:
    frame = run.table("speed")
    if frame.empty:
        return Section("speed", "Speed", gaps=not_measured(run, "speed", "scenarios", "untimed"))
    tables = [t for t in (_costs(run), _scenarios(run), _speeds(run), _untimed(run)) if t.rows]
    return Section("speed", "Speed", [*_speed_lead(run)], tables, not_measured(run, "speed", "scenarios", "untimed"))


def _speed_lead(run: Run) -> Iterator[str]:
    frame, about = run.table("speed"), run.record["speed"]
    yield (
        "Time per request in passes of their own: no retries, no cache, no metrics. "
        "Compute is what the backend reports; transport is what remains of the whole."
    )
    few = [f"{name[-3:]} (needs {n})" for name, n in MINIMUM.items() if frame[name].isna().any()]
    if few:
        yield f"“n too small”: too few requests for {names(few)} at 99 % confidence."
    yield (
        "The ratio is of median compute times, in requests of as many images, with a bootstrap interval over requests; "
        "under 11 requests it is of means and has none. Steps are evaluations of a network for each image."
    )
    if about:
        memory = "Memory: peak resident size of the backend's process during the pass"
        notes = names(dict.fromkeys(note for note in frame["memory_note"] if note))
        yield f"{memory}{'' if notes == NOTHING else f' ({notes})'}. Energy, {about.get('energy')}."
        timed = run.record["inputs"].get("timed")
        photos = f"Inputs of {timed} pixels, the size that most photos have."
        yield f"Inputs: {about.get('inputs')}." if run.reference else photos
    if _has_scenarios(run):
        yield (
            "Single stream sends the next image when the last is back; server sends at random (Poisson) times and "
            "counts from when a request was due; offline sends everything at once. MLPerf's passes last ten minutes, "
            "these end with their requests or their time budget."
        )


def _costs(run: Run) -> Table:
    """One row per backend and size for single images, and one for the requests that were fastest an image."""
    frame, left = run.table("speed"), run.table("untimed")
    shown = frame[(frame["batch"] == 1) | frame["best"].astype(bool)]
    rows = [
        row
        for label in run.labels
        for size in _sizes(run)
        for row in _cost_rows(run, label, _at(shown, label, size), _at(left, label, size))
    ]
    reference = names(dict.fromkeys(r for r in frame["reference"] if r))
    guessed = "" if frame["energy_method"].str.startswith("measured").any() else ", estimate"
    columns = [
        Column("Backend"),
        Column("Output", "pixels a side"),
        Column("Batch"),
        Column("n", "requests"),
        Column("Request p50", "p90, end to end"),
        Column("Compute p50", "a request"),
        Column("Time", "an image"),
        Column("Memory", "peak, MB"),
        Column("Energy", f"J an image{guessed}"),
        Column("Steps"),
        Column("Ratio", f"to {reference}, compute"),
        Column("Valid", wide=True),
    ]
    return Table("Time, memory and energy of one image: one a request, and the fastest batch", columns, rows, "speed")


def _cost_rows(run: Run, label: str, made: pd.DataFrame, left: pd.DataFrame) -> Iterator[list[Cell]]:
    for _, row in made.sort_values("batch").iterrows():
        yield [short_label(run, label), *_cost(row)]
    if made.empty:
        for _, row in left[left["stage"].isin(WHOLE_SIZE)].iterrows():
            nothing = [number_cell(NOTHING) for _ in range(8)]
            status = number_cell(str(row["status"]), kind="muted")
            size = number_cell(count(row["output_px"]))
            yield [short_label(run, label), size, status, *nothing, Cell(NOTHING, str(row["reason"]))]


def _cost(row: "pd.Series[Any]") -> Iterator[Cell]:
    yield number_cell(count(row["output_px"]))
    yield number_cell(count(row["batch"]), "fastest" if row["best"] else "")
    yield number_cell(count(row["n"]))
    p90 = row["end_to_end_p90"]
    yield _typical(row, "end_to_end", "p90: n too small" if math.isnan(p90) else f"p90 {duration(p90)}")
    yield _typical(row, "compute")
    yield number_cell(duration(1 / row["images_per_s"]), f"{significant(row['images_per_s'])}/s")
    device = row["peak_device_memory_mb"]
    yield _known(row["peak_memory_mb"], count, f"device {count(device)}" if device > 0 else "")
    yield _known(row["energy_j"], significant)
    yield _known(row["steps"], count)
    yield _multiple(row)
    yield _valid(row)


def _known(value: float, write: Callable[[float], str], sub: str = "") -> Cell:
    return number_cell("not known", sub, "muted") if math.isnan(value) else number_cell(write(value), sub)


def _typical(row: "pd.Series[Any]", time: str, sub: str = "") -> Cell:
    if math.isnan(row[f"{time}_p50"]):
        return number_cell(f"mean {duration(row[f'{time}_mean'])}", "no percentile: n too small", "muted")
    return number_cell(duration(row[f"{time}_p50"]), sub)


def _percentile(row: "pd.Series[Any]", name: str, instead: str = "") -> Cell:
    few = math.isnan(row[name])
    return number_cell("n too small" if few else duration(row[name]), instead if few else "", "muted" if few else "")


def _multiple(row: "pd.Series[Any]") -> Cell:
    if row["backend"] == row["reference"]:
        return number_cell("reference")
    return number_cell(multiple(row["ratio"], row["ratio_low"], row["ratio_high"]))


def _valid(row: "pd.Series[Any]") -> Cell:
    note = str(row["note"] or "")
    return Cell("unknown" if note else "yes", note) if row["valid"] else Cell("invalid", note, "strong")


def _scenarios(run: Run) -> Table:
    frame, left = run.table("scenarios"), run.table("untimed")
    rows = [
        [short_label(run, label), number_cell(count(size)), *cells]
        for label in run.labels
        for size in _sizes(run)
        if (cells := [*_scenario(_at(frame, label, size), _at(left, label, size))])
    ]
    bound = frame["bound_s"].max()
    columns = [
        Column("Backend"),
        Column("Output", "pixels a side"),
        Column("Single stream", "p90"),
        Column("Server", "most random arrivals" + ("" if math.isnan(bound) else f" with a p90 within {bound:g} s")),
        Column("Offline", "all at once"),
        Column("Valid", wide=True),
    ]
    return Table("Scenarios, after MLPerf", columns, rows if _has_scenarios(run) else [], "scenarios")


def _has_scenarios(run: Run) -> bool:
    return bool(set(run.table("scenarios")["scenario"]) - {"single stream"}) or bool(
        run.table("untimed")["stage"].str.startswith("server").any()
    )


def _sizes(run: Run) -> list[int]:
    return sorted({*run.table("speed")["output_px"], *run.table("untimed")["output_px"]})


def _at(frame: pd.DataFrame, label: str, size: float) -> pd.DataFrame:
    return frame[(frame["backend"] == label) & (frame["output_px"] == size)]


def _scenario(mine: pd.DataFrame, left: pd.DataFrame) -> Iterator[Cell]:
    if mine.empty:
        for _, row in left[left["stage"].isin(WHOLE_SIZE)].iterrows():
            nothing = [number_cell(NOTHING) for _ in range(2)]
            yield from [number_cell(str(row["status"]), kind="muted"), *nothing, Cell(NOTHING, str(row["reason"]))]
        return
    single, server, offline = (mine[mine["scenario"] == kind] for kind in ("single stream", "server", "offline"))
    yield _first(single, lambda row: _percentile(row, "latency_p90", f"n = {count(row['n'])}"))
    yield _server(server, left[left["stage"].str.startswith("server")])
    yield _first(offline, lambda row: _rate(row["images_per_s"], f"n = {count(row['n'] * row['batch'])} images"))
    yield _valid(mine.sort_values("valid", kind="stable").iloc[0])  # the first invalid one, if there is one


def _first(frame: pd.DataFrame, cell: Callable[["pd.Series[Any]"], Cell]) -> Cell:
    return cell(frame.iloc[0]) if len(frame) else number_cell(NOTHING)


def _server(rates: pd.DataFrame, left: pd.DataFrame) -> Cell:
    """The largest rate that holds the bound; else why there is none."""
    held = rates[rates["holds"] == "yes"]
    if len(held):
        best = held.iloc[-1]
        further = "" if len(held) < len(rates) else "; no higher rate was tried"
        return _rate(best["rate"], f"p90 {duration(best['latency_p90'])}, n = {count(best['n'])}{further}")
    if len(rates):
        lowest = rates.iloc[0]
        return number_cell("none", f"p90 {duration(lowest['latency_p90'])} at {significant(lowest['rate'])}/s")
    return _first(left, lambda row: number_cell(str(row["status"]), str(row["reason"]), "muted"))


def _rate(images: float, sub: str) -> Cell:
    return number_cell(f"{significant(images)}/s", sub)


def _speeds(run: Run) -> Table:
    frame = by_backend(run, run.table("speed"), "output_px", "batch")
    rows = [[short_label(run, row["backend"]), *_timing(row)] for _, row in frame.iterrows()]
    columns = [
        Column("Backend"),
        Column("Output", "pixels a side"),
        Column("Batch"),
        Column("n", "requests"),
        *(Column(f"p{p}", "end to end") for p in (50, 90, 95, 99)),
        Column("p50", "compute"),
        Column("p50", "transport"),
        Column("Images/s"),
        Column("Cold start"),
        Column("Compute", f"to {BASELINE}"),
        Column("Ratio", "to the reference, in turns"),
        Column("Valid", wide=True),
    ]
    return Table("Every timed pass of requests one after another", columns, rows, "speed", folded=True)


def _timing(row: "pd.Series[Any]") -> Iterator[Cell]:
    yield from (number_cell(count(row[name])) for name in ("output_px", "batch", "n"))
    yield from (_percentile(row, name) for name in MINIMUM)
    yield from (number_cell(duration(row[name])) for name in ("compute_p50", "transport_p50"))
    yield number_cell(significant(row["images_per_s"]))
    warm_up = row["warm_up_s"]
    yield number_cell(duration(row["cold_start_s"]), "" if math.isnan(warm_up) else f"warm-up {duration(warm_up)}")
    yield number_cell(times(row["ratio_compute_bicubic"]))
    yield _multiple(row)
    yield _valid(row)


def _untimed(run: Run) -> Table:
    frame = by_backend(run, run.table("untimed"), "output_px")
    rows = [
        [
            Cell(row["backend"]),
            number_cell(count(row["output_px"])),
            *(Cell(str(row[k])) for k in ("stage", "status", "reason")),
        ]
        for _, row in frame.iterrows()
    ]
    columns = [
        Column("Backend"),
        Column("Output", "pixels a side"),
        *(Column(t, wide=True) for t in ("Pass", "Status", "Reason")),
    ]
    return Table("Passes that were not made", columns, rows, "untimed", folded=True)


# --------------------------------------------------------------------- 3 Noise


def _noise(run: Run) -> Section:
    if run.table("noise").empty:
        return Section("noise", "Noise", gaps=not_measured(run, "noise"))
    lead = [
        (
            "Gaussian noise of standard deviation σ on the low-resolution input. Second line of a cell: the paired "
            f"difference to {BASELINE} on the same noisy inputs."
        )
    ]
    metrics = run.metrics("noise")
    shown = [m for m in (run.headline, DISTORTION) if m in metrics]
    tables = [_noise_table(run, m, chart=m in shown) for m in shown + [m for m in metrics if m not in shown]]
    return Section("noise", "Noise", lead, tables, not_measured(run, "noise"))


def _noise_table(run: Run, metric: str, *, chart: bool) -> Table:
    frame = run.table("noise", metric)
    how, against = spread(frame), spread(frame[frame["backend"] != BASELINE], "difference")
    levels = frame.drop_duplicates("severity").sort_values("severity")
    rows = []
    for label, mine in by_backend(run, frame).groupby("backend", sort=False):
        by_level = {row["severity"]: row for _, row in mine.iterrows()}
        rows.append([label_cell(run, str(label)), *(_noisy(by_level.get(s), how, against) for s in levels["severity"])])
    columns = [Column("Backend"), *(_level(row) for _, row in levels.iterrows())]
    caption = f"{run.title(metric)} {how.power}".strip() + f" under noise, n = {_extent(frame['n'])} images"
    return Table(caption, columns, rows, "noise", f"noise-{metric}" if chart else "", folded=not chart)


def _level(row: "pd.Series[Any]") -> Column:
    return (
        Column("clean") if row["severity"] == 0 else Column(f"σ = {row['sigma']:g}", f"level {count(row['severity'])}")
    )


def _noisy(row: "pd.Series[Any] | None", how: Format, against: Format) -> Cell:
    if row is None or math.isnan(row["mean"]):
        return number_cell("not measured", kind="muted")
    if math.isinf(row["mean"]):
        return number_cell("identical")
    gap = (
        ""
        if row["backend"] == BASELINE or math.isnan(row["difference"])
        else against.interval(row["difference"], row["difference_low"], row["difference_high"], signed=True)
    )
    return number_cell(how.interval(row["mean"], row["low"], row["high"]), gap)


def _extent(values: "pd.Series[Any]") -> str:
    low, high = values.min(), values.max()
    return count(low) if low == high else f"{count(low)} to {count(high)}"


# -------------------------------------------------------- 5 Worst, 6 Failures


def _worst(run: Run) -> Section:
    frame = by_backend(run, run.table("worst"), "rank")
    lead = [
        "The images with the worst score of each backend, worst first: picked, so they show the tail, not the rule."
    ]
    if frame.empty:
        return Section("worst", "Worst cases", gaps=not_measured(run, "worst"))
    attributes = attribute_columns(frame)
    rows = [
        [
            Cell(row["backend"]),
            number_cell(count(row["rank"])),
            Cell(str(row["image"])),
            number_cell(significant(row["value"])),
            *(Cell(text_or_nothing(row[a])) for a in attributes),
        ]
        for _, row in frame.iterrows()
    ]
    columns = [
        Column("Backend"),
        Column("Rank"),
        Column("Image", wide=True),
        Column(names(map(run.title, run.metrics("worst")))),
    ]
    columns += [Column(a.capitalize(), wide=True) for a in attributes]
    return Section(
        "worst", "Worst cases", lead, [Table("Worst images of each backend", columns, rows, "worst", folded=True)]
    )


def attribute_columns(frame: pd.DataFrame) -> list[str]:
    """The group attributes that a table of pictures carries besides its own columns."""
    own = {*["backend", "metric", "rank", "image", "value", "input", "output", "target"]}
    return [str(c) for c in frame.columns if c not in own]


def _failures(run: Run) -> Section:
    if "failures" in run.missing:
        return Section("failures", "Failures", gaps=not_measured(run, "failures"))
    frame = by_backend(run, run.table("failures"))
    if frame.empty:
        return Section("failures", "Failures", ["No case failed."])
    rows = [
        [
            Cell(row["backend"]),
            Cell(str(row["condition"])),
            Cell(str(row["kind"])),
            number_cell(count(row["n"])),
            Cell(str(row["message"])),
        ]
        for _, row in frame.iterrows()
    ]
    columns = [
        Column("Backend"),
        Column("Condition", wide=True),
        Column("Kind", wide=True),
        Column("Cases"),
        Column("Message", wide=True),
    ]
    lead = ["A failed case costs its own images and no others; the means above are over what remains."]
    return Section("failures", "Failures", lead, [Table("Failed cases by kind", columns, rows, "failures")])


# --------------------------------------------------------------- 7 What was tested


def _tested(run: Run) -> Section:
    tables = [_backends(run), _traits(run), _dataset(run), _recipes(run), _environment(run)]
    return Section("tested", "What was tested", tables=[t for t in tables if t.rows])


def _backends(run: Run) -> Table:
    rows = [
        [
            label_cell(run, label),
            Cell(str(b.get("family", NOTHING))),
            Cell(", ".join(f"{k} = {v}" for k, v in (b.get("options") or {}).items()) or NOTHING),
            Cell(", ".join(filter(None, (b.get("device"), b.get("precision")))) or NOTHING),
            Cell(_yes(b.get("deterministic"))),
            Cell(str(b.get("address") or ("started by the harness" if b.get("digest") else NOTHING))),
            Cell(str(b.get("digest") or NOTHING)[:12], kind="code"),
            Cell(
                str(b.get("status", "unknown")), str(b.get("error") or ""), "" if b.get("status") == "ok" else "strong"
            ),
        ]
        for label, b in run.backends.items()
    ]
    titles = ["Backend", "Family", "Options", "Device, precision", "Deterministic", "Address", "Digest", "Status"]
    return Table("Backends", [Column(t, wide=i > 0) for i, t in enumerate(titles)], rows)


def _traits(run: Run) -> Table:
    rows = [
        [label_cell(run, label), Cell(str(b.get("licence") or "not stated")), _domain(b)]
        for label, b in run.backends.items()
    ]
    return Table(
        "Licences and stated domains",
        [Column("Backend"), Column("Licence", wide=True), Column("Made for", wide=True)],
        rows,
    )


def _domain(backend: dict[str, Any]) -> Cell:
    minimum = backend.get("domain_minimum")
    out = "tested outside this domain" if backend.get("out_of_domain") else ""
    needs = f"inputs of at least {minimum} pixels" if minimum and minimum > 1 else ""
    return Cell(
        str(backend.get("domain") or "not stated"), "; ".join(t for t in (out, needs) if t), "strong" if out else ""
    )


def _yes(value: Any) -> str:  # noqa: ANN401 - a JSON value
    return {True: "yes", False: "no"}.get(value, NOTHING)


def _dataset(run: Run) -> Table:
    data = run.record["dataset"]
    pairs = {
        "Name": data.get("name"),
        "Specification": data.get("spec"),
        "Images": data.get("images"),
        "Sizes of the inputs": input_sizes(run.record["inputs"]),
        "Licence": data.get("licence"),
        "Demonstration data": _yes(data.get("demonstration")),
        "Age groups": data.get("age_rule"),
        "SHA-256": data.get("sha256"),
    }
    notes = {f"Note {i}": note for i, note in enumerate(data.get("notes") or [], 1)}
    return _facts("Dataset", {**pairs, **notes})


def input_sizes(inputs: dict[str, Any]) -> str | None:
    """The sizes of the inputs in words."""
    if not inputs:
        return None
    smallest, largest, number = (inputs.get(key) for key in ("smallest", "largest", "sizes"))
    return f"{smallest} pixels" if number == 1 else f"{smallest} to {largest} pixels, {number} sizes"


def _facts(caption: str, pairs: dict[str, Any], *, folded: bool = False) -> Table:
    rows = [
        [Cell(k), Cell(str(v), kind="code" if k.endswith("SHA-256") else "")]
        for k, v in pairs.items()
        if v not in (None, "")
    ]
    return Table(caption, [Column("Item"), Column("Value", wide=True)], rows, folded=folded)


def _recipes(run: Run) -> Table:
    rows = [
        [
            Cell(run.title(m)),
            Cell(m, kind="code"),
            Cell({True: "higher", False: "lower", None: "neither"}[run.higher_is_better(m)]),
            Cell(str(about.get("recipe") or NOTHING)),
        ]
        for m, about in {**run.record["metrics"], **run.record["set_metrics"]}.items()
    ]
    if about := run.record["diversity"]:
        texts = [str(about.get(key) or NOTHING) for key in ("title", "name", "recipe")]
        rows.append([Cell(texts[0]), Cell(texts[1], kind="code"), Cell("neither"), Cell(texts[2])])
    return Table(
        "Metric recipes", [Column("Metric"), *(Column(t, wide=True) for t in ("Key", "Better", "Recipe"))], rows
    )


def _environment(run: Run) -> Table:
    env = run.record["environment"]
    pairs = {
        "Processor": env.get("cpu"),
        "Cores": env.get("cores"),
        "Threads used": env.get("threads"),
        "Memory": f"{env['memory_gb']} GB" if env.get("memory_gb") else None,
        "Platform": env.get("platform"),
        "Python": env.get("python"),
    }
    return _facts("Environment", pairs)


# ---------------------------------------------------------------- 8 How to reproduce


def _reproduce(run: Run) -> Section:
    record, git = run.record, run.record["environment"].get("git") or {}
    pairs = {
        "Harness version": record.get("harness_version"),
        "Git commit": f"{git['commit']}{', with uncommitted changes' if git.get('dirty') else ''}"
        if git.get("commit")
        else None,
        "Suite": record["suite"].get("name"),
        "Suite SHA-256": record["suite"].get("sha256"),
        "Dataset SHA-256": record["dataset"].get("sha256"),
    }
    pairs |= {f"{label}, digest": b.get("digest") for label, b in run.backends.items()}
    packages = record["environment"].get("packages") or {}
    tables = [_facts("What fixes the result", pairs), _facts("Package versions", packages, folded=True), _suite(run)]
    lead = ["The same command gives the same images; the digests say whether it is the same code and weights."]
    return Section("reproduce", "How to reproduce", lead, [t for t in tables if t.rows])


def _suite(run: Run) -> Table:
    content = run.record["suite"].get("content") or {}
    pairs = {k: v if isinstance(v, str) else json.dumps(v, ensure_ascii=False)[:2000] for k, v in content.items()}
    return _facts("Suite content", pairs, folded=True)


def dominance(run: Run) -> str:
    """The chart's takeaway in one sentence: which compared backends lead in perception, and which in distortion."""
    axes = (run.headline, DISTORTION)
    leaders = {m: [x for x, place in ranks(run, m, run.compared).items() if place == 1] for m in axes}
    if not all(leaders.values()):
        return "The order is open: some backends were not compared pairwise."
    both = [x for x in leaders[run.headline] if x in leaders[DISTORTION]]
    if both:
        return f"{names(both)}: first or tied for first on both axes."
    perception, distortion = (names(leaders[m]) for m in axes)
    return f"No backend leads on both axes: {perception} in perception, {distortion} in distortion."
