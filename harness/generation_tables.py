"""Tables of a generation suite: measures of sets, classification accuracy, modes that collapse or are missing.

Generated and real images are compared in equal numbers of each class, the first of each by their seeds. The control
arm, photos of the training split, stands for a generator as good as reality. Classes of too few images on a side are
"insufficient". `duplicates` is the share of images that nearly repeat another one of their set, `copies` of those that
nearly repeat one of the training photos that they are matched with, each as near as 1 % of the real images are
(`harness.manifold`). Vendi is taken of features from which their mean is subtracted, since otherwise all cosines are
near 1.

Intervals are of 95 %: of KID by jackknife over the images of both sides; of shares (Wilson) and means (bootstrap) over
the images that are counted, for the balls, thresholds and classifiers as they are.
"""

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pandas as pd

from harness.classification import Arm, arms, stored_answers
from harness.generated_sets import PAIR_LPIPS, REFERENCE, feature_file, image_sets, reading_file
from harness.generator_pairs import Difference, paired, set_differences
from harness.manifold import Float, manifold_terms, near_copies, near_duplicates, vendi
from harness.modes import (
    COLLAPSE,
    DROPPING,
    INSUFFICIENT,
    UNJUDGED,
    Estimate,
    collapse,
    dropping,
    missing,
    named,
    share,
)
from harness.sampling import ALL, REAL
from harness.scores import Scores, mean_interval
from harness.set_measures import fid, kid
from harness.speed_tables import steps
from harness.stages import compute_times
from harness.statistics import verdict
from harness.store import Row, read_table
from harness.suite import Generation, Suite, stored_suite

MEASURES: dict[str, tuple[str, bool | None]] = {
    "kid": ("KID", False),
    "fid": ("FID", False),
    "precision": ("Precision", True),
    "recall": ("Recall", True),
    "density": ("Density", True),
    "coverage": ("Coverage", True),
    "vendi": ("Vendi score", True),
    "lpips": ("LPIPS within a class", None),
    "duplicates": ("Near-duplicates", False),
    "copies": ("Near-copies of matched training photos", False),
    "seconds": ("Compute", False),
    "steps": ("Steps", None),
}
"""Title and direction of each measure of the table `generated`; None where more is neither better nor worse.

`seconds` is the median of the compute time an image, `steps` the network's evaluations.
"""
TEST, TRAINING = "test", "training"
"""What a measure is against: photos of the run's dataset, or of the split that generators were trained on."""
AGAINST_TEST = ("kid", "fid", "precision", "density", "recall", "coverage", "vendi", "duplicates")
AGAINST_TRAINING = ("kid", "fid", "copies")
COMPARED = ("kid", "precision", "density", "recall", "coverage")
"""What two generators are compared in, beside accuracy."""

ACCURACY = "accuracy"
"""The measure of the table `generators` that is the Classification Accuracy Score."""

SHOWN, MOST_CLASSES = 4, 20
"""Pictures of a class, and classes."""


def tables(scores: Scores) -> dict[str, list[Row]]:
    """The tables by name; nothing for other suites than those of generation."""
    suite = stored_suite(scores.record) if scores.record["suite"]["content"].get("generation") else None
    if suite is None or suite.generation is None or not (scores.folder.path / "training.parquet").exists():
        return {}
    audit = Audit(scores, suite, suite.generation)
    generated = list(audit.generated())
    return {
        "generated": generated,
        "modes": [*audit.collapses(generated), *audit.droppings(generated)],
        "classification": list(audit.accuracies()),
        "drawn": list(audit.drawn()),
        "generators": list(audit.pairs()),
    }


@dataclass(frozen=True)
class Audit:
    """What is stored of a run, and what is made of it."""

    scores: Scores
    suite: Suite
    part: Generation

    @cached_property
    def sets(self) -> dict[str, pd.DataFrame]:
        """All stored images by set."""
        return image_sets(self.scores.folder, self.scores.record, self.part, self.suite)

    @property
    def labels(self) -> list[str]:
        """The control arm and the backends that have images."""
        return [label for label in self.sets if label != REFERENCE]

    @property
    def generators(self) -> list[str]:
        """The backends that have images."""
        return [label for label in self.labels if label != REAL]

    def classes(self, label: str) -> list[str]:
        """The classes of a backend's images; of the control arm, all that there are."""
        return [kind for kind in dict.fromkeys(self.sets[label]["class"]) if kind not in ("", ALL)]

    def features(self, network: str, label: str) -> pd.DataFrame:
        """The finite features of a set by image."""
        path = feature_file(self.scores.folder, self.scores.record, network, label)
        frame = read_table(path).set_index("image") if path.exists() else pd.DataFrame()
        known: pd.DataFrame = frame[np.isfinite(frame.to_numpy(float)).all(axis=1)]
        return known

    # Measures of sets

    def generated(self) -> Iterator[Row]:
        """The rows of the table `generated`."""
        for network in self.part.networks:
            stored = {label: self.features(network, label) for label in self.sets}
            for label in self.labels:
                for kind in (ALL, *self.classes(label)):
                    who = {"backend": label, "class": kind, "network": network}
                    yield from (who | row for row in self._measured(stored, label, kind))
        for label in self.labels:
            yield from self._diversity(label)
        yield from self._costs()

    def _matched(self, stored: dict[str, pd.DataFrame], names: Sequence[str], kind: str) -> list[Float]:
        """The features of as many images of each set; of a class, or of all classes of the first set."""
        usable = {name: self.sets[name][self.sets[name]["image"].isin(stored[name].index)] for name in names}
        chosen = matched(usable, kind)
        return [stored[name].loc[chosen[name]].to_numpy(float) for name in names]

    def _measured(self, stored: dict[str, pd.DataFrame], label: str, kind: str) -> Iterator[Row]:
        made, real, training = self._matched(stored, (label, REFERENCE, REAL), kind)
        if len(made) < self.part.minimum:
            for against, measure in _keys(label):
                yield _row(against, measure, len(made), (math.nan,) * 3, INSUFFICIENT)
            return
        for measure, estimate in _against(made, real):
            yield _row(TEST, measure, len(made), estimate)
        if label != REAL:
            yield _row(TRAINING, "kid", len(made), _kid(made, training))
            yield _row(TRAINING, "fid", len(made), (fid(made, training), math.nan, math.nan))
            yield _row(TRAINING, "copies", len(made), share(near_copies(made, real, training)))

    def _diversity(self, label: str) -> Iterator[Row]:
        """LPIPS within classes, from the rows of pairs."""
        rows = self.scores.rows
        mine = rows[(rows["metric"] == PAIR_LPIPS) & (rows["backend"] == label)]
        for kind in (ALL, *self.classes(label)):
            pairs = mine[mine["class"] == kind] if kind != ALL else mine
            known = mean_interval(pairs["value"].to_numpy(float))
            estimate = (known["mean"], known["low"], known["high"])
            yield {"backend": label, "class": kind, "network": ""} | _row("", "lpips", len(pairs), estimate)

    def _costs(self) -> Iterator[Row]:
        """The median time of an image and its steps; a chain's are those of its stages together."""
        for backend in self.scores.record["backends"]:
            label = backend["label"]
            times = compute_times(self.scores.rows[self.scores.rows["backend"] == label])
            seconds = times.sum(axis=1, skipna=False)
            known = {"seconds": seconds.median(), "steps": steps(backend)} if label in self.generators else {}
            for measure, value in known.items():
                estimate = (float(value), math.nan, math.nan)
                yield {"backend": label, "class": ALL, "network": ""} | _row("", measure, len(seconds), estimate)

    # Pairs

    def pairs(self) -> Iterator[Row]:
        """The rows of the table `generators`: of each two with the same classes, or some classes of both."""
        for pair in itertools.combinations(self.generators, 2):
            who = dict(zip(("first", "second"), pair, strict=True))
            first, second = map(self.classes, pair)
            kinds = [kind for kind in first if kind in second]
            if kinds or first == second:
                yield from (who | row for row in self._set_differences(pair, [ALL, *kinds]))
                yield from (who | row for row in self._accuracy_differences(pair))

    def _set_differences(self, pair: tuple[str, str], kinds: Sequence[str]) -> Iterator[Row]:
        names = (*pair, REFERENCE, REAL)
        for network in self.part.networks:
            stored = {label: self.features(network, label) for label in names}
            for kind in kinds:
                first, second, real, _ = self._matched(stored, names, kind)
                who = {"class": kind, "network": network}
                enough = len(real) >= self.part.minimum
                found = set_differences(first, second, real) if enough else ((m, None) for m in COMPARED)
                for measure, difference in found:
                    yield who | {"measure": measure} | _compared(measure, len(real), difference)

    def _accuracy_differences(self, pair: tuple[str, str]) -> Iterator[Row]:
        """Of two classifiers that tell the same classes apart, on the same test images."""
        found = [answered for label in pair if (answered := self._answered(label))]
        if len({arm.classes for arm, _ in found}) != 1 or len(found) < 2:
            return
        (arm, first), (_, second) = found
        members = arm.test.set_index("image")["class"].loc[first.index]
        for kind in (ALL, *arm.classes):
            mine = (members == kind) | (kind == ALL)
            values = [right.loc[mine, "own"].to_numpy(float) for right in (first, second)]
            n = len(values[0])
            row = _compared(ACCURACY, n, paired(*values) if n >= self.part.minimum else None)
            row |= {"verdict": UNJUDGED} if kind != ALL and n >= self.part.minimum else {}
            yield {"class": kind, "network": "", "measure": ACCURACY} | row

    # Modes

    def collapses(self, generated: list[Row]) -> Iterator[Row]:
        """Whether the images of a generator, and of each class, are a few again and again."""
        found = _by_key(generated, self.part.networks[0])
        for label in self.generators:
            for kind in (ALL, *self.classes(label)):
                own, real = found.get((label, kind), {}), found.get((REAL, kind), {})
                who = {"backend": label, "class": kind, "sign": COLLAPSE}
                yield who | collapse(own, real)

    def droppings(self, generated: list[Row]) -> Iterator[Row]:
        """Whether a class, or a group that the instrument reads, is asked for but not among a backend's images."""
        found = _by_key(generated, self.part.networks[0])
        for label in self.generators:
            for kind in self.classes(label):
                own, real = found.get((label, kind), {}), found.get((REAL, kind), {})
                shares = (self._read_as(label, kind), self._read_as(REAL, kind)) if self._reads_classes else None
                who = {"backend": label, "class": kind, "sign": DROPPING}
                yield who | dropping(own, real, shares)
            yield from self._missing_groups(label)

    @cached_property
    def _readings(self) -> dict[str, pd.DataFrame]:
        """What the instrument says of each set, by image."""
        name, record = self.part.instrument, self.scores.record
        files = {s: reading_file(self.scores.folder, record, name, s) for s in self.sets} if name else {}
        return {label: read_table(path).set_index("image") for label, path in files.items() if path.exists()}

    @property
    def _reads_classes(self) -> bool:
        """Whether the instrument reads all attributes that classes are made of."""
        return set(self.part.attributes) <= set(self._readings.get(REAL, ()))

    def _read_as(self, label: str, kind: str) -> Estimate:
        """The share of the images of a class that the instrument reads as this class."""
        images, attributes = _of(self.sets[label], kind), list(self.part.attributes)
        said = self._readings[label].loc[images, attributes].agg(" ".join, axis=1)
        return share((said == kind).to_numpy())

    def _missing_groups(self, label: str) -> Iterator[Row]:
        """The groups of each attribute that the instrument reads, among as many images of each class."""
        chosen = matched({name: self.sets[name] for name in dict.fromkeys([label, REAL])}, ALL)
        said = {name: self._readings[name].loc[images] for name, images in chosen.items() if name in self._readings}
        for attribute in said[REAL].columns if len(said.get(REAL, ())) >= self.part.minimum else ():
            for group in sorted(set(said[REAL][attribute]) - {""}):
                own, real = (share((said[name][attribute] == group).to_numpy()) for name in (label, REAL))
                who = {"backend": label, "class": f"{attribute} = {group}", "sign": DROPPING, "n": len(said[label])}
                yield who | missing(own, real, self._read_in_photos(attribute, group))

    def _read_in_photos(self, attribute: str, group: str) -> float:
        """The share of the real photos of a group that are read as it; NaN where no labels tell which these are."""
        real = self.sets[REAL].set_index("image")
        members = list(real.index[real[attribute] == group]) if attribute in real else list[str]()
        return share((self._readings[REAL].loc[members, attribute] == group).to_numpy())[0]

    # Classification

    def accuracies(self) -> Iterator[Row]:
        """The rows of the table `classification`: overall, by class and by group of each attribute."""
        for label in self.generators:
            if found := self._answered(label):
                yield from self._accuracy(label, *found)

    def _answered(self, label: str) -> tuple[Arm, pd.DataFrame] | None:
        """The classifier of a backend's images, and by test image whether it and the real one are right (0 or 1)."""
        found = arms(self.sets, label) if self.part.classification else None
        answers = [stored_answers(self.scores.folder, arm) for arm in found or ()]
        right = [(said["said"] == said["truth"]).astype(float) for said in answers if said is not None]
        if found is None or len(right) < len(found):
            return None
        return found[0], pd.DataFrame(dict(zip(("own", "real"), right, strict=True)))

    def _accuracy(self, label: str, arm: Arm, right: pd.DataFrame) -> Iterator[Row]:
        test = arm.test.set_index("image")
        groups: dict[str, pd.Series] = {ALL: pd.Series(data=True, index=test.index)}
        groups |= {kind: test["class"] == kind for kind in arm.classes}
        attributes = self.part.attributes if len(self.part.attributes) > 1 else ()
        groups |= {f"{a} = {group}": test[a] == group for a in attributes for group in sorted(set(test[a]))}
        for name, members in groups.items():
            values = right.loc[members[members].index].to_numpy(float)
            counts = {"n": len(values), "trained": len(arm.training)}
            row = {"backend": label, "class": name} | counts | self._beside_real(values)
            yield row if name == ALL or row["verdict"] == INSUFFICIENT else row | {"verdict": UNJUDGED}

    def _beside_real(self, values: Float) -> Row:
        if len(values) < self.part.minimum:
            return {"verdict": INSUFFICIENT}
        own, real, gap = (mean_interval(v) for v in (values[:, 0], values[:, 1], values[:, 0] - values[:, 1]))
        figures = {"value": own, "real": real, "difference": gap}
        row = {k: v for name, known in figures.items() for k, v in named(name, tuple(known.values())).items()}
        return row | {"verdict": verdict(gap["low"], gap["high"], higher_is_better=True)}

    # Pictures

    def drawn(self) -> Iterator[Row]:
        """The first images of each class of each backend and of the control arm: not picked."""
        for label in self.labels:
            for kind in [*dict.fromkeys(self.sets[label]["class"])][:MOST_CLASSES]:
                mine = self.sets[label][self.sets[label]["class"] == kind].head(SHOWN)
                for place, path in enumerate(mine["path"], 1):
                    where = str(path.relative_to(self.scores.folder.path))
                    yield {"backend": label, "class": kind, "place": place, "output": where}


def matched(frames: dict[str, pd.DataFrame], kind: str) -> dict[str, list[str]]:
    """As many images of each set, of one class; or of all of the first set's classes, the same number of each."""
    kinds = [kind] if kind != ALL else list(dict.fromkeys(next(iter(frames.values()))["class"]))
    chosen: dict[str, list[str]] = {name: [] for name in frames}
    for each in kinds:
        members = {name: _of(frame, each) for name, frame in frames.items()}
        count = min(map(len, members.values()))
        for name, images in members.items():
            chosen[name] += images[:count]
    return chosen


def _of(frame: pd.DataFrame, kind: str) -> list[str]:
    """The images of a class; all, where the generator knows none."""
    return list(frame["image"] if kind == ALL else frame.loc[frame["class"] == kind, "image"])


def _compared(measure: str, n: int, difference: Difference | None) -> Row:
    """What is known of a difference between generators; nothing for too few images."""
    value, low, high = difference or (math.nan,) * 3
    better = True if measure == ACCURACY else MEASURES[measure][1]
    said = verdict(low, high, higher_is_better=better) if difference else INSUFFICIENT
    return {"n": n, "difference": value, "low": low, "high": high, "verdict": said}


def _keys(label: str) -> list[tuple[str, str]]:
    """What a set is held against, and the measure; the control arm is not held against itself."""
    training = [(TRAINING, measure) for measure in AGAINST_TRAINING] if label != REAL else []
    return [*((TEST, measure) for measure in AGAINST_TEST), *training]


def _row(against: str, measure: str, n: int, estimate: Estimate, status: str = "ok") -> Row:
    return {"against": against, "measure": measure, "n": n} | named("value", estimate) | {"status": status}


def _against(made: Float, real: Float) -> Iterator[tuple[str, Estimate]]:
    yield "kid", _kid(made, real)
    yield "fid", (fid(made, real), math.nan, math.nan)
    for name, terms in manifold_terms(real, made).items():
        known = mean_interval(terms)
        mean = (known["mean"], known["low"], known["high"])
        yield name, mean if name == "density" else share(terms > 0)
    yield "vendi", (_worth(made), math.nan, math.nan)
    yield "duplicates", share(near_duplicates(made, real))


def _worth(made: Float) -> float:
    """The Vendi score around the mean; 1 where nothing differs from it."""
    found = vendi(made - made.mean(axis=0))
    return 1.0 if math.isnan(found) else found


def _kid(made: Float, real: Float) -> Estimate:
    found = kid(made, real)
    return found.value, found.low, found.high


def _by_key(generated: list[Row], network: str) -> dict[tuple[str, str], dict[str, Row]]:
    """(backend, class) -> measure -> row, against the test images, by the first network."""
    found: dict[tuple[str, str], dict[str, Row]] = {}
    for row in generated:
        if row["network"] == network and row["against"] == TEST and row["status"] == "ok":
            found.setdefault((row["backend"], row["class"]), {})[row["measure"]] = row
    return found
