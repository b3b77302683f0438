"""Measures of sets of images: KID and FID on the features of named networks, with intervals.

KID is the unbiased squared MMD with the kernel (x.y / d + 1)^3 (Binkowski et al. 2018). Reconstructions of the same
reference images are paired samples, for which the usual estimator is biased: `kid_paired` leaves the i = i terms out
of the cross term as well. FID (Heusel et al. 2017) is biased upwards for small sets; quote it with n.
The metrics are called `kid_NETWORK` and `fid_NETWORK`: figures of two networks cannot be compared.
"""

import hashlib
import math
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
from harness.score import CONTROL, identity, stored_outputs
from harness.store import RunFolder, read_table, slug
from harness.suite import Suite

Float = NDArray[np.float64]

RECIPES = {
    "kid": "unbiased MMD^2, kernel (x.y / d + 1)^3, U-statistic over i != j of the pairs, jackknife interval",
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


def _row_sums(x: Float, y: Float) -> Float:
    """The sums over j of the kernel of x_i and y_j, block by block: (len(x),)."""
    blocks = (x[start : start + BLOCK] / x.shape[1] for start in range(0, len(x), BLOCK))
    return np.concatenate([_cubed(block @ y.T + 1).sum(axis=1) for block in blocks])


def _off_diagonal(x: Float, y: Float) -> Float:
    """The sums over j != i of the kernel of x_i and y_j."""
    return _row_sums(x, y) - _cubed((x * y).sum(axis=1) / x.shape[1] + 1)


def _cubed(x: Float) -> Float:
    cube: Float = x * x * x  # np.power is ten times slower
    return cube


def kid_paired(x: Float, y: Float) -> Estimate:
    """KID of paired features (row i of both comes from the same photo): the U-statistic over i != j.

    The interval is the jackknife's over photos; at no difference, where the statistic is degenerate, it is too wide
    rather than too narrow.
    """
    n = len(x)
    if n < 4:
        return Estimate(math.nan, math.nan, math.nan, n)
    rows = _off_diagonal(x, x) + _off_diagonal(y, y) - _off_diagonal(x, y) - _off_diagonal(y, x)
    total = rows.sum()
    left_out = (total - 2 * rows) / ((n - 1) * (n - 2))
    return _jackknife(float(total / (n * (n - 1))), left_out)


def kid(x: Float, y: Float) -> Estimate:
    """KID of independent sets of features, with the jackknife interval over the images of both."""
    m, n = len(x), len(y)
    if min(m, n) < 4:
        return Estimate(math.nan, math.nan, math.nan, min(m, n))
    rows_x, rows_y = _off_diagonal(x, x), _off_diagonal(y, y)
    across_x, across_y = _row_sums(x, y), _row_sums(y, x)
    a, b, c = rows_x.sum(), rows_y.sum(), across_x.sum()
    value = a / (m * (m - 1)) + b / (n * (n - 1)) - 2 * c / (m * n)
    without_x = (a - 2 * rows_x) / ((m - 1) * (m - 2)) + b / (n * (n - 1)) - 2 * (c - across_x) / ((m - 1) * n)
    without_y = a / (m * (m - 1)) + (b - 2 * rows_y) / ((n - 1) * (n - 2)) - 2 * (c - across_y) / (m * (n - 1))
    spread = math.hypot(_error(without_x), _error(without_y))
    return Estimate(float(value), float(value - 1.96 * spread), float(value + 1.96 * spread), min(m, n))


def _error(left_out: Float) -> float:
    n = len(left_out)
    return math.sqrt((n - 1) / n * float(((left_out - left_out.mean()) ** 2).sum()))


def _jackknife(value: float, left_out: Float) -> Estimate:
    spread = _error(left_out)
    return Estimate(value, value - 1.96 * spread, value + 1.96 * spread, len(left_out))


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
    root: Float = np.linalg.qr((x - x.mean(axis=0)) / math.sqrt(len(x) - 1), mode="r")
    return root


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


def _measures(record: dict[str, Any]) -> dict[str, dict[str, str]]:
    """What `describe` said when the run began; nothing for runs of versions that could not choose a network."""
    return {metric: about for metric, about in record.get("set_metrics", {}).items() if "network" in about}


def _estimate(metric: str, outputs: pd.DataFrame, targets: pd.DataFrame) -> dict[str, Any]:
    targets = targets.loc[outputs.index]
    usable = np.isfinite(outputs).all(axis=1) & np.isfinite(targets).all(axis=1)
    x, y = outputs[usable].to_numpy(float), targets[usable].to_numpy(float)
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
