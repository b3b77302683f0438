"""KID and FID equal those of torch-fidelity 0.4.0 on the same features."""

import numpy as np
import pytest
import torch
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kernel_poly, mmd2

from harness.set_measures import Float, fid, kid, kid_paired

POLYNOMIAL = {"kid_kernel_poly_degree": 3, "kid_kernel_poly_gamma": None, "kid_kernel_poly_coef0": 1}


def pair(n: int, d: int) -> tuple[Float, Float]:
    """Features like those of a network after ReLU, and slightly changed ones: (n, d) each."""
    rng = np.random.default_rng(n)
    mixing = rng.normal(size=(d, d)) / np.sqrt(d)
    x = np.maximum(rng.normal(size=(n, d)) @ mixing, 0)
    return x, np.maximum(x + 0.3 * rng.normal(size=x.shape) @ mixing + 0.05, 0)


def kernels(x: Float, y: Float) -> tuple[Float, Float, Float]:
    """torch-fidelity's polynomial kernel matrices, in the order that its `mmd2` takes."""
    return kernel_poly(x, x, **POLYNOMIAL), kernel_poly(x, y, **POLYNOMIAL), kernel_poly(y, y, **POLYNOMIAL)


@pytest.mark.parametrize(("n", "d"), [(400, 128), (100, 256)])
def test_fid_equals_torch_fidelity(n: int, d: int) -> None:
    """FID agrees to 1e-4, with more images than features and with fewer."""
    x, y = pair(n, d)
    first, second = (fid_features_to_statistics(torch.from_numpy(features)) for features in (x, y))
    expected = fid_statistics_to_metric(first, second, verbose=False)[KEY_METRIC_FID]
    assert fid(x, y) == pytest.approx(expected, rel=1e-4)


def test_kid_equals_torch_fidelity() -> None:
    """KID agrees with the estimator for independent sets, and paired KID with the one that leaves the pairs out."""
    x, y = pair(300, 64)
    assert kid(x, y).value == pytest.approx(mmd2(*kernels(x, y), mmd_est="unbiased"), rel=1e-9)
    assert kid_paired(x, y).value == pytest.approx(mmd2(*kernels(x, y), mmd_est="u-statistic"), rel=1e-9)
