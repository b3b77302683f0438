"""The sentences that open a report: who leads, by how much, and what the figures cannot carry.

Each is derived from the tables alone. Two backends are ordered only where their paired interval leaves out zero.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import pandas as pd

from harness.metrics import METRICS
from harness.score import BASELINE
from harness.speed import SIZE
from reports.load import Run
from reports.numbers import NBSP, count, duration, fit, multiple, names, p_value, significant

DISTORTION = "psnr"
SHARPNESS = "sharpness"
OPPOSITE = {"better": "worse", "worse": "better", "higher": "lower", "lower": "higher"}
NOT_PASSED = "Not measured is not passed."


@dataclass(frozen=True)
class Finding:
    """One sentence under its topic; a warning limits what the rest may be used for."""

    topic: str
    text: str
    warning: bool = False


@dataclass(frozen=True)
class Difference:
    """A paired difference, first minus second, with its 95 % interval."""

    mean: float
    low: float
    high: float
    verdict: str


def findings(run: Run) -> list[Finding]:
    """All sentences of "In short", warnings last."""
    if run.generative:
        return [*_generated(run), *_warnings(run)]
    fidelity = _distortion(run) if run.reference else _sharpness(run)
    parts = (_absent(run), _headline(run), fidelity, _diversity(run), _speed(run), _groups(run), _noise(run))
    behaviour = (_corrupted(run), _attacked(run), _invented(run), _explained(run))
    return [finding for part in (*parts, *behaviour, _warnings(run)) for finding in part]


def _absent(run: Run) -> Iterator[Finding]:
    """What a run without ground truth leaves out, and what the rest can and cannot say."""
    if run.reference:
        return
    compared = [metric.title for metric in METRICS.values() if metric.reference]
    absent = names([*compared, "KID", "FID", "the passthrough control"])
    text = (
        f"The photos are the inputs themselves, and nothing says what the outputs should be. {absent} need a "
        "ground truth and are absent. What remains: consistency says whether an output, made small again by bicubic, "
        "is its photo, which a wrong output can also be; sharpness says how much fine contrast there is, which noise "
        "and invented texture raise as well; diversity says how much a backend invents; then speed, and groups where "
        "photos have labels. None of them says that an output is true or pleasant: look at the pictures."
    )
    yield Finding("No ground truth", text)


def relation(run: Run, first: str, second: str, metric: str) -> Difference | None:
    """The paired difference between two backends, from `pairs` or `differences`; None when it was not measured."""
    pairs, to_baseline = run.table("pairs", metric), run.table("differences", metric)
    for a, b, sign in ((first, second, 1), (second, first, -1)):
        rows = pd.concat(
            [
                pairs[(pairs["first"] == a) & (pairs["second"] == b)],
                to_baseline[(to_baseline["backend"] == a) & (to_baseline["baseline"] == b)],
            ]
        )
        if len(rows):
            return _difference(rows.iloc[0], sign)
    return None


def _difference(row: "pd.Series[Any]", sign: int) -> Difference:
    if sign > 0:
        return Difference(row["mean"], row["low"], row["high"], row["verdict"])
    return Difference(-row["mean"], -row["high"], -row["low"], OPPOSITE.get(row["verdict"], row["verdict"]))


def ranks(run: Run, metric: str, labels: list[str]) -> dict[str, int | None]:
    """Per backend, best mean first: 1 + the number that are separably better; None where a pair was not compared.

    Nothing is ranked by a metric in which more is neither better nor worse.
    """
    if run.higher_is_better(metric) is None:
        return {}
    rows = run.table("summary", metric)
    rows = rows[rows["backend"].isin(labels) & rows["mean"].notna()]
    ordered = rows.sort_values("mean", ascending=not run.higher_is_better(metric), kind="stable")["backend"].tolist()
    return {label: _rank(run, metric, label, ordered) for label in ordered}


def _rank(run: Run, metric: str, label: str, labels: list[str]) -> int | None:
    found = [relation(run, label, other, metric) for other in labels if other != label]
    if any(f is None for f in found):
        return None
    return 1 + sum(f is not None and f.verdict == "worse" for f in found)


def value(run: Run, label: str, metric: str) -> str:
    """A backend's mean with its interval, as written in the comparison."""
    rows = run.table("summary", metric)
    row = rows[rows["backend"] == label].iloc[0]
    finite = rows[rows["mean"].map(math.isfinite)]
    return fit(finite["mean"], finite["high"] - finite["low"]).interval(row["mean"], row["low"], row["high"])


def _headline(run: Run) -> Iterator[Finding]:
    topic = f"Best {run.title(run.headline)}"
    order = list(ranks(run, run.headline, run.compared))
    if not order:
        yield Finding(topic, f"Not measured: no compared backend was scored in it. {NOT_PASSED}", warning=True)
        return
    best, rest = order[0], order[1:]
    tied = [other for other in rest if (r := relation(run, best, other, run.headline)) and r.verdict == "tie"]
    yield Finding(topic, f"{_lead(run, best, tied)}{_runner_up(run, best, rest, tied)}")
    yield from _against_baseline(run, order)


def _lead(run: Run, best: str, tied: list[str]) -> str:
    everyone = [f"{label} {value(run, label, run.headline)}{_share(run, label)}" for label in [best, *tied]]
    if not tied:
        return f"{everyone[0]}. "
    return f"a tie between {names(everyone)}: the paired differences do not separate them. "


def _share(run: Run, label: str) -> str:
    """On how many images a backend was scored, where others were scored on more."""
    n = run.table("summary", run.headline).set_index("backend")["n"]
    return f" on {count(n[label])} of {count(n.max())} images" if n[label] < n.max() else ""


def _runner_up(run: Run, best: str, rest: list[str], tied: list[str]) -> str:
    others = [other for other in rest if other not in tied]
    if not others:
        return "" if rest else "No second backend was compared."
    found = relation(run, best, others[0], run.headline)
    if found is None:
        return f"Its paired difference to {others[0]} was not measured, so the order is open."
    gap = fit([found.mean], [found.high - found.low]).interval(found.mean, found.low, found.high, signed=True)
    return f"Separated from {others[0]} ({value(run, others[0], run.headline)}) by a paired difference of {gap}."


def _against_baseline(run: Run, order: list[str]) -> Iterator[Finding]:
    found = {label: relation(run, label, BASELINE, run.headline) for label in order}
    for verdict, words in (("worse", "worse than"), ("tie", "not separated from")):
        labels = [label for label, r in found.items() if r and r.verdict == verdict]
        if labels:
            text = f"{names(labels)}: {words} {BASELINE} in {run.title(run.headline)}."
            yield Finding(f"Against {BASELINE}", text, warning=True)


def _distortion(run: Run) -> Iterator[Finding]:
    labels = [*run.compared, BASELINE] if BASELINE in run.labels else run.compared
    order = list(ranks(run, DISTORTION, labels))
    if not order:
        yield Finding("PSNR", f"Not measured. {NOT_PASSED}", warning=True)
        return
    text = f"{order[0]} {value(run, order[0], DISTORTION)}"
    for ahead, label in pairwise(order):
        text += f"{_sign(relation(run, ahead, label, DISTORTION))}{label} {value(run, label, DISTORTION)}"
    unknown = ", “?” not compared" if " ? " in text else ""
    signs = f"In paired differences “>” is separated, “=” tied{unknown}."
    yield Finding(f"{run.title(DISTORTION)}, best first", f"{text}. {signs}")


def _sharpness(run: Run) -> Iterator[Finding]:
    found = {label: relation(run, label, BASELINE, SHARPNESS) for label in run.compared}
    gains = {label: gain for label, gain in found.items() if gain is not None}
    how = fit([g.mean for g in gains.values()], [g.high - g.low for g in gains.values()])
    each = [f"{label} {how.interval(g.mean, g.low, g.high, signed=True)}" for label, g in gains.items()]
    if not each:
        yield Finding("Sharpness", f"Not measured. {NOT_PASSED}", warning=True)
        return
    topic = f"{run.title(SHARPNESS)} {how.power}".strip()
    yield Finding(topic, f"Paired gain over {BASELINE} on the same photos: {names(each)}. More is not better.")


def _diversity(run: Run) -> Iterator[Finding]:
    frame = run.table("diversity")
    single = frame[frame["note"] != ""]["backend"].tolist()
    measured = frame[(frame["note"] == "") & frame["mean"].notna()]
    how = fit(measured["mean"], measured["high"] - measured["low"])
    each = [
        f"{row['backend']} {how.interval(row['mean'], row['low'], row['high'])} between {count(row['samples'])} outputs"
        for _, row in measured.iterrows()
    ]
    if each:
        rest = f" {names(single)}: one output for an input." if single else ""
        yield Finding("Diversity", f"Mean LPIPS (AlexNet) of the same input under other seeds: {names(each)}.{rest}")


def _sign(found: Difference | None) -> str:
    return " ? " if found is None else {"better": " > ", "tie": " = ", "worse": " < "}.get(found.verdict, " ? ")


def _family(run: Run, family: str) -> list[str]:
    return [label for label in run.compared if run.backends.get(label, {}).get("family") == family]


def _speed(run: Run) -> Iterator[Finding]:
    if "speed" in run.missing:
        yield Finding("Speed", f"Not measured: {run.missing['speed']}. {NOT_PASSED}", warning=True)
        return
    speed = run.table("speed")
    mine = speed[speed["backend"].isin(_family(run, "diffusion")) & speed["ratio"].notna()]
    if mine.empty:
        why = "no diffusion backend was timed beside a GAN"
        yield Finding("Diffusion against GAN", f"Not measured: {why}. {NOT_PASSED}", warning=True)
    for _, rows in mine.groupby("backend", sort=False):
        valid = "" if rows["ratio_valid"].all() else " Some of these timings are invalid: see Speed."
        each = [_multiple(row) for _, row in rows.iterrows() if row["batch"] == 1 or row["best"]]
        yield Finding("Diffusion against GAN", f"{' '.join([*each, *_unsupported(run, rows)])}{valid}")


def _multiple(row: "pd.Series[Any]") -> str:
    """One sentence: at this size, with so many steps, so many times the compute time of the reference."""
    ratio = multiple(row["ratio"], row["ratio_low"], row["ratio_high"])
    evaluations = "" if math.isnan(row["steps"]) else f" with {count(row['steps'])} steps"
    images = "one image" if row["batch"] == 1 else f"{count(row['batch'])} images at once"
    pace = f"{duration(typical(row, 'compute'))} against {duration(row['reference_s'])}"
    where = f"At {count(row['output_px'])}{NBSP}px {row['backend']}{evaluations}"
    return f"{where} takes {ratio} times the compute time of {row['reference']} for {images} ({pace})."


def _unsupported(run: Run, rows: pd.DataFrame) -> Iterator[str]:
    left = run.table("untimed")
    for _, row in left[(left["backend"] == rows.iloc[0]["backend"]) & (left["stage"] == "all")].iterrows():
        yield f"{count(row['output_px'])}{NBSP}px: {row['status']}; it {row['reason']}."


def typical(row: "pd.Series[Any]", time: str) -> float:
    """A row's median time, or its mean where there were too few requests to quote a median."""
    return float(row[f"{time}_mean"] if math.isnan(row[f"{time}_p50"]) else row[f"{time}_p50"])


def _groups(run: Run) -> Iterator[Finding]:
    if "gaps" in run.missing:
        yield Finding("Groups", f"Not measured: {run.missing['gaps']}. {NOT_PASSED}", warning=True)
        return
    if (run.table("gaps")["family"] == "primary").any():
        yield from _claims(run)
        return
    gaps = run.table("gaps", run.headline)
    gaps = gaps[gaps["of"] == "value"]
    for label in run.compared:
        rows = gaps[gaps["backend"] == label]
        if len(rows):
            text = _group_sentence(rows, gaps[gaps["backend"] == BASELINE])
            yield Finding(f"Groups, {label}", f"{run.title(run.headline)}: {text}.")


def _claims(run: Run) -> Iterator[Finding]:
    """The verdict on each attribute, from the claims that the suite fixed before the run."""
    gaps = run.table("gaps")
    primary = gaps[gaps["family"] == "primary"]
    for label in run.compared:
        mine = primary[primary["backend"] == label]
        for attribute in dict.fromkeys(mine["attribute"]):
            claims = [_claim(run, row) for _, row in mine[mine["attribute"] == attribute].iterrows()]
            first, rest = claims[0][:1], claims[0][1:]
            yield Finding(f"{label}, {attribute}", f"{first.upper()}{'; '.join([rest, *claims[1:]])}.")


OF = {"value": "", "gain": f" gain over {BASELINE}", "excess": " beyond the control arm"}


def _claim(run: Run, row: "pd.Series[Any]") -> str:
    what = run.title(row["metric"]) + OF.get(row["of"], "")
    if row["verdict"] == "disparity":
        ends = ("highest", "lowest") if run.higher_is_better(row["metric"]) is None else ("best", "worst")
        chance = f"gap {significant(row['gap'], 2)}, 95 % of chance gaps under {significant(row['null_p95'], 2)}"
        within = f"; no group is {significant(row['margin'], 2)} from the others' mean" if row["equivalent"] else ""
        return f"disparity in {what}, {ends[1]} {row['worst']}, {ends[0]} {row['best']} ({chance}{within})"
    if row["verdict"] == "inconclusive":
        could = f"{significant(row['smallest_effect'], 2)} would be found in four of five such test sets"
        return f"inconclusive in {what}: the gap is {significant(row['gap'], 2)}, a true one of {could}"
    if row["verdict"].startswith("no disparity"):
        return f"in {what} no group is {significant(row['margin'], 2)} or more from the others' mean"
    few = "too few images to judge" if row["verdict"] == "insufficient" else "nothing measured of"
    return f"{few} {what} ({NOT_PASSED[:-1].lower()})"


def _group_sentence(rows: pd.DataFrame, baseline: pd.DataFrame) -> str:
    real = rows[rows["verdict"] == "disparity"].sort_values("gap", ascending=False)
    shared = set(baseline[baseline["verdict"] == "disparity"]["attribute"])
    parts = [_gap(row, shared=row["attribute"] in shared) for _, row in real.iterrows()]
    open_ones = rows[rows["verdict"] == "inconclusive"]["attribute"].tolist()
    level = rows[rows["verdict"] == "no disparity beyond the margin"]["attribute"].tolist()
    parts += [f"no disparity beyond the margin by {names(level)}"] if level else []
    untold = rows[rows["verdict"] == "insufficient"]["attribute"].tolist()
    parts += [f"inconclusive by {names(open_ones)}"] if open_ones else []
    parts += [f"too few images to judge by {names(untold)} ({NOT_PASSED[:-1].lower()})"] if untold else []
    return "; ".join(parts)


def _gap(row: "pd.Series[Any]", *, shared: bool) -> str:
    figures = f"gap {significant(row['gap'], 2)}, 95 % of chance gaps under {significant(row['null_p95'], 2)}"
    hard = f"; {BASELINE} has a gap here too" if shared else ""
    where = f"{row['attribute']} gap, worst {row['worst']}, best {row['best']}"
    return f"{where} ({figures}, p{NBSP}{_equals(p_value(row['p_adjusted']))}{hard})"


def _equals(p: str) -> str:
    return p if p.startswith("<") else f"={NBSP}{p}"


def _noise(run: Run) -> Iterator[Finding]:
    if "noise" in run.missing and "corruptions" not in run.missing:
        return  # noise is among the corruptions
    if "noise" in run.missing:
        yield Finding("Noise", f"Not measured: {run.missing['noise']}. {NOT_PASSED}", warning=True)
        return
    noise = run.table("noise", run.headline)
    for label in run.compared:
        rows = noise[(noise["backend"] == label) & (noise["severity"] > 0)].sort_values("severity")
        if len(rows):
            yield Finding(f"Noise, {label}", _noise_sentence(run, rows))


def _noise_sentence(run: Run, rows: pd.DataFrame) -> str:
    up = run.higher_is_better(run.headline)
    worse = rows["difference_high"] < 0 if up else rows["difference_low"] > 0
    better = rows["difference_low"] > 0 if up else rows["difference_high"] < 0
    last = rows.iloc[-1]
    how = fit([last["difference"]], [last["difference_high"] - last["difference_low"]])
    gap = how.interval(last["difference"], last["difference_low"], last["difference_high"], signed=True)
    at_last = f"at σ{NBSP}={NBSP}{last['sigma']:g}, {gap} against {BASELINE} on the same noisy inputs"
    if worse.any():
        first = rows[worse].iloc[0]["sigma"]
        words = f"worse than {BASELINE} at {worse.sum()} of {len(rows)} noise levels, first at σ{NBSP}={NBSP}{first:g}"
    elif better.all():
        words = f"better than {BASELINE} at all {len(rows)} noise levels"
    else:
        words = f"separably better than {BASELINE} at {better.sum()} of {len(rows)} noise levels, worse at none"
    own = how.interval(last["added"], last["added_low"], last["added_high"], signed=True)
    return f"{run.title(run.headline)}: {words}; {at_last}, {own} against its own clean value."


def _each(run: Run, rows: pd.DataFrame, value: str, low: str, high: str) -> str:
    """A figure with its interval for each compared backend, in the order of the run; "" without any."""
    known = rows[rows[value].notna()].set_index("backend")
    told = [label for label in run.compared if label in known.index]
    return names(f"{label} {multiple(*known.loc[label, [value, low, high]])}" for label in told) if told else ""


def _corrupted(run: Run) -> Iterator[Finding]:
    rows = run.table("robustness")
    for name, mine in rows[(rows["measure"] == "mce") & (rows["metric"] == run.headline)].groupby("name", sort=False):
        if each := _each(run, mine, "value", "low", "high"):
            text = f"{name} in {run.title(run.headline)}, where {BASELINE} is 1 and less is better: {each}."
            yield Finding("Corrupted inputs", text)


def _attacked(run: Run) -> Iterator[Finding]:
    rows = run.table("attacks")
    rows = rows[(rows["attack"] != "signs") & (rows["epsilon"] == rows["epsilon"].max())]
    for attack, mine in rows.groupby("attack", sort=False):
        if each := _each(run, mine, "amplification", "amplification_low", "amplification_high"):
            size = f"{count(mine['epsilon'].iloc[0])} levels by {str(attack).upper()}"
            text = (
                f"An attack of {size} moves the outputs, in mean square, so many times as far as {BASELINE}'s: {each}."
            )
            yield Finding("Adversarial inputs", text)


def _invented(run: Run) -> Iterator[Finding]:
    rows = run.table("hallucination")
    measure = next((m for m in rows["measure"] if str(m).startswith("hallucination_")), "")
    if each := _each(run, rows[rows["measure"] == measure], "value", "low", "high"):
        yield Finding("Invented detail", f"{run.title(measure)} of the detail that the input lacks: {each}.")


def _explained(run: Run) -> Iterator[Finding]:
    rows = run.table("explanations")
    for verdict, words in (("faithful", "are faithful"), ("not faithful", "are not faithful and show nothing")):
        mine = rows[rows["verdict"] == verdict]
        each = [f"{label} ({names(mine[mine['backend'] == label]['map'])})" for label in dict.fromkeys(mine["backend"])]
        if each:
            text = f"Maps of {names(each)} {words}, beside a random and an edge map."
            yield Finding("Explanations", text, warning=verdict == "not faithful")


def _generated(run: Run) -> Iterator[Finding]:
    """Per generator what its images are beside real ones, and a warning for each fault that is found."""
    network = next(iter(run.record["generation"].get("networks") or {}), "")
    rows = run.table("generated")
    rows = rows[(rows["class"] == "all") & (rows["against"] == "test") & (rows["network"] == network)]
    measures = {"kid": ("KID × 10³, lower is better", 1000), "precision": ("Precision", 1), "recall": ("Recall", 1)}
    for measure, (words, factor) in measures.items():
        mine = rows[rows["measure"] == measure]
        mine = mine.assign(**{end: factor * mine[end] for end in ("value", "low", "high")})
        if each := _each(run, mine, "value", "low", "high"):
            yield Finding(words, f"By the features of {network}, all classes together: {each}.")
    accuracy = run.table("classification")
    if each := _each(run, accuracy[accuracy["class"] == "all"], "value", "low", "high"):
        text = f"Share of real images that a classifier gets right which was trained on generated ones alone: {each}."
        yield Finding("Classification accuracy", text)
    yield from _modes(run)
    if rows.empty:
        yield Finding("Generated images", f"Not measured: no generator has made any. {NOT_PASSED}", warning=True)


def _modes(run: Run) -> Iterator[Finding]:
    modes = run.table("modes")
    found = modes[(modes["verdict"] == "found") & modes["backend"].isin(run.compared)]
    for sign, words in (("collapse", "the same few images again and again"), ("dropping", "asked for but not made")):
        for label, mine in found[found["sign"] == sign].groupby("backend", sort=False):
            kinds = list(mine["class"])
            shown = names(kinds if len(kinds) <= 4 else [*kinds[:3], f"{len(kinds) - 3} more"])
            yield Finding(f"Mode {sign}", f"{label}, {words}: {shown}; {mine.iloc[0]['evidence']}.", warning=True)


def _warnings(run: Run) -> Iterator[Finding]:
    record = run.record
    if note := (record["suite"].get("content") or {}).get("note"):
        yield _warning("Suite", str(note))
    if record.get("status") != "finished":
        yield _warning("Run", f"Its status is “{record.get('status', 'unknown')}”: the tables may be incomplete.")
    for label, backend in run.backends.items():
        if backend.get("status") == "failed":
            yield _warning("Failed", f"{label}: {backend.get('error') or 'no reason given'}")
        if backend.get("out_of_domain"):
            yield _warning("Out of domain", _out_of_domain(run, label, backend))
    yield from _counted(run)
    if (record["environment"].get("git") or {}).get("dirty"):
        yield _warning("Run", "The code had uncommitted changes.")
    for text in record["warnings"]:
        yield _warning("Run", str(text))


def _out_of_domain(run: Run, label: str, backend: dict[str, Any]) -> str:
    small, images = backend.get("inputs_below_domain"), run.record["dataset"].get("images")
    some = f" ({small} of {images} inputs are smaller)" if small and small != images else ""
    made_for = backend.get("domain") or "another domain"
    return f"{label} was made for {made_for}{some}: its figures do not speak for that use."


def _counted(run: Run) -> Iterator[Finding]:
    failures, speed = run.table("failures"), run.table("speed")
    timed, photos = failures["condition"].astype(str).str.startswith(SIZE), failures["backend"] == ""
    for kind, rows, rest in (
        ("Photos left out", failures[photos], "they are in no figure"),
        ("Failed cases", failures[~timed & ~photos], "the means of these backends are over the images that remain"),
        ("Failed timings", failures[timed], "these passes have no figures"),
    ):
        sums = rows.groupby("backend", sort=False)["n"].sum()
        each = [f"{label} {count(n)}".strip() for label, n in sums.items()]
        if each:
            yield _warning(kind, f"{names(each)}: {rest}.")
    invalid = speed[~speed["valid"].astype(bool)]
    if len(invalid):
        whose = names(dict.fromkeys(invalid["backend"]))
        yield _warning("Speed", f"{len(invalid)} of {len(speed)} timings are invalid ({whose}): do not quote them.")


def _warning(topic: str, text: str) -> Finding:
    return Finding(topic, text, warning=True)
