"""The fairness section: what is claimed of the groups, each group's figures first, gaps against chance, then faces.

The order is that of a reader who is no statistician: verdicts, then the vectors they rest on, then the indices.
"""

import math
from collections.abc import Iterator
from functools import partial
from typing import Any

import pandas as pd

from harness.score import BASELINE
from reports.findings import NOT_PASSED
from reports.load import Run
from reports.numbers import NOTHING, Format, count, fit, p_value, significant
from reports.parts import (
    Cell,
    Column,
    Field,
    Section,
    Table,
    backend_field,
    by_backend,
    count_field,
    figure_field,
    listing,
    not_measured,
    number_cell,
    p_field,
    short_label,
    spread,
    text_field,
    text_or_nothing,
)

TABLES = ("groups", "gaps")
FACES = (
    *("contrasts", "subgroups", "flips", "excess_flips", "parity", "posterior", "reliability", "perceptual"),
    *("verification", "indices", "seeds", "probes", "instruments", "disagreement", "unread"),
)

LIMITS = (
    "Limits: the groups are labels that others guessed from pictures, and a network's reading is a guess as well. "
    "Corrected figures assume that the classifier errs on outputs as it does on photos. Identities are compared on a "
    "part of the faces, and different photos of one person count as different people. p-values where no adjustment is "
    "named are exploratory."
)


def section(run: Run) -> Section:
    """The whole section."""
    audited = bool(run.record["instruments"])
    rest = [_absent(run)] if audited and _absent(run) else []
    if run.table("groups").empty:
        return Section("groups", "Fairness", gaps=not_measured(run, *TABLES) + rest)
    vectors = list(_by_group(run))
    first = [table for table in vectors if not table.folded]
    others = [table for table in vectors if table.folded]
    scores = [*_claims(run), *first, _contrasts(run), *_gaps(run), _searched(run), *others]
    tables = [*scores, *(_faces(run) if audited else ())]
    absent = not_measured(run, "gaps") + rest
    return Section("groups", "Fairness", [*_lead(run)], [t for t in tables if t.rows], absent)


def _absent(run: Run) -> str:
    """One sentence for all tables of the audit that there are not, since a suite seldom asks for everything."""
    reasons = "; ".join(run.missing[table] for table in FACES if table in run.missing)
    return f"{reasons}. {NOT_PASSED}" if reasons else ""


def _lead(run: Run) -> Iterator[str]:
    yield (
        f"Gain is the paired improvement over {BASELINE} on the same images, positive where the backend is better; "
        "it takes out how hard a group's images are in themselves."
    )
    yield (
        "Fewer than 100 images: low precision. Fewer than 30: insufficient, and no figure is given. The largest of "
        "several differences is never 0, so each gap stands beside the one that shuffled groups give."
    )
    yield (
        "Disparity: p < 0.05 after adjustment, by Holm over the claims that the suite fixed before the run, by "
        "Benjamini and Hochberg over everything else. No disparity: the 90 % interval of every group's contrast lies "
        "within the margin. Inconclusive: neither."
    )
    if run.record["instruments"]:
        yield (
            "What an instrument reads in a face is that instrument's guess, not who somebody is. Its own noise is "
            "shown by the control arm, the ground truth saved once as PNG and once as JPEG; excess is what goes beyond."
        )
        yield LIMITS


# Scores by group


def _ordered(run: Run, table: str) -> list[str]:
    metrics = run.metrics(table)
    return [m for m in metrics if m == run.headline] + [m for m in metrics if m != run.headline]


def _by_group(run: Run) -> Iterator[Table]:
    for metric in _ordered(run, "groups"):
        for attribute in dict.fromkeys(run.table("groups", metric)["attribute"]):
            yield _group_table(run, metric, attribute)


def _group_table(run: Run, metric: str, attribute: str) -> Table:
    frame = run.table("groups", metric)
    frame = by_backend(run, frame[frame["attribute"] == attribute])
    labels = [label for label in dict.fromkeys(frame["backend"]) if _informative(run, label, frame)]
    how, gain = spread(frame), spread(frame[frame["backend"].isin(run.compared)], "gain")
    rows = []
    for group in dict.fromkeys(frame["group"]):
        mine = {row["backend"]: row for _, row in frame[frame["group"] == group].iterrows()}
        n = max(row["n"] for row in mine.values())
        rows.append(
            [Cell(str(group)), number_cell(count(n)), *(_group_cell(mine.get(label), how, gain) for label in labels)]
        )
    columns = [Column(attribute.capitalize()), Column("n"), *(Column(label, _role(run, label)) for label in labels)]
    caption = f"{run.title(metric)} {how.power}".strip() + f" by {attribute}"
    main = metric == run.headline
    return Table(caption, columns, rows, "groups", f"groups-{attribute}" if main else "", folded=not main)


def _informative(run: Run, label: str, frame: pd.DataFrame) -> bool:
    """Whether a column says anything: the ground truth against itself does not."""
    means = frame[frame["backend"] == label]["mean"].dropna()
    return not run.is_control(label) or bool(((means != 0) & means.map(math.isfinite)).any())


def _role(run: Run, label: str) -> str:
    return "control arm" if run.is_control(label) else f"gain over {BASELINE} below"


def _group_cell(row: "pd.Series[Any] | None", how: Format, gain: Format) -> Cell:
    if row is None:
        return number_cell("not measured", kind="muted")
    if row["status"] == "insufficient" or math.isnan(row["mean"]):
        return number_cell("insufficient", f"n = {count(row['n'])}", "muted")
    subs = [] if math.isnan(row["gain"]) else [f"gain {gain.interval(row['gain'], row['gain_low'], row['gain_high'])}"]
    subs += [] if row["status"] == "ok" else [str(row["status"])]
    return number_cell(how.interval(row["mean"], row["low"], row["high"]), " · ".join(subs))


def _claims(run: Run) -> Iterator[Table]:
    """The primary claims with their verdicts."""
    frame = run.table("gaps")
    frame = by_backend(run, frame[frame["family"] == "primary"])
    rows = [[short_label(run, row["backend"]), *_claim(run, row)] for _, row in frame.iterrows()]
    columns = [
        Column("Backend"),
        Column("Measure", wide=True),
        Column("Gap"),
        Column("Chance: 95 %", "of gaps below"),
        Column("Margin"),
        Column("p", "Holm"),
        Column("Smallest gap", "shown with 80 % power"),
        Column("Verdict", wide=True),
    ]
    yield Table("Primary claims, fixed in the suite before the run", columns, rows, "gaps")


def _claim(run: Run, row: "pd.Series[Any]") -> list[Cell]:
    strong = "strong" if row["verdict"] == "disparity" else ""
    ends = f"worst {row['worst']}, best {row['best']}" if row["worst"] else ""
    return [
        Cell(_measure(run, row), f"by {row['attribute']}"),
        *(number_cell(significant(row[key], 3)) for key in ("gap", "null_p95", "margin")),
        number_cell(p_value(row["p_adjusted"])),
        number_cell(significant(row["smallest_effect"], 3)),
        Cell(str(row["verdict"]), ends, strong),
    ]


def _measure(run: Run, row: "pd.Series[Any]") -> str:
    title = run.title(row["metric"])
    return f"{title}, gain over {BASELINE}" if row["of"] == "gain" else title


def _gaps(run: Run) -> Iterator[Table]:
    for metric in _ordered(run, "gaps"):
        yield _gap_table(run, metric)


def _gap_table(run: Run, metric: str) -> Table:
    frame = run.table("gaps", metric)
    places = {attribute: i for i, attribute in enumerate(dict.fromkeys(frame["attribute"]))}
    frame = by_backend(run, frame).sort_values("attribute", key=lambda column: column.map(places), kind="stable")
    how = fit(frame["gap"].dropna())
    ends = ("Highest", "Lowest") if run.higher_is_better(metric) is None else ("Best", "Worst")
    rows = [[short_label(run, row["backend"]), *_gap(row, how)] for _, row in frame.iterrows()]
    columns = [
        Column("Backend"),
        Column("Of", wide=True),
        Column("By", wide=True),
        Column("Groups", "judged"),
        *(Column(f"{end} group", wide=True) for end in ends),
        Column("Gap", how.power),
        Column("Ratio", "smaller : larger"),
        Column("Chance: mean"),
        Column("Chance: 95 %", "of gaps below"),
        Column("p", "adjusted"),
        Column("Verdict", wide=True),
    ]
    caption = f"Largest gap between groups in {run.title(metric)}, against chance"
    return Table(caption, columns, rows, "gaps", folded=metric != run.headline)


def _gap(row: "pd.Series[Any]", how: Format) -> list[Cell]:
    untold = row["verdict"] == "insufficient"
    kind = "muted" if untold else ""
    figures = [how.number(row["gap"]), significant(row["ratio"]), how.number(row["null_mean"])]
    figures += [how.number(row["null_p95"]), p_value(row["p_adjusted"])]
    return [
        Cell(str(row["of"])),
        Cell(str(row["attribute"])),
        number_cell(count(row["groups"])),
        Cell(text_or_nothing(row["best"]), kind=kind),
        Cell(text_or_nothing(row["worst"]), kind=kind),
        *(number_cell(f, kind=kind) for f in figures),
        Cell(str(row["verdict"]), str(row["family"]), "strong" if row["verdict"] == "disparity" else kind),
    ]


def _contrasts(run: Run) -> Table:
    fields = [
        backend_field(run),
        _measure_field(run),
        text_field("Group", "group", "attribute"),
        count_field("n", "n"),
        figure_field("Difference", partial(_interval, value="difference"), "from the mean of the others"),
        p_field("Holm", "p_adjusted"),
        (Column("Verdict", wide=True), _better_or_worse),
    ]
    caption = "Each group against the others, in the claimed measures"
    return listing(caption, by_backend(run, run.table("contrasts")), fields, "contrasts", folded=True)


def _measure_field(run: Run) -> Field:
    return Column("Measure", wide=True), lambda row: Cell(_measure(run, row))


def _better_or_worse(row: "pd.Series[Any]") -> Cell:
    return Cell(str(row["verdict"]), kind="strong" if row["verdict"] in {"better", "worse"} else "")


def _interval(row: "pd.Series[Any]", value: str) -> str:
    """A signed figure with its interval."""
    how = fit([row[value]], [row["high"] - row["low"]])
    return f"{how.interval(row[value], row['low'], row['high'], signed=True)} {how.power}".strip()


def _three_digits(row: "pd.Series[Any]", value: str) -> str:
    return significant(row[value], 3)


def _percent(row: "pd.Series[Any]", value: str) -> str:
    return Format(1).number(100 * row[value])


def _searched(run: Run) -> Table:
    fields = [
        backend_field(run),
        _measure_field(run),
        text_field("Subgroup", "subgroup"),
        count_field("n", "n"),
        figure_field("Difference", partial(_three_digits, value="difference"), "from all others"),
        p_field("corrected for the search"),
        count_field("Searched", "searched", "subgroups"),
    ]
    caption = "The worst subgroup, among all groups and pairs of groups"
    return listing(caption, by_backend(run, run.table("subgroups")), fields, "subgroups", folded=True)


# What instruments read in faces


def _faces(run: Run) -> Iterator[Table]:
    yield from _excess(run)
    yield from _flips(run)
    yield _parity(run)
    yield _posterior(run)
    yield _reliability(run)
    yield _perceptual(run)
    yield _verification(run)
    yield _indices(run)
    yield _seeds(run)
    yield _probes(run)
    yield _instruments(run)
    yield _disagreement(run)
    yield _recipes(run)
    yield _unread(run)


def _share(row: "pd.Series[Any]", mean: str = "rate") -> str:
    """A rate in percent with its interval."""
    if math.isnan(row[mean]):
        return "insufficient"
    how = Format(1)
    return how.interval(100 * row[mean], 100 * row["low"], 100 * row["high"])


def _excess(run: Run) -> Iterator[Table]:
    frame = run.table("excess_flips")
    for (instrument, attribute), mine in frame.groupby(["instrument", "attribute"], sort=False):
        labels = [label for label in run.labels if label in set(mine["backend"])]
        rows = []
        for group in dict.fromkeys(mine["group"]):
            here = {row["backend"]: row for _, row in mine[mine["group"] == group].iterrows()}
            n = max(row["n"] for row in here.values())
            rows.append([Cell(str(group)), number_cell(count(n)), *(_excess_cell(here.get(x)) for x in labels)])
        columns = [Column("Group"), Column("n"), *(Column(label, "excess below") for label in labels)]
        caption = f"Faces whose {attribute}, as {instrument} reads it, is not that of the photo, in %"
        yield Table(caption, columns, rows, "excess_flips")


def _excess_cell(row: "pd.Series[Any] | None") -> Cell:
    if row is None or math.isnan(row["rate"]):
        return number_cell("insufficient", "" if row is None else f"n = {count(row['n'])}", "muted")
    how = Format(1)
    figures = [100 * row[key] for key in ("excess", "excess_low", "excess_high")]
    fewer = "" if row["excess_n"] == row["n"] else f" (n = {count(row['excess_n'])})"
    below = "" if math.isnan(row["excess"]) else f"excess {how.interval(*figures, signed=True)}{fewer}"
    return number_cell(_share(row), below)


def _flips(run: Run) -> Iterator[Table]:
    """One matrix for each backend and classifier: rows are what the photo is read as, columns what the output is."""
    frame = by_backend(run, run.table("flips"))
    for (label, instrument, attribute), mine in frame.groupby(["backend", "instrument", "attribute"], sort=False):
        after = list(dict.fromkeys(mine["after"]))
        rows = []
        for before in dict.fromkeys(mine["before"]):
            here = {row["after"]: row for _, row in mine[mine["before"] == before].iterrows()}
            cells = [_flip_cell(here.get(name), same=name == before) for name in after]
            rows.append([Cell(f"{before}"), number_cell(count(sum(r["count"] for r in here.values()))), *cells])
        columns = [Column("Photo read as"), Column("n"), *(Column(str(name)) for name in after)]
        caption = f"{label}: the output's {attribute} by the photo's, as {instrument} reads both, in %"
        yield Table(caption, columns, rows, "flips", folded=True)


def _flip_cell(row: "pd.Series[Any] | None", *, same: bool) -> Cell:
    if row is None or math.isnan(row["rate"]):
        return number_cell(NOTHING, kind="muted")
    return number_cell(Format(1).number(100 * row["rate"]), kind="muted" if same else "")


def _parity(run: Run) -> Table:
    fields = [
        backend_field(run),
        text_field("Instrument", "instrument"),
        text_field("By", "attribute"),
        text_field("Measure", "measure"),
        count_field("n", "n"),
        figure_field("Value", partial(_three_digits, value="value"), "0 is parity"),
        figure_field("Corrected", partial(_three_digits, value="corrected"), "for the classifier's errors"),
        p_field(""),
        text_field("Test", "test", "note"),
    ]
    caption = (
        "Representation demographic parity (RDP), proportional representation (PR), uninformative inputs (UCPR); "
        "p exploratory, unadjusted"
    )
    frame = by_backend(run, run.table("parity"))
    return listing(caption, frame, fields, "parity", folded=len(frame) > 12)


def _posterior(run: Run) -> Table:
    fields = [
        backend_field(run),
        text_field("By", "attribute"),
        text_field("Group", "group"),
        count_field("n", "n", "inputs"),
        figure_field("Share of outputs", partial(_percent, value="share"), "%"),
        figure_field("Share of photos", partial(_percent, value="truth"), "%"),
        p_field("exchangeability"),
    ]
    caption = (
        "Conditional proportional representation (CPR): are outputs of one input distributed as the truth is? "
        "p exploratory, unadjusted"
    )
    return listing(caption, by_backend(run, run.table("posterior")), fields, "posterior")


def _reliability(run: Run) -> Table:
    how = Format(2)
    fields = [
        backend_field(run),
        text_field("Group", "group", "attribute"),
        figure_field("Share of outputs", lambda row: how.number(row["share"]), "in the group"),
        count_field("n", "n", "inputs"),
        figure_field("Photos in it", lambda row: how.interval(row["observed"], row["low"], row["high"])),
        figure_field(
            "Expected",
            lambda row: how.interval(row["expected"], row["expected_low"], row["expected_high"]),
            "of a calibrated model",
        ),
    ]
    frame = by_backend(run, run.table("reliability"))
    return listing("Calibration of the outputs' groups", frame, fields, "reliability", folded=True)


def _perceptual(run: Run) -> Table:
    frame = by_backend(run, run.table("perceptual"))
    told = frame[frame["gpi"].notna()]
    how = fit(told["gpi"], told["high"] - told["low"])
    fields = [
        backend_field(run),
        text_field("Group", "group", "attribute"),
        count_field("n", "n"),
        (Column("GPI", f"paired KID {how.power}".strip()), lambda row: _gpi(row, how)),
        figure_field("Group precision", partial(_covered, name="precision")),
        figure_field("Group recall", partial(_covered, name="recall")),
    ]
    return listing("Group perceptual index, on the attribute network's features", frame, fields, "perceptual")


def _gpi(row: "pd.Series[Any]", how: Format) -> Cell:
    if math.isnan(row["gpi"]):
        return number_cell("insufficient", kind="muted")
    return number_cell(how.interval(row["gpi"], row["low"], row["high"]))


def _covered(row: "pd.Series[Any]", name: str) -> str:
    figures = [row[name + end] for end in ("", "_low", "_high")]
    return NOTHING if math.isnan(row[name]) else Format(3).interval(*figures)


def _verification(run: Run) -> Table:
    others = "of outputs with others' photos, at the one threshold"
    fields = [
        backend_field(run),
        text_field("Group", "group", "attribute"),
        count_field("n", "n"),
        figure_field("Not matched", partial(_share, mean="fnmr"), "%, at one threshold"),
        figure_field("Not matched", partial(_percent, value="fnmr_own"), "%, at the group's own"),
        figure_field("False match rate", lambda row: significant(row["fmr"], 2), others),
        count_field("Pairs", "impostor_pairs", "of an output and another photo"),
        text_field("Note", "note"),
    ]
    caption = "Is the face still recognised as itself? Thresholds are where 1 % of the pairs of different photos match"
    return listing(caption, by_backend(run, run.table("verification")), fields, "verification")


def _indices(run: Run) -> Table:
    fields = [
        backend_field(run),
        text_field("Index", "index"),
        figure_field("Value", partial(_three_digits, value="value")),
        p_field("unadjusted"),
        text_field("Note", "note"),
    ]
    caption = "One number for all groups, after the vectors above"
    return listing(caption, by_backend(run, run.table("indices")), fields, "indices", folded=True)


def _title_field(run: Run) -> Field:
    return Column("Measure", wide=True), lambda row: Cell(run.title(row["metric"]))


def _seeds(run: Run) -> Table:
    how = Format(3)
    fields = [
        backend_field(run),
        _title_field(run),
        text_field("Group", "group"),
        count_field("n", "n"),
        figure_field(
            "Mean",
            lambda row: how.interval(row["mean"], row["low"], row["high"]),
            "images resampled, each with all its seeds",
        ),
        figure_field("SD between seeds", lambda row: how.number(row["seed_sd"])),
    ]
    caption = "What changes when only the seed does"
    return listing(caption, by_backend(run, run.table("seeds")), fields, "seeds", folded=True)


def _probes(run: Run) -> Table:
    fields = [
        backend_field(run),
        _title_field(run),
        text_field("Cue", "level"),
        count_field("n", "n", "faces"),
        figure_field("Effect of the cue alone", _effect),
        p_field("within faces"),
    ]
    caption = "Counterfactual series: the same faces with one cue moved; p exploratory, unadjusted"
    return listing(caption, by_backend(run, run.table("probes")), fields, "probes")


def _effect(row: "pd.Series[Any]") -> str:
    return _interval(row, "effect") if row["status"] == "ok" else "insufficient"


def _instruments(run: Run) -> Table:
    fields = [
        text_field("Instrument", "instrument"),
        text_field("Reads", "attribute"),
        text_field("Group", "group"),
        count_field("n", "n"),
        figure_field("Right", partial(_share, mean="accuracy"), "%, on the photos themselves"),
        count_field("No reading", "missing"),
    ]
    caption = "How far the instruments can be trusted"
    return listing(caption, run.table("instruments"), fields, "instruments", folded=True)


def _disagreement(run: Run) -> Table:
    fields = [
        (Column("Instruments"), lambda row: Cell(f"{row['first']}, {row['second']}")),
        text_field("Reads", "attribute"),
        text_field("Group", "group"),
        count_field("n", "n"),
        figure_field("Disagree", _disagrees, "%, of ages the mean difference; on the photos themselves"),
    ]
    caption = "Where two instruments disagree"
    return listing(caption, run.table("disagreement"), fields, "disagreement", folded=True)


def _disagrees(row: "pd.Series[Any]") -> str:
    told = row["attribute"] == "age" and not math.isnan(row["rate"])
    return f"{Format(1).number(row['rate'])} years" if told else _share(row)


def _recipes(run: Run) -> Table:
    """The instruments with their recipes, which name the networks by hash."""
    about = {name: told for name, told in run.record["instruments"].items() if isinstance(told, dict)}
    rows = [[Cell(name), Cell(_labels(told)), Cell(str(told.get("recipe", NOTHING)))] for name, told in about.items()]
    columns = [Column("Instrument"), Column("Labels", wide=True), Column("Recipe", "networks by hash", wide=True)]
    return Table("Instruments", columns, rows)


def _labels(told: dict[str, Any]) -> str:
    labels = told.get("labels") or {}
    return "; ".join(f"{name}: {', '.join(names)}" if names else name for name, names in labels.items()) or NOTHING


def _unread(run: Run) -> Table:
    fields = [
        backend_field(run),
        _title_field(run),
        text_field("Group", "group", "attribute"),
        count_field("n", "n"),
        text_field("Reason", "reason"),
    ]
    frame = by_backend(run, run.table("unread"))
    return listing("Readings that are missing", frame, fields, "unread", folded=True)
