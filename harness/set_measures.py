"""Measures of sets of images: KID and FID on the features of named networks, with intervals.

KID is the unbiased squared MMD with the kernel (x.y / d + 1)^3 (Binkowski et al. 2018). Reconstructions of the same
reference images are paired samples, for which the usual estimator is biased: `kid_paired` leaves the i = i terms out
of the cross term as well. FID (Heusel et al. 2017) is biased upwards for small sets; quote it with n.
The metrics are called `kid_NETWORK` and `fid_NETWORK`: figures of two networks cannot be compared.
"""

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.progress import Progress

from harness.errors import ConfigError, StoreError
from harness.images import load
from harness.label_tables import listing
from harness.networks import BATCH, Network, open_network, title
from harness.plan import CLEAN
from harness.score import BASELINE, CONTROL, identity, stored_outputs
from harness.statistics import jackknife, verdict
from harness.store import RunFolder, read_table, slug
from harness.suite import Suite

Float = NDArray[np.float64]

RECIPES = {
    "kid": "unbiased MMD^2, kernel (x.y / d + 1)^3, U-statistic over i != j of the pairs, interval by jackknife",
    "fid": "Frechet distance of Gaussians, unbiased covariances; biased upwards for small n",
}
BLOCK = 512
"""Rows of the kernel matrix that are in memory at once."""


@dataclass(frozen=True)
class Estimate:
    """A measure of a set with its 95 % interval (NaN where there is none) and the number of images."""

    value: float
    low: float
    high: float
    n: int


def _kernel(x: Float, y: Float) -> Float:
    z = x / x.shape[1] @ y.T + 1
    cube: Float = z * z * z  # np.power is ten times slower
    return cube


def _blocks(n: int, rows: int = BLOCK) -> Iterator[slice]:
    return (slice(start, min(start + rows, n)) for start in range(0, n, rows))


def _sums(x: Float, y: Float, *, diagonal: bool = True) -> tuple[Float, float]:
    """The sums over j of k(x_i, y_j), and the sum of all squares; perhaps without the diagonal i = j."""
    rows, squares = [], 0.0
    for block in _blocks(len(x)):
        k = _kernel(x[block], y)
        if not diagonal:
            np.fill_diagonal(k[:, block], 0.0)
        rows.append(k.sum(axis=1))
        squares += float(np.square(k).sum())
    return np.concatenate(rows), squares


def paired_terms(x: Float, y: Float, rows: slice) -> Float:
    """h_ij = k(x_i, x_j) + k(y_i, y_j) - k(x_i, y_j) - k(y_i, x_j) for i in rows and all j, with h_ii = 0.

    The mean of h_ij over i != j is the paired KID, of all pairs or of those that are in a group.
    """
    h = _kernel(x[rows], x) + _kernel(y[rows], y) - _kernel(x[rows], y) - _kernel(y[rows], x)
    np.fill_diagonal(h[:, rows], 0.0)
    return h


def _paired_sums(x: Float, y: Float) -> tuple[Float, float]:
    """The sums over j of h_ij, and that of all squares."""
    rows, squares = [], 0.0
    for block in _blocks(len(x)):
        h = paired_terms(x, y, block)
        rows.append(h.sum(axis=1))
        squares += float(np.square(h).sum())
    return np.concatenate(rows), squares


def kid_paired(x: Float, y: Float) -> Estimate:
    """KID of paired features (row i of both comes from the same photo): the U-statistic over i != j.

    The 95 % interval is normal. Its variance is the jackknife's over photos or, if larger, that of the statistic
    where the sets do not differ, 2 var(h) / (n (n - 1)): there the jackknife's may be near 0 when the features vary in
    few directions.
    """
    return _paired_estimate(*_paired_sums(x, y)) if len(x) else Estimate(math.nan, math.nan, math.nan, 0)


def kid_paired_differences(outputs: dict[str, Float], targets: Float) -> Iterator[tuple[str, str, Estimate]]:
    """The paired KID of each two sets of outputs, that of the first minus that of the second.

    Row i of all features comes from the same photo; rows that are not finite are missing, and a pair is compared on the
    photos that both have. The difference is the mean over i != j of the differences of h_ij, a U-statistic like
    the KID, and its interval is as that of `kid_paired`: what the photos and both sets share cancels.
    """
    usable = np.isfinite(targets).all(axis=1)
    there = {label: np.asarray(np.isfinite(x).all(axis=1) & usable) for label, x in outputs.items()}
    filled = {label: np.where(there[label][:, None], x, 0.0) for label, x in outputs.items()}
    paired = np.where(np.isfinite(targets), targets, 0.0)
    pairs = list(itertools.combinations(outputs, 2))
    rows, squares = {pair: np.zeros(len(targets)) for pair in pairs}, dict.fromkeys(pairs, 0.0)
    for block in _blocks(len(targets), max(1, BLOCK // max(1, len(outputs)))):
        terms = {label: paired_terms(x, paired, block) for label, x in filled.items()}
        for first, second in pairs:
            both = there[first] & there[second]
            h = (terms[first] - terms[second]) * both[block, None] * both
            rows[first, second][block] = h.sum(axis=1)
            squares[first, second] += float(np.square(h).sum())
    for first, second in pairs:
        both = there[first] & there[second]
        yield first, second, _paired_estimate(rows[first, second][both], squares[first, second])


def _paired_estimate(rows: Float, squares: float) -> Estimate:
    """The mean of h_ij over i != j with its interval, from the sums over j and that of all squares."""
    n = len(rows)
    if n < 4:
        return Estimate(math.nan, math.nan, math.nan, n)
    pairs = n * (n - 1)
    value = float(rows.sum() / pairs)
    left_out = (rows.sum() - 2 * rows) / ((n - 1) * (n - 2))
    return _interval(value, jackknife(left_out), 2 * (squares / pairs - value**2) / pairs, n)


def kid(x: Float, y: Float) -> Estimate:
    """KID of independent sets of features; the interval is as that of `kid_paired`, over the images of both."""
    m, n = len(x), len(y)
    if min(m, n) < 4:
        return Estimate(math.nan, math.nan, math.nan, min(m, n))
    t = _kid_terms(x, y)
    variance = jackknife(t.without_x) + jackknife(t.without_y)
    return _interval(t.value, variance, 2 * (1 / m + 1 / n) ** 2 * t.centred, min(m, n))


def kid_difference(x: Float, y: Float, real: Float) -> Estimate:
    """KID of x minus KID of y, against the same real images.

    The interval is as that of `kid`, over the images of all three sets: without one real image both KIDs change, so
    what they share cancels.
    """
    m, k, n = len(x), len(y), len(real)
    if min(m, k, n) < 4:
        return Estimate(math.nan, math.nan, math.nan, min(m, k, n))
    a, b = _kid_terms(x, real), _kid_terms(y, real)
    variance = jackknife(a.without_x) + jackknife(b.without_x) + jackknife(a.without_y - b.without_y)
    degenerate = 2 * (1 / m**2 + 1 / k**2 + 2 / n * (1 / m + 1 / k)) * (a.centred + b.centred) / 2
    return _interval(a.value - b.value, variance, degenerate, min(m, k, n))


@dataclass(frozen=True)
class _KidTerms:
    """KID of x and y, what it is without each image of x and of y, and the variance of k about its margins."""

    value: float
    without_x: Float
    without_y: Float
    centred: float


def _kid_terms(x: Float, y: Float) -> _KidTerms:
    m, n = len(x), len(y)
    (rows_x, _), (rows_y, _) = _sums(x, x, diagonal=False), _sums(y, y, diagonal=False)
    (across_x, squares), (across_y, _) = _sums(x, y), _sums(y, x)
    a, b, c = rows_x.sum(), rows_y.sum(), across_x.sum()
    value = a / (m * (m - 1)) + b / (n * (n - 1)) - 2 * c / (m * n)
    without_x = (a - 2 * rows_x) / ((m - 1) * (m - 2)) + b / (n * (n - 1)) - 2 * (c - across_x) / ((m - 1) * n)
    without_y = a / (m * (m - 1)) + (b - 2 * rows_y) / ((n - 1) * (n - 2)) - 2 * (c - across_y) / (m * (n - 1))
    centred = (squares - np.square(across_x).sum() / n - np.square(across_y).sum() / m + c**2 / (m * n)) / (m * n)
    return _KidTerms(float(value), without_x, without_y, float(centred))


def _interval(value: float, jackknife: float, degenerate: float, n: int) -> Estimate:
    half = 1.96 * math.sqrt(max(jackknife, degenerate))
    return Estimate(float(value), float(value - half), float(value + half), n)


def fid(x: Float, y: Float) -> float:
    """Frechet distance of two sets of features: |mx - my|^2 + tr(Cx + Cy - 2 (Cx Cy)^(1/2)); NaN for fewer than 2.

    With Cx = A'A and Cy = B'B, the trace of the root is the sum of the singular values of A B'.
    """
    if min(len(x), len(y)) < 2:
        return math.nan
    difference = x.mean(axis=0) - y.mean(axis=0)
    a, b = _root(x), _root(y)
    roots = np.linalg.svd(a @ b.T, compute_uv=False).sum()
    return float(difference @ difference + np.square(a).sum() + np.square(b).sum() - 2 * roots)


def _root(x: Float) -> Float:
    """A matrix A of at most d rows with A'A the covariance of the features (n, d)."""
    return np.asarray(np.linalg.qr((x - x.mean(axis=0)) / math.sqrt(len(x) - 1), mode="r"))


def describe(suite: Suite) -> dict[str, dict[str, str]]:
    """Title and recipe of each measure of sets of a suite, and its network by name and recipe.

    Raises:
        ConfigError, WeightsError: a network cannot be used, or has no features.
    """
    return {metric: _describe(metric, _open(metric, suite.networks)) for metric in suite.set_metrics}


def _describe(metric: str, network: Network) -> dict[str, str]:
    measure = metric.partition("_")[0]
    return {
        "title": f"{measure.upper()} ({title(network.name)})",
        "recipe": f"{RECIPES[measure]}; features: {network.recipe}",
        "network": network.name,
        "network_recipe": network.recipe,
    }


def _open(metric: str, files: dict[str, str]) -> Network:
    name = metric.partition("_")[2]
    network = open_network(name, files.get(name, ""))
    if not network.width:
        raise ConfigError(f"{files[name]}: features names no output, so {metric} cannot be measured; name one")
    return network


def measure_sets(folder: RunFolder, progress: Progress) -> None:
    """Store the features of all clean outputs, and one row for each backend and measure of sets of the suite.

    Features whose images are already stored are kept; rows are written anew only when they change.

    Raises:
        ConfigError, WeightsError, StoreError: a network is needed and is not there, or is no longer the run's.
    """
    record = folder.read_record() or {}
    measures = _measures(record)
    if not measures:
        return
    images = read_table(folder.path / "images.parquet")
    networks = {about["network"]: metric for metric, about in measures.items()}
    task = progress.add_task("features", total=len(record["backends"]) * len(networks))
    for metric in networks.values():
        for backend in record["backends"]:
            _store_features(folder, record, images, backend, metric)
            progress.advance(task)
    by_label = {b["label"]: identity(b, record["dataset"]["spec"]) for b in record["backends"]}
    scale = record["suite"]["content"]["high"] // record["suite"]["content"]["low"]
    rows = [
        by_label[e["backend"]] | {"condition": CLEAN.name, "scale": scale, "metric": e["metric"], "value": e["value"]}
        for e in set_estimates(folder, record)
    ]
    keys = ["backend", "digest", "options", "metric", "value"]
    if folder.rows("sets")[keys].to_dict("records") != [{k: row[k] for k in keys} for row in rows]:
        folder.drop("sets")
        folder.append(rows, "sets")


def set_estimates(folder: RunFolder, record: dict[str, Any]) -> list[dict[str, Any]]:
    """The measures of sets of each backend from its stored features, paired with the targets' by image.

    Images without finite features are left out, counted and named in `note`.
    """
    rows = []
    for metric, about in _measures(record).items():
        stored = {b["label"]: path for b in record["backends"] if (path := _feature_file(folder, b, about)).exists()}
        if CONTROL in stored:
            targets = _read_features(stored[CONTROL])
            found = {label: _estimate(metric, _read_features(path), targets) for label, path in stored.items()}
            rows += [{"backend": label, "metric": metric} | figures for label, figures in found.items()]
    return rows


def set_differences(folder: RunFolder, record: dict[str, Any]) -> list[dict[str, Any]]:
    """The KID of each two backends, first minus second, on the photos that both have, from the stored features.

    The control arm is left out: its KID is 0. The baseline comes last.
    """
    rows = []
    for metric, about in _measures(record).items():
        stored = {b["label"]: path for b in record["backends"] if (path := _feature_file(folder, b, about)).exists()}
        if metric.startswith("kid_") and CONTROL in stored:
            targets = _read_features(stored.pop(CONTROL))
            labels = sorted(stored, key=lambda label: label == BASELINE)
            outputs = {label: _read_features(stored[label]).reindex(targets.index) for label in labels}
            features = {label: frame.to_numpy(float) for label, frame in outputs.items()}
            for first, second, found in kid_paired_differences(features, targets.to_numpy(float)):
                who = {"first": first, "second": second, "metric": metric, "n": found.n}
                word = verdict(found.low, found.high, higher_is_better=False)
                rows.append(who | {"difference": found.value, "low": found.low, "high": found.high, "verdict": word})
    return rows


def load_features(folder: RunFolder, record: dict[str, Any], label: str, about: dict[str, str]) -> pd.DataFrame | None:
    """The stored features of a backend by image, of the network that `about` in the record names; None for none."""
    backend = next(b for b in record["backends"] if b["label"] == label)
    path = _feature_file(folder, backend, about)
    return _read_features(path) if path.exists() else None


def _measures(record: dict[str, Any]) -> dict[str, dict[str, str]]:
    """What `describe` said when the run began; nothing for runs of versions that could not choose a network."""
    return {metric: about for metric, about in record.get("set_metrics", {}).items() if "network" in about}


def _estimate(metric: str, outputs: pd.DataFrame, targets: pd.DataFrame) -> dict[str, Any]:
    x, y = outputs.to_numpy(float), targets.loc[outputs.index].to_numpy(float)
    usable = np.isfinite(x).all(axis=1) & np.isfinite(y).all(axis=1)
    x, y = x[usable], y[usable]
    estimate = kid_paired(x, y) if metric.startswith("kid_") else Estimate(fid(x, y), math.nan, math.nan, len(x))
    lost = [str(image) for image in outputs.index[~usable]]
    note = f"{len(lost)} left out, features not finite: {listing(lost)}" if lost else ""
    return asdict(estimate) | {"note": note}


def _feature_file(folder: RunFolder, backend: dict[str, Any], about: dict[str, str]) -> Path:
    version = hashlib.sha256(about["network_recipe"].encode()).hexdigest()[:8]
    name = slug(str(identity(backend, "")))[-16:]
    return folder.path / "features" / f"{about['network']}-{version}" / f"{slug(backend['label'])}.{name}.parquet"


def _read_features(path: Path) -> pd.DataFrame:
    return read_table(path).set_index("image")


def _store_features(
    folder: RunFolder, record: dict[str, Any], images: pd.DataFrame, backend: dict[str, Any], metric: str
) -> None:
    content, about = record["suite"]["content"], record["set_metrics"][metric]
    outputs = stored_outputs(folder, images, backend, CLEAN, content["high"] // content["low"])
    path = _feature_file(folder, backend, about)
    if not outputs or (path.exists() and set(_read_features(path).index) == set(outputs)):
        return
    network = _open(metric, content["networks"])
    if network.recipe != about["network_recipe"]:
        raise StoreError(
            f"{folder.path}: network {network.name} is no longer that of this run; choose another --output"
        )
    names = list(outputs)
    parts = [
        network.features(np.stack([load(outputs[name]) for name in names[i : i + BATCH]]))
        for i in range(0, len(names), BATCH)
    ]
    frame = pd.DataFrame(np.concatenate(parts).astype(np.float32)).rename(columns=str)
    frame.insert(0, "image", names)
    folder.write_table(str(path.relative_to(folder.path).with_suffix("")), frame)
