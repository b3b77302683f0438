"""RDP, PR and flips: the definitions by hand, what is too small or missing, intervals."""

import math

import numpy as np
import pandas as pd
import pytest

from harness.errors import ConfigError
from harness.fairness.parity import chebyshev, chi2, excess_flips, flip_matrix, hit_rates, p_pr, pr, rdp, turned_into
from harness.fairness.parity import uniform as even

LABELS = ["a"] * 40 + ["b"] * 40 + ["c"] * 40
SEEN = ["a"] * 40 + ["b"] * 20 + ["a"] * 20 + ["c"] * 20 + ["a"] * 10 + ["b"] * 10


def test_divergences_are_zero_at_parity_and_largest_when_one_group_is_left() -> None:
    """Chi2 runs from 0 to k - 1 and Chebyshev to 1 - 1/k."""
    alone = pd.Series([1.0, 0, 0, 0], list("abcd"))
    q = even(list("abcd"))
    assert (chi2(q, q), chebyshev(q, q)) == (0, 0)
    assert (chi2(alone, q), chebyshev(alone, q)) == pytest.approx((3, 0.75))


def test_rdp_is_that_of_the_definition() -> None:
    """Hit rates 1, 1/2, 1/2 give shares 1/2, 1/4, 1/4, chi2 1/8 and Chebyshev 1/6; the rates stand beside."""
    parity = rdp(LABELS, SEEN)
    assert list(parity.table["rate"]) == [1, 0.5, 0.5]
    assert list(parity.table["share"]) == pytest.approx([0.5, 0.25, 0.25])
    assert (parity.chi2, parity.chebyshev, parity.n) == pytest.approx((1 / 8, 1 / 6, 120))


def test_rdp_has_no_scale() -> None:
    """Equal hit rates of 5 % are at parity, and only the hit rates tell."""
    labels = np.repeat(list("ab"), 100)
    seen = np.where(np.arange(200) % 20 == 0, labels, "c")
    parity = rdp(labels, seen)
    assert parity.chi2 == 0
    assert list(parity.table["rate"]) == [0.05, 0.05]


def test_small_groups_are_shown_and_not_judged() -> None:
    """A group of 12 images has a hit rate with its n, no share, and does not enter RDP."""
    parity = rdp([*LABELS, *["d"] * 12], [*SEEN, *["a"] * 12])
    assert parity.table[["n", "rate"]].T["d"].tolist() == [12, 0]
    assert math.isnan(parity.table["share"]["d"])
    assert parity.chi2 == pytest.approx(1 / 8)


@pytest.mark.parametrize(("labels", "seen"), [(["a"] * 50, ["a"] * 50), (LABELS, ["x"] * 120)])
def test_one_group_or_no_hit_has_no_rdp(labels: list[str], seen: list[str]) -> None:
    """With one group, or no hit at all, the divergences are not a number."""
    parity = rdp(labels, seen)
    assert math.isnan(parity.chi2)
    assert math.isnan(parity.chebyshev)


def test_pr_against_the_true_mix() -> None:
    """Outputs in the mix of the test set are at parity with it, and not with uniform."""
    labels = ["a"] * 90 + ["b"] * 10
    mix = p_pr(labels, classes=["a", "b"])
    assert pr(labels[::-1], mix).chi2 == 0
    assert pr(labels, even(["a", "b"])).chi2 == pytest.approx(0.64)
    assert pr(labels, even(["a", "b"])).table[["n", "hits", "share"]].T["b"].tolist() == pytest.approx([100, 10, 0.1])


def test_a_group_absent_from_the_reference() -> None:
    """Outputs in a group that the test set lacks diverge without bound; a group that both lack is ignored."""
    mix = p_pr(["a", "b"] * 10, classes=["a", "b", "c"])
    assert pr(["a", "b"] * 10, mix).chi2 == 0
    assert math.isinf(pr(["a", "c"] * 10, mix).chi2)


def test_hit_rates_of_cells() -> None:
    """Groups other than the labels are cells of their own, with Wilson intervals."""
    cells = [f"{label} x {'m' if i % 2 else 'f'}" for i, label in enumerate(LABELS)]
    rates = hit_rates(LABELS, SEEN, groups=cells)
    assert list(rates["n"]) == [20] * 6
    assert rates[["low", "high"]].T["b x f"].tolist() == pytest.approx([0.299, 0.701], abs=0.001)


def test_flips_are_directed() -> None:
    """The matrix counts what became what, with empty rows and columns for classes that do not occur."""
    flips = flip_matrix(LABELS, SEEN, classes=["a", "b", "c", "d"])
    assert flips.to_numpy().tolist() == [[40, 0, 0, 0], [20, 20, 0, 0], [10, 10, 20, 0], [0, 0, 0, 0]]
    assert turned_into("a", labels=LABELS, predictions=SEEN).value == 30 / 80


def test_unknown_classes_are_refused() -> None:
    """A prediction outside the classes is one line that names it."""
    with pytest.raises(ConfigError, match=r"^'nan' is none of a, b; "):
        flip_matrix(["a", "b"], ["a", float("nan")], classes=["a", "b"])  # type: ignore[list-item]


def test_excess_flips_cover_the_planted_excess() -> None:
    """Of 300 samples with 10 % flips more than the control's, 92 % or more of the intervals hold 0.1."""
    rng = np.random.default_rng(1)
    covered = 0
    for _ in range(300):
        draws = rng.random(200)
        excess = excess_flips(draws < 0.3, draws < 0.2)
        covered += excess.low <= 0.1 <= excess.high
    assert covered / 300 >= 0.92


def test_the_control_arm_has_no_excess() -> None:
    """Against itself an arm has excess 0 with the interval 0 to 0."""
    flips = np.arange(100) % 3 == 0
    excess = excess_flips(flips, flips)
    assert (excess.value, excess.low, excess.high, excess.n) == (0, 0, 0, 100)


def test_nobody_to_turn_has_no_rate() -> None:
    """Where all images are of the majority group, the share turned into it is not a number and n is 0."""
    turned = turned_into("a", labels=["a"] * 5, predictions=["a"] * 5)
    assert math.isnan(turned.value)
    assert turned.n == 0
