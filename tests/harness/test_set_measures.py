"""KID and FID: unbiased for paired and independent sets, intervals that cover, agreement with independent formulas."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.linalg import sqrtm

from harness.datasets import limit, open_dataset
from harness.degrade import make_target
from harness.errors import WeightsError
from harness.networks import open_network
from harness.set_measures import BLOCK, Float, fid, kid, kid_difference, kid_paired, kid_paired_differences
from harness.suite import NETWORKS


def brute_force_kid(x: Float, y: Float) -> float:
    """The unbiased estimator for independent sets, written as its sums."""
    d, m, n = x.shape[1], len(x), len(y)

    def k(a: Float, b: Float) -> float:
        return float((a @ b / d + 1) ** 3)

    xx = sum(k(x[i], x[j]) for i in range(m) for j in range(m) if i != j) / (m * (m - 1))
    yy = sum(k(y[i], y[j]) for i in range(n) for j in range(n) if i != j) / (n * (n - 1))
    return xx + yy - 2 * sum(k(a, b) for a in x for b in y) / (m * n)


def test_kid_is_the_sum_it_says() -> None:
    """KID of independent sets equals the definition, term by term."""
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 5)), rng.normal(0.3, 1, size=(12, 5))
    assert kid(x, y).value == pytest.approx(brute_force_kid(x, y), rel=1e-12)


def test_two_sets_are_compared_against_the_same_images() -> None:
    """The difference of two KIDs; its interval covers none about as often as it says, and tells a shift from none."""
    rng = np.random.default_rng(5)
    covered, told = [], []
    for _ in range(100):
        real, x, y = rng.normal(size=(50, 4)), rng.normal(0.5, 1, size=(50, 4)), rng.normal(0.5, 1, size=(50, 4))
        found, worse = kid_difference(x, y, real), kid_difference(x + 0.7, y, real)
        covered.append(found.low <= 0 <= found.high)
        told.append(worse.low > 0)
    assert found.value == pytest.approx(kid(x, real).value - kid(y, real).value)
    assert sum(covered) >= 90
    assert sum(told) >= 90


def test_paired_sets_are_compared_on_the_same_photos() -> None:
    """Two paired KIDs differ by the difference of the two, over the photos that both have, across blocks."""
    rng = np.random.default_rng(7)
    targets = rng.normal(size=(BLOCK + 20, 4))
    outputs = {name: targets + rng.normal(0, spread, targets.shape) for name, spread in (("a", 0.4), ("b", 0.1))}
    outputs["a"][3], outputs["b"][BLOCK + 1], targets[9] = np.nan, np.nan, np.nan
    ((first, second, found),) = kid_paired_differences(outputs, targets)
    both = np.delete(np.arange(len(targets)), [3, 9, BLOCK + 1])
    a, b = (kid_paired(outputs[name][both], targets[both]).value for name in "ab")
    assert (first, second, found.n) == ("a", "b", len(both))
    assert found.value == pytest.approx(a - b, rel=1e-9)
    assert 0 < found.low < found.value < found.high


def test_intervals_of_paired_differences_cover() -> None:
    """They cover none about as often as they say, and are mostly narrower than those of the two KIDs."""
    rng = np.random.default_rng(8)
    covered, narrower = [], []
    for _ in range(100):
        targets = rng.normal(size=(80, 4))
        shared = targets + rng.normal(0.3, 0.3, targets.shape)
        outputs = {name: shared + rng.normal(0, 0.2, targets.shape) for name in "ab"}
        ((_, _, found),) = kid_paired_differences(outputs, targets)
        covered.append(found.low <= 0 <= found.high)
        alone = kid_paired(outputs["a"], targets)
        narrower.append(found.high - found.low < alone.high - alone.low)
    assert sum(covered) >= 90
    assert sum(narrower) >= 90


def test_pairing_is_allowed_for() -> None:
    """For slightly changed copies the paired estimator errs ten times less than the plain one."""
    rng = np.random.default_rng(1)
    plain, paired = [], []
    for _ in range(60):
        x = rng.normal(size=(200, 16))
        y = x + rng.normal(0, 0.05, size=x.shape)
        plain.append(kid(x, y).value)
        paired.append(kid_paired(x, y).value)
    reference = rng.normal(size=(4000, 16))
    truth = kid(reference[:2000], reference[2000:] * np.sqrt(1 + 0.05**2)).value
    assert abs(np.mean(paired) - truth) * 10 < abs(np.mean(plain) - truth)


def test_identical_sets_are_at_zero() -> None:
    """A set against itself has paired KID exactly 0 and FID 0."""
    x = np.random.default_rng(2).normal(size=(50, 8))
    assert kid_paired(x, x).value == 0
    assert fid(x, x) == pytest.approx(0, abs=1e-9)


def test_fid_equals_the_matrix_square_root() -> None:
    """FID through eigenvalues equals the formula with scipy's matrix square root."""
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(300, 12)) @ rng.normal(size=(12, 12)), rng.normal(0.2, 1.5, size=(400, 12))
    cx, cy = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    mean = x.mean(axis=0) - y.mean(axis=0)
    expected = mean @ mean + np.trace(cx + cy - 2 * np.real(sqrtm(cx @ cy)))
    assert fid(x, y) == pytest.approx(expected, rel=1e-8)


@pytest.fixture(scope="module")
def faces(data_root: Path) -> NDArray[np.uint8]:
    """300 real faces of one group, 64 x 64."""
    dataset = limit(open_dataset(f"utkface:{data_root / 'utkface'}#test"), 2000)
    white = [r for r in dataset.records if r.labels["race"] == "white"][:300]
    return np.stack([make_target(dataset.image(record), 64) for record in white])


@pytest.mark.parametrize("name", NETWORKS)
def test_intervals_cover_no_difference_on_faces(faces: NDArray[np.uint8], name: str) -> None:
    """On features of real faces of one group, the intervals of random halves cover 0 in 92 %, paired (GPI) or not."""
    try:
        vectors = open_network(name).features(faces)
    except WeightsError as error:
        pytest.skip(str(error))
    rng = np.random.default_rng(4)
    covered = []
    for _ in range(300):
        x, y = np.split(vectors[rng.permutation(len(vectors))], 2)
        covered.append([estimate.low <= 0 <= estimate.high for estimate in (kid(x, y), kid_paired(x, y))])
    assert (np.mean(covered, axis=0) >= 0.92).all()


def test_blocks_of_the_kernel_change_nothing() -> None:
    """Over several blocks, paired KID and its jackknife equal the dense formulas."""
    rng = np.random.default_rng(5)
    x = rng.normal(size=(BLOCK + 40, 6))
    y = x + rng.normal(0.1, 0.2, size=x.shape)
    n = len(x)
    kernels = [(a @ b.T / 6 + 1) ** 3 for a, b in ((x, x), (y, y), (x, y), (y, x))]
    h = kernels[0] + kernels[1] - kernels[2] - kernels[3]
    np.fill_diagonal(h, 0)
    left_out = [(h.sum() - 2 * h[i].sum()) / ((n - 1) * (n - 2)) for i in range(n)]
    error = np.sqrt((n - 1) * np.var(left_out))
    estimate = kid_paired(x, y)
    assert estimate.value == pytest.approx(h.sum() / (n * (n - 1)), rel=1e-9)
    assert estimate.high - estimate.low == pytest.approx(2 * 1.96 * error, rel=1e-6)


def test_intervals_cover_no_difference_in_one_direction() -> None:
    """Where features vary in one direction only, the intervals of equal sets still cover 0."""
    rng = np.random.default_rng(6)
    covered = []
    for _ in range(200):
        x, y = rng.normal(size=(2, 100, 8)) * np.array([1, *[0.05] * 7])
        covered += [estimate.low <= 0 <= estimate.high for estimate in (kid(x, y), kid_paired(x, y))]
    assert np.mean(covered) >= 0.92


def test_too_few_images_are_not_measured() -> None:
    """Three images give no KID."""
    x = np.zeros((3, 4))
    assert np.isnan(kid_paired(x, x).value)
    assert np.isnan(kid(x, x).value)
