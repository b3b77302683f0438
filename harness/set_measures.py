"""Measures of sets of images: KID and FID on the features of a named network, with intervals.

KID is the unbiased squared MMD with the kernel (x.y / d + 1)^3 (Binkowski et al. 2018). Reconstructions of the same
reference images are paired samples, for which the usual estimator is biased: `kid_paired` leaves the i = i terms out
of the cross term as well. FID (Heusel et al. 2017) is biased upwards for small sets; quote it with n.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.progress import Progress

from harness import weights
from harness.images import load
from harness.metrics import BACKBONES, lpips_network
from harness.plan import CLEAN
from harness.score import CONTROL, identity, stored_outputs
from harness.store import RunFolder, read_table, slug

Float = NDArray[np.float64]
Images = NDArray[np.uint8]

NETWORK = "alexnet-relu5"
"""AlexNet trunk (ImageNet), last convolution after ReLU, mean over positions: 256 features."""

TITLES = {"kid_alexnet": "KID (AlexNet features)", "fid_alexnet": "FID (AlexNet features)"}
BATCH = 64


@dataclass(frozen=True)
class Estimate:
    """A measure of a set with its 95 % interval (NaN where there is none) and the number of images."""

    value: float
    low: float
    high: float
    n: int


def network_recipe() -> str:
    """The feature network by name, layer and hash of its weights."""
    file, _ = BACKBONES["alex"]
    return f"{NETWORK}, mean over positions, RGB -1..1, weights {file} sha256 {weights.WEIGHTS[file].sha256[:12]}"


def features(images: Images) -> Float:
    """Features of (N, H, W, 3) images: (N, 256). Images of 32 pixels or more."""
    import torch

    lpips = lpips_network("alex")
    parts = []
    with torch.inference_mode():
        for start in range(0, len(images), BATCH):
            part = torch.from_numpy(images[start : start + BATCH].copy()).permute(0, 3, 1, 2).float() / 127.5 - 1
            parts.append(lpips.net(lpips.scaling_layer(part)).relu5.mean(dim=(2, 3)).double().numpy())  # type: ignore[operator]
    return np.concatenate(parts)


def _kernel(x: Float, y: Float) -> Float:
    kernel: Float = (x @ y.T / x.shape[1] + 1) ** 3
    return kernel


def kid_paired(x: Float, y: Float) -> Estimate:
    """KID of paired features (row i of both comes from the same photo): the U-statistic over i != j.

    The interval is the jackknife's over photos; at no difference, where the statistic is degenerate, it is too wide
    rather than too narrow.
    """
    n = len(x)
    if n < 4:
        return Estimate(math.nan, math.nan, math.nan, n)
    cross = _kernel(x, y)
    h = _kernel(x, x) + _kernel(y, y) - cross - cross.T
    np.fill_diagonal(h, 0.0)
    rows, total = h.sum(axis=1), h.sum()
    left_out = (total - 2 * rows) / ((n - 1) * (n - 2))
    return _jackknife(float(total / (n * (n - 1))), left_out)


def kid(x: Float, y: Float) -> Estimate:
    """KID of independent sets of features, with the jackknife interval over the images of both."""
    m, n = len(x), len(y)
    if min(m, n) < 4:
        return Estimate(math.nan, math.nan, math.nan, min(m, n))
    kxx, kyy, kxy = _kernel(x, x), _kernel(y, y), _kernel(x, y)
    np.fill_diagonal(kxx, 0.0)
    np.fill_diagonal(kyy, 0.0)
    a, b, c = kxx.sum(), kyy.sum(), kxy.sum()
    value = a / (m * (m - 1)) + b / (n * (n - 1)) - 2 * c / (m * n)
    without_x = (a - 2 * kxx.sum(axis=1)) / ((m - 1) * (m - 2)) + b / (n * (n - 1))
    without_x -= 2 * (c - kxy.sum(axis=1)) / ((m - 1) * n)
    without_y = a / (m * (m - 1)) + (b - 2 * kyy.sum(axis=1)) / ((n - 1) * (n - 2))
    without_y -= 2 * (c - kxy.sum(axis=0)) / (m * (n - 1))
    spread = math.hypot(_error(without_x), _error(without_y))
    return Estimate(float(value), float(value - 1.96 * spread), float(value + 1.96 * spread), min(m, n))


def _error(left_out: Float) -> float:
    n = len(left_out)
    return math.sqrt((n - 1) / n * float(((left_out - left_out.mean()) ** 2).sum()))


def _jackknife(value: float, left_out: Float) -> Estimate:
    spread = _error(left_out)
    return Estimate(value, value - 1.96 * spread, value + 1.96 * spread, len(left_out))


def fid(x: Float, y: Float) -> float:
    """Frechet distance of two sets of features: |mx - my|^2 + tr(Cx + Cy - 2 (Cx Cy)^(1/2)); NaN for fewer than 2."""
    if min(len(x), len(y)) < 2:
        return math.nan
    difference = x.mean(axis=0) - y.mean(axis=0)
    cx, cy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    roots = np.sqrt(np.maximum(np.linalg.eigvals(cx @ cy).real, 0.0)).sum()
    return float(difference @ difference + np.trace(cx) + np.trace(cy) - 2 * roots)


def measure_sets(folder: RunFolder, progress: Progress) -> None:
    """Store the features of all clean outputs, and one row for each backend and measure of sets of the suite.

    Features whose images are already stored are kept; rows are written anew only when they change.
    """
    record = folder.read_record() or {}
    wanted = record["suite"]["content"]["set_metrics"]
    if not wanted:
        return
    images = read_table(folder.path / "images.parquet")
    task = progress.add_task("features", total=len(record["backends"]))
    for backend in record["backends"]:
        _store_features(folder, record, images, backend)
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
    """The measures of sets of each backend from its stored features, paired with the targets' by image."""
    wanted = record["suite"]["content"].get("set_metrics", []) if "suite" in record else []
    control = next((b for b in record["backends"] if b["label"] == CONTROL), None)
    if not wanted or control is None or not (path := _feature_file(folder, control)).exists():
        return []
    targets = _read_features(path)
    rows = []
    for backend in record["backends"]:
        if not (path := _feature_file(folder, backend)).exists():
            continue
        outputs = _read_features(path)
        x, y = outputs.to_numpy(float), targets.loc[outputs.index].to_numpy(float)
        for metric in wanted:
            paired = metric == "kid_alexnet"
            estimate = kid_paired(x, y) if paired else Estimate(fid(x, y), math.nan, math.nan, len(x))
            figures = {"n": estimate.n, "value": estimate.value, "low": estimate.low, "high": estimate.high}
            rows.append({"backend": backend["label"], "metric": metric} | figures)
    return rows


def _feature_file(folder: RunFolder, backend: dict[str, Any]) -> Path:
    name = slug(str(identity(backend, "")))[-16:]
    return folder.path / "features" / NETWORK / f"{slug(backend['label'])}.{name}.parquet"


def _read_features(path: Path) -> pd.DataFrame:
    return read_table(path).set_index("image")


def _store_features(folder: RunFolder, record: dict[str, Any], images: pd.DataFrame, backend: dict[str, Any]) -> None:
    content = record["suite"]["content"]
    outputs = stored_outputs(folder, images, backend, CLEAN, content["high"] // content["low"])
    path = _feature_file(folder, backend)
    if not outputs or (path.exists() and set(_read_features(path).index) == set(outputs)):
        return
    names = list(outputs)
    parts = [
        features(np.stack([load(outputs[name]) for name in names[i : i + BATCH]])) for i in range(0, len(names), BATCH)
    ]
    frame = pd.DataFrame(np.concatenate(parts).astype(np.float32)).rename(columns=str)
    frame.insert(0, "image", names)
    folder.write_table(str(path.relative_to(folder.path).with_suffix("")), frame)
