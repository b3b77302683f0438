"""Precision, recall, density, coverage and Vendi against their definitions, and what raises an alarm."""

import numpy as np
import pytest

from harness import manifold
from harness.manifold import Float, manifold_terms, near_copies, near_duplicates, nearest, radii, vendi


def brute_force(real: Float, generated: Float) -> dict[str, float]:
    """The four measures by their definitions, from all differences."""

    def distances(a: Float, b: Float) -> Float:
        return np.asarray(np.sqrt(np.square(a[:, None] - b[None]).sum(axis=2)))

    within, across, own = distances(real, real), distances(generated, real), distances(generated, generated)
    third, fifth = np.sort(within, axis=1)[:, 3], np.sort(within, axis=1)[:, 5]
    reach = np.sort(own, axis=1)[:, 3]
    return {
        "precision": np.mean([(across[j] < third).any() for j in range(len(generated))]),
        "recall": np.mean([(across[:, i] < reach).any() for i in range(len(real))]),
        "density": sum((across[:, i] < fifth[i]).sum() for i in range(len(real))) / (5 * len(generated)),
        "coverage": np.mean([across[:, i].min() < fifth[i] for i in range(len(real))]),
    }


def test_the_measures_are_their_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    """On 500 points a side, far from the origin and in blocks, all four agree with a brute-force computation."""
    rng = np.random.default_rng(0)
    real, generated = rng.normal(50, 1, (500, 6)), rng.normal(50.4, 0.8, (500, 6))
    monkeypatch.setattr(manifold, "BLOCK", 97)
    found = {name: terms.mean() for name, terms in manifold_terms(real, generated).items()}
    assert found == pytest.approx(brute_force(real, generated), abs=1e-6)
    assert 0.2 < found["precision"] < 1
    assert 0.2 < found["recall"] < 1


def test_vendi_counts_what_differs() -> None:
    """Orthogonal features count as n, identical ones as 1, whatever their lengths; two equal halves count as 2."""
    lengths = np.arange(1.0, 9)[:, None]
    assert vendi(np.eye(8) * lengths) == pytest.approx(8)
    assert vendi(np.ones((8, 3)) * lengths) == pytest.approx(1)
    assert vendi(np.eye(5)[[0, 1] * 6]) == pytest.approx(2)
    assert np.isnan(vendi(np.zeros((3, 4))))


def test_vendi_is_the_entropy_of_the_kernel() -> None:
    """With more images than features too, it equals the definition by the n x n kernel."""
    x = np.random.default_rng(1).normal(size=(40, 7))
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    values = np.linalg.eigvalsh(unit @ unit.T / 40).clip(1e-300)
    assert vendi(x) == pytest.approx(np.exp(-(values * np.log(values)).sum()), rel=1e-9)


def test_recall_falls_with_the_modes_and_precision_does_not() -> None:
    """Three images for all seeds look real and cover next to nothing; as many real ones cover most."""
    rng = np.random.default_rng(2)
    real, other = rng.normal(size=(2, 300, 4))
    three = other[rng.integers(0, 3, 300)]
    collapsed, fair = ({k: v.mean() for k, v in manifold_terms(real, x).items()} for x in (three, other))
    assert collapsed["precision"] == pytest.approx(fair["precision"], abs=0.4)
    assert (collapsed["recall"] < 0.05, fair["recall"] > 0.5) == (True, True)
    assert (collapsed["coverage"] < 0.1, fair["coverage"] > 0.8) == (True, True)


def test_near_duplicates_and_copies_are_few_among_real_images() -> None:
    """Repeated images are near-duplicates, and those of the training set copies; of real ones about 1 % are."""
    rng = np.random.default_rng(3)
    real, training, other = rng.normal(size=(3, 400, 8))
    assert near_duplicates(np.repeat(other[:4], 100, axis=0), real).all()
    assert near_duplicates(other, real).mean() < 0.05
    assert near_copies(training + 1e-3, real, training).all()
    assert near_copies(other, real, training).mean() < 0.05


def test_small_sets_have_no_balls() -> None:
    """With as few images as k, every distance is too near to tell, and none is an error."""
    x = np.random.default_rng(4).normal(size=(3, 2))
    assert np.isinf(radii(x, 3)).all()
    np.testing.assert_allclose(nearest(x, x), 0, atol=1e-6)
