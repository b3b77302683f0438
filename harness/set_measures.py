"""Measures of sets of images: KID and FID on the features of a named network, with intervals.

KID is the unbiased squared MMD with the kernel (x.y / d + 1)^3 (Binkowski et al. 2018). Reconstructions of the same
reference images are paired samples, for which the usual estimator is biased: `kid_paired` leaves the i = i terms out
of the cross term as well. FID (Heusel et al. 2017) is biased upwards for small sets; quote it with n.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness import weights
from harness.metrics import BACKBONES, lpips_network

Float = NDArray[np.float64]
Images = NDArray[np.uint8]

NETWORK = "alexnet-relu5"
"""AlexNet trunk (ImageNet), last convolution after ReLU, mean over positions: 256 features."""

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
    """Frechet distance of two sets of features: |mx - my|^2 + tr(Cx + Cy - 2 (Cx Cy)^(1/2))."""
    difference = x.mean(axis=0) - y.mean(axis=0)
    cx, cy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    roots = np.sqrt(np.maximum(np.linalg.eigvals(cx @ cy).real, 0.0)).sum()
    return float(difference @ difference + np.trace(cx) + np.trace(cy) - 2 * roots)
