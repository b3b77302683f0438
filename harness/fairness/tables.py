"""What instruments read in the faces, as tables: flips, parity, calibration, perceptual distance, verification.

`tables(scores)` gives rows by the name of each table; the columns are in `harness.audit`. A reading is of the photo
("truth"), of the photo coded as JPEG (the control arm) or of an output.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.datasets import CUES, UNKNOWN
from harness.fairness import parity, perceptual, posterior, verification
from harness.fairness.accuracy import confusion, corrected_shares, disagreement
from harness.fairness.inference import goodness_of_fit, homogeneity, nested_interval, wilson
from harness.fairness.probes import GAP, TREND, probe_effects
from harness.fairness.readings import JPEG, PNG, SKIN, first_outputs, load_readings, said
from harness.fairness.skin import regression_to_the_mean
from harness.plan import AVERAGE, AVERAGE_NOISE, CLEAN
from harness.score import CONTROL
from harness.scores import Scores
from harness.set_measures import load_features
from harness.statistics import INSUFFICIENT
from harness.suite import IDENTITY

Row = dict[str, Any]
Float = NDArray[np.float64]

FMR = 0.01
"""The false match rate that thresholds of verification are set at: one over the pairs of all groups, and each group's.

Lower rates want more pairs of different photos than a group of some hundred has.
"""
FEATURES = "kid_attributes"
"""The set measure whose stored features the group perceptual index is taken on."""
TESTS = {"RDP": "homogeneity of the hit rates", "PR": "fit to the mix of the test set", "UCPR": ""}
"""What p is of; outputs that share inputs are not independent, so UCPR has none."""


@dataclass(frozen=True)
class Reader:
    """The readings of one instrument of a run, as labels or years."""

    scores: Scores
    name: str

    @cached_property
    def readings(self) -> pd.DataFrame:
        """All that is stored (see `load_readings`)."""
        return load_readings(self.scores.folder, self.scores.record, self.name)

    @property
    def labels(self) -> dict[str, list[str]]:
        """The labels of each attribute that it tells apart; not of ages."""
        about = self.scores.record["instruments"][self.name]["labels"]
        return {attribute: list(labels) for attribute, labels in about.items() if labels and attribute != "age"}

    @property
    def backends(self) -> list[str]:
        """The backends of the run that it has readings of."""
        there = set(self.readings.index.get_level_values("backend"))
        return [label for label in self.scores.labels if label in there]

    def truth(self, attribute: str) -> "pd.Series[str]":
        """What it reads in each photo; photos without a reading are left out."""
        return said(first_outputs(self.readings, CONTROL, PNG), attribute).dropna()

    def output(self, backend: str, attribute: str) -> "pd.Series[str]":
        """What it reads in a backend's first outputs, or, of the control arm, in the photos coded as JPEG."""
        encoding = JPEG if backend == CONTROL else PNG
        return said(first_outputs(self.readings, backend, encoding), attribute).dropna()

    def under(self, backend: str, condition: str, attribute: str) -> "pd.Series[str]":
        """What it reads in a backend's outputs under a condition."""
        index = self.readings.index.to_frame()
        chosen = (index["backend"] == backend) & (index["condition"] == condition) & (index["sample"] == 0)
        return said(self.readings[chosen], attribute).dropna().droplevel(["backend", "condition", "sample", "encoding"])

    def samples(self, backend: str, attribute: str) -> pd.DataFrame:
        """What it reads in all outputs of the images that have several: images x samples; incomplete ones left out."""
        index = self.readings.index.to_frame()
        mine = self.readings[(index["backend"] == backend) & (index["condition"] == CLEAN.name)]
        labels = said(mine, attribute).rename("label").reset_index()
        table = labels.pivot_table(index="image", columns="sample", values="label", aggfunc="first")
        return table.dropna() if table.shape[1] > 1 else pd.DataFrame()


def tables(scores: Scores) -> dict[str, list[Row]]:
    """Every table of what instruments read; none where the suite asks for no instruments."""
    readers = [Reader(scores, name) for name in scores.record.get("instruments", {}) if name not in (IDENTITY, SKIN)]
    makers: dict[str, Callable[[Scores, list[Reader]], Iterator[Row]]] = {
        "flips": _flips,
        "excess_flips": _excess_flips,
        "parity": _parity,
        "seeds": _seeds,
        "probes": _probes,
        "instruments": _instruments,
        "disagreement": _disagreement,
        "unread": _unread,
    }
    rates, sets, calibrations = list(_rates(scores)), list(_sets(scores)), list(_calibrations(readers))
    return {name: list(make(scores, readers)) for name, make in makers.items()} | {
        "posterior": list(_posterior(calibrations)),
        "reliability": list(_reliability(calibrations)),
        "perceptual": list(_perceptual(sets)),
        "verification": list(_verification(rates)),
        "indices": [*_indices(rates), *_gpi_gaps(sets), *_slopes(scores)],
    }


# Flips


def _flips(_: Scores, readers: list[Reader]) -> Iterator[Row]:
    """How often a photo read as one group gives an output read as another."""
    for reader in readers:
        for attribute, classes in reader.labels.items():
            truth = reader.truth(attribute)
            for backend in reader.backends:
                before, after = truth.align(reader.output(backend, attribute), join="inner")
                who = {"backend": backend, "instrument": reader.name, "attribute": attribute}
                matrix = parity.flip_matrix(before, after, classes=classes)
                for (old, row), new in itertools.product(matrix.iterrows(), classes):
                    n, count = int(row.sum()), int(row[new])
                    low, high = wilson(count, n)
                    known = {"rate": count / n, "low": low, "high": high} if n >= INSUFFICIENT else _NOTHING
                    yield who | {"before": old, "after": new, "n": n, "count": count} | known


_NOTHING = {"rate": math.nan, "low": math.nan, "high": math.nan}


def _excess_flips(scores: Scores, readers: list[Reader]) -> Iterator[Row]:
    """Flips of each group, and what of them goes beyond the instrument's own noise on the same photos."""
    for reader in readers:
        for attribute in reader.labels:
            truth, control = reader.truth(attribute), reader.output(CONTROL, attribute)
            for backend in reader.backends:
                flips = _differ(truth, reader.output(backend, attribute))
                noise = _differ(truth, control).reindex(flips.index)
                who = {"backend": backend, "instrument": reader.name, "attribute": attribute}
                for group, members in _members(scores, flips.index, attribute):
                    yield who | {"group": group} | _excess(flips[members], noise[members])


def _differ(first: "pd.Series[str]", second: "pd.Series[str]") -> "pd.Series[float]":
    first, second = first.align(second, join="inner")
    return (first != second).astype(float)


def _members(scores: Scores, images: pd.Index, attribute: str) -> Iterator[tuple[str, pd.Index]]:
    """The groups of the attribute, and of race x gender, with their images; unknown ones left out."""
    crossed = [a for a in ("race x gender",) if a in scores.attributes]
    for by in [a for a in (attribute, *crossed) if a in scores.attributes]:
        groups = scores.groups_of(by).reindex(images)
        for group in sorted(set(groups.dropna()) - {UNKNOWN}):
            yield str(group), images[(groups == group).to_numpy()]


def _excess(flips: "pd.Series[float]", noise: "pd.Series[float]") -> Row:
    """The rate over all images, and the excess over those that the control arm has a reading of as well."""
    n, noise = len(flips), noise.dropna()
    counts = {"n": n, "excess_n": len(noise)}
    row = counts | _NOTHING | dict.fromkeys(("excess", "excess_low", "excess_high"), math.nan)
    if n >= INSUFFICIENT:
        low, high = wilson(int(flips.sum()), n)
        row |= {"rate": float(flips.mean()), "low": low, "high": high}
    if len(noise) >= INSUFFICIENT:
        beyond = parity.excess_flips(np.asarray(flips[noise.index], bool), np.asarray(noise, bool))
        row |= {"excess": beyond.value, "excess_low": beyond.low, "excess_high": beyond.high}
    return row


# Parity


def _parity(_: Scores, readers: list[Reader]) -> Iterator[Row]:
    """RDP and PR of the outputs, and PR of outputs for inputs that say nothing (UCPR); valid tests beside them."""
    for reader in readers:
        for attribute, classes in reader.labels.items():
            for backend in reader.backends:
                who = {"backend": backend, "instrument": reader.name, "attribute": attribute}
                found = [*_informed(reader, attribute, backend, classes), *_uninformed(reader, attribute, backend)]
                yield from (who | row for row in found)


def _informed(reader: Reader, attribute: str, backend: str, classes: list[str]) -> Iterator[Row]:
    """RDP and PR against the data set's own labels, where the instrument knows them."""
    if attribute not in reader.scores.attributes:
        return
    labels = reader.scores.groups_of(attribute)
    labels, outputs = labels[labels != UNKNOWN].align(reader.output(backend, attribute), join="inner")
    strange = ~labels.isin(classes)
    labels, outputs = labels[~strange], outputs[~strange]
    if not len(labels):
        return
    errors = confusion(first_outputs(reader.readings, CONTROL, PNG).reindex(labels.index), labels, attribute)
    notes = [] if len(reader.truth(attribute)) else ["no reading of the photos: no control arm"]
    notes += [f"{strange.sum()} images of labels unknown to the instrument left out"] if strange.any() else []
    note = "; ".join(notes)
    rdp, mix = parity.rdp(labels, outputs), parity.p_pr(labels, classes=classes)
    judged = rdp.table[rdp.table["share"].notna()]
    p = homogeneity([int(hits) for hits in judged["hits"]], [int(n) for n in judged["n"]])
    yield from _divergences("RDP", rdp, _corrected_rdp(errors, labels, outputs), p, note)
    if strange.any():  # of a part of the groups only, there is no mix to compare with
        return
    pr = parity.pr(outputs, mix)
    shares = pd.Series(corrected_shares(errors.to_numpy(float), pr.table["share"].to_numpy(float)), classes)
    p = goodness_of_fit([int(hits) for hits in pr.table["hits"]], list(mix))
    yield from _divergences("PR", pr, (parity.chi2(shares, mix), parity.chebyshev(shares, mix)), p, note)


def _corrected_rdp(errors: pd.DataFrame, labels: pd.Series, outputs: pd.Series) -> tuple[float, float]:
    """RDP of the hit rates that remain when the classifier's errors on photos are taken out, group by group."""
    classes, rates = list(errors.columns), {}
    for group, members in labels.groupby(labels):
        if len(members) >= INSUFFICIENT:
            observed = parity.p_pr(outputs[members.index], classes=classes).to_numpy(float)
            rates[group] = corrected_shares(errors.to_numpy(float), observed)[classes.index(str(group))]
    p, q = parity.p_rdp(pd.Series(rates, dtype=float)), parity.uniform(list(rates))
    return parity.chi2(p, q), parity.chebyshev(p, q)


def _divergences(measure: str, found: parity.Parity, corrected: tuple[float, float], p: float, note: str = "") -> Any:  # noqa: ANN401
    for name, value, adjusted in zip(("chi2", "Cheb"), (found.chi2, found.chebyshev), corrected, strict=True):
        figures = {"measure": f"{measure}-{name}", "n": found.n, "value": value, "corrected": adjusted}
        yield figures | {"p_value": p, "test": TESTS[measure], "note": note}


def _uninformed(reader: Reader, attribute: str, backend: str) -> Iterator[Row]:
    """PR against equal shares, of outputs for the average faces and for their noisy copies."""
    part = (reader.scores.record["suite"]["content"]["fairness"] or {}).get("uninformative")
    if not part or part["attribute"] != attribute:
        return
    record = next(b for b in reader.scores.record["backends"] if b["label"] == backend)
    for condition, inputs in ((AVERAGE, "average faces"), (AVERAGE_NOISE, "noisy averages")):
        seen = reader.under(backend, condition, attribute)
        groups = reader.scores.groups_of(attribute).reindex(seen.index)
        if condition == AVERAGE and record["deterministic"]:  # one output a group, however often it was asked
            seen = seen.groupby(groups).first()
        if len(seen):
            found = parity.pr(seen, parity.uniform(reader.labels[attribute]))
            note = f"{inputs}: {len(seen)} outputs share {groups.nunique()} averages, no test"
            yield from _divergences("UCPR", found, (math.nan, math.nan), math.nan, note)


# Several outputs of an input


Calibrated = tuple[Row, posterior.Calibration, int]
"""Whose outputs, what was found, and how many outputs of an input there are."""


def _calibrations(readers: list[Reader]) -> Iterator[Calibrated]:
    """CPR of each stochastic backend by the first instrument, for each attribute that it labels."""
    for reader in readers[:1]:
        for attribute, classes in reader.labels.items():
            truth = reader.truth(attribute)
            for backend in reader.backends:
                samples = reader.samples(backend, attribute)
                samples = samples[samples.index.isin(truth.index)]
                if backend != CONTROL and len(samples) >= INSUFFICIENT:
                    found = posterior.calibration(truth[samples.index], samples.to_numpy(str), classes=classes)
                    yield {"backend": backend, "attribute": attribute}, found, samples.shape[1]


def _posterior(calibrations: list[Calibrated]) -> Iterator[Row]:
    for who, found, samples in calibrations:
        for group, row in found.groups.iterrows():
            figures = {"n": int(row["n"]), "samples": samples, "share": row["samples"], "truth": row["truth"]}
            yield who | {"group": group} | figures | {"p_value": row["p_value"]}
        whole = {"group": "all, by bins", "n": found.n, "samples": samples, "share": math.nan, "truth": math.nan}
        yield who | whole | {"p_value": found.p_value}


def _reliability(calibrations: list[Calibrated]) -> Iterator[Row]:
    for who, found, _ in calibrations:
        for row in found.reliability.to_dict("records"):
            yield who | {str(key): value for key, value in row.items()}


def _seeds(scores: Scores, readers: list[Reader]) -> Iterator[Row]:
    """What the seed alone changes: the rate of flips over all outputs of an input, and its spread between seeds."""
    for reader in readers[:1]:
        for attribute in reader.labels:
            truth = reader.truth(attribute)
            for backend in reader.backends:
                samples = reader.samples(backend, attribute)
                samples = samples[samples.index.isin(truth.index)]
                if backend == CONTROL or samples.empty:
                    continue
                flips = samples.ne(truth.reindex(samples.index), axis=0).astype(float)
                for group, members in [("all", flips.index), *_members(scores, flips.index, attribute)]:
                    if len(members) >= INSUFFICIENT:
                        figures = nested_interval(flips.loc[members].to_numpy(float))
                        row = dict(zip(("mean", "low", "high", "seed_sd"), figures, strict=True))
                        who = {"backend": backend, "metric": f"{attribute}_flip_{reader.name}", "group": group}
                        yield who | {"n": len(members), "samples": flips.shape[1]} | row


# Sets of faces


@dataclass(frozen=True)
class Set:
    """The features of a backend's outputs and of their photos, (N, D) each, with the group of each."""

    backend: str
    attribute: str
    outputs: Float
    photos: Float
    groups: "pd.Series[str]"


def _sets(scores: Scores) -> Iterator[Set]:
    """Pairs whose group is known and whose stored features are finite, by race, gender and race x gender."""
    about = scores.record.get("set_metrics", {}).get(FEATURES)
    photos = load_features(scores.folder, scores.record, CONTROL, about) if about else None
    if about is None or photos is None:
        return
    for backend in (b for b in scores.labels if b != CONTROL):
        outputs = load_features(scores.folder, scores.record, backend, about)
        if outputs is None:
            continue
        x, y = outputs.to_numpy(float), photos.loc[outputs.index].to_numpy(float)
        finite = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
        for attribute in [a for a in scores.attributes if a in {"race", "gender", "race x gender"}]:
            groups = scores.groups_of(attribute).reindex(outputs.index)
            known = finite & (groups != UNKNOWN).to_numpy()
            yield Set(backend, attribute, x[known], y[known], groups[known])


def _perceptual(sets: list[Set]) -> Iterator[Row]:
    """GPI, precision and recall of each group, on the stored features of the attribute network."""
    for mine in sets:
        table = perceptual.group_measures(mine.outputs, mine.photos, groups=mine.groups)
        for group, rows in table.groupby("group", sort=False):
            figures = rows.set_index("measure")[["value", "low", "high"]]
            n = int(rows["n"].iloc[0])
            gpi: Row = dict(zip(("gpi", "low", "high"), figures.loc["gpi"], strict=True))
            shares: Row = {
                name + end: figures.loc[name, column]
                for name in ("precision", "recall")
                for end, column in (("", "value"), ("_low", "low"), ("_high", "high"))
            }
            who: Row = {"backend": mine.backend, "attribute": mine.attribute, "group": group, "n": n}
            yield who | gpi | shares


def _gpi_gaps(sets: list[Set]) -> Iterator[Row]:
    """The largest difference of the groups' GPI, against shuffled groups."""
    for mine in sets:
        gap = perceptual.gpi_gap(mine.outputs, mine.photos, groups=mine.groups)
        told = not math.isnan(gap.observed)
        note = f"95 % of chance below {gap.null_p95:.2g}" if told else f"fewer than two groups of {perceptual.ENOUGH}"
        figures = {"value": gap.observed, "p_value": gap.p_value, "note": note}
        yield {"backend": mine.backend, "index": f"GPI gap, {mine.attribute}"} | figures


# Identity


def _rates(scores: Scores) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Errors of verification by race and gender, for each backend: attribute, backend, rates."""
    if IDENTITY not in scores.record.get("instruments", {}):
        return
    readings = load_readings(scores.folder, scores.record, IDENTITY)
    photos = _found(first_outputs(readings, CONTROL, PNG))
    outputs = {b: _found(first_outputs(readings, b, JPEG if b == CONTROL else PNG)) for b in scores.labels}
    for attribute in [a for a in scores.attributes if a in {"race", "gender"}]:
        groups = scores.groups_of(attribute).reindex(photos.index)
        groups = groups[groups != UNKNOWN]
        among = _impostors(photos, photos, groups)
        for backend, found in outputs.items():
            mine = found[found.index.isin(groups.index)]
            if len(mine):
                yield attribute, backend, _errors(mine, photos, groups[mine.index], among)


def _errors(
    outputs: pd.DataFrame, photos: pd.DataFrame, groups: pd.Series, among: verification.Distances
) -> pd.DataFrame:
    """Rates of the outputs' matches with photos; pairs `among` photos set the thresholds."""
    paired = photos.loc[outputs.index]
    genuine = verification.genuine_distances(outputs.to_numpy(float), paired.to_numpy(float), groups=groups)
    impostors = _impostors(outputs, paired, groups)
    rates = verification.at_one_threshold(genuine, impostors, photos=among, fmr=FMR)
    own = verification.at_group_thresholds(genuine, impostors, photos=among, fmr=FMR)
    return rates.assign(fnmr_own=own["fnmr"])


def _impostors(outputs: pd.DataFrame, photos: pd.DataFrame, groups: pd.Series) -> dict[str, Float]:
    there = groups.index
    first, second = outputs.loc[there].to_numpy(float), photos.loc[there].to_numpy(float)
    return verification.impostor_distances(first, second, groups=groups)


def _found(readings: pd.DataFrame) -> pd.DataFrame:
    return readings[readings["found"].astype(bool)].drop(columns="found")


def _verification(rates: list[tuple[str, str, pd.DataFrame]]) -> Iterator[Row]:
    """The rates, none of groups too small for them."""
    shown = ["fnmr", "fnmr_low", "fnmr_high", "fnmr_own", "fmr"]
    for attribute, backend, table in rates:
        known = table[shown].where(table["status"] == "ok")
        for (group, row), figures in zip(table.iterrows(), known.to_dict("records"), strict=True):
            low, high = figures.pop("fnmr_low"), figures.pop("fnmr_high")
            who = {"backend": backend, "attribute": attribute, "group": group, "n": int(row["n"])}
            who |= {"threshold": row["threshold"], "impostor_pairs": int(row["pairs"])}
            note = "" if row["status"] == "ok" else str(row["status"])
            yield who | {str(key): value for key, value in figures.items()} | {"low": low, "high": high, "note": note}


def _indices(rates: list[tuple[str, str, pd.DataFrame]]) -> Iterator[Row]:
    for attribute, backend, table in rates:
        found = verification.disparity(table, alpha=0.5)
        figures, note = asdict(found), f"over {found.groups} groups"
        for name in ("garbe", "fdr", "ir", "max_geomean_fmr", "max_geomean_fnmr"):
            index = f"{name} (alpha 0.5), {attribute}"
            yield {"backend": backend, "index": index, "value": figures[name], "p_value": math.nan, "note": note}


def _slopes(scores: Scores) -> Iterator[Row]:
    """Slope of the skin's shift in lightness on the photo's lightness: negative is regression to the mean."""
    photos = first_outputs(load_readings(scores.folder, scores.record, SKIN), CONTROL, PNG)
    shifts = scores.values("skin_dl")
    for backend in shifts if len(photos) else ():
        shift, lightness = shifts[backend].dropna().align(photos["L"].dropna(), join="inner")
        slope = regression_to_the_mean(shift, lightness)
        row = {"backend": backend, "index": "slope of dL* on the photo's L*", "value": slope.value}
        yield row | {"p_value": math.nan, "note": f"{slope.n} images"}


# Counterfactual series


def _probes(scores: Scores, _: list[Reader]) -> Iterator[Row]:
    """The effect of the cue that a counterfactual series moves, on every measure: the trend and the largest gap."""
    cue = next((a for a in CUES if a in scores.images), None)
    if cue is None or not str(scores.record["dataset"].get("spec")).startswith("counterfactual:"):
        return
    images = scores.images.set_index("image")
    where = pd.DataFrame({"base": images.index.str.rsplit(".", n=1).str[0], "level": images[cue]}, images.index)
    for metric in scores.measures:
        table = scores.values(metric)
        for backend in (b for b in table if b != CONTROL):
            effects = probe_effects(where.join(table[backend].rename("value"), how="inner")).set_index("term")
            for term in (TREND, GAP):
                row = effects.loc[term].to_dict()
                shown = ("estimate", "low", "high", "p_value") if row["status"] == "ok" else ()
                effect, low, high, p = [row[name] for name in shown] or [math.nan] * 4
                who = {"backend": backend, "metric": metric, "level": f"{cue}: {term}", "n": int(row["bases"])}
                yield who | {"effect": effect, "low": low, "high": high, "p_value": p, "status": row["status"]}


# The instruments themselves


def _instruments(scores: Scores, readers: list[Reader]) -> Iterator[Row]:
    """How often an instrument says of a photo what the data set says, by group."""
    for reader in readers:
        for attribute, classes in reader.labels.items():
            if attribute not in scores.attributes:
                continue
            seen = said(first_outputs(reader.readings, CONTROL, PNG), attribute)
            labels = scores.groups_of(attribute).reindex(seen.index)
            labels = labels[labels.isin(classes)]
            for group, members in [("all", labels.index), *_members(scores, labels.index, attribute)]:
                here = seen[members].dropna()
                n, right = len(here), int((here == labels[here.index]).sum())
                low, high = wilson(right, n)
                known = {"accuracy": right / n, "low": low, "high": high} if n >= INSUFFICIENT else _UNTOLD
                who = {"instrument": reader.name, "attribute": attribute, "group": group, "n": n}
                yield who | known | {"missing": len(members) - n}


_UNTOLD = {"accuracy": math.nan, "low": math.nan, "high": math.nan}


def _disagreement(scores: Scores, readers: list[Reader]) -> Iterator[Row]:
    for i, first in enumerate(readers):
        for second in readers[i + 1 :]:
            one, two = (first_outputs(reader.readings, CONTROL, PNG) for reader in (first, second))
            one, two = one.align(two, join="inner", axis=0)
            by = next((a for a in ("race", *scores.attributes) if a in scores.attributes), None)
            groups = scores.groups_of(by).reindex(one.index) if by else pd.Series("all", one.index)
            for row in disagreement(one, two, groups).to_dict("records"):
                named = {"first": first.name, "second": second.name}
                named |= {key: row[key] for key in ("attribute", "group", "n")}
                known = {"rate": row["disagreement"], "low": row["low"], "high": row["high"]}
                yield named | (known if row["n"] >= INSUFFICIENT else _NOTHING)


def _unread(scores: Scores, _: list[Reader]) -> Iterator[Row]:
    """How many readings are missing, by the reason: of all images, then of each group."""
    measures = scores.record.get("measures", {})
    rows = scores.rows[scores.rows["metric"].isin(measures) & scores.rows["value"].isna()]
    rows = rows[(rows["condition"] == CLEAN.name) & (rows["sample"] == 0)]
    for attribute in ("all", *scores.attributes):
        groups = "all" if attribute == "all" else rows["image"].map(scores.groups_of(attribute))
        counts = rows.assign(group=groups).groupby(["backend", "metric", "group", "error"], sort=False).size()
        for row in counts.reset_index(name="n").rename(columns={"error": "reason"}).to_dict("records"):
            yield {"attribute": attribute} | {str(key): value for key, value in row.items()}
