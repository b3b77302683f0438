"""The differences between two generators: by the figures of each, and a tie where they are equally good."""

import numpy as np
import pytest

from harness.generator_pairs import set_differences
from harness.manifold import manifold_terms


def test_equal_generators_tie_and_a_worse_one_does_not() -> None:
    """Intervals cover no difference about as often as they say; one that lacks half of the images has less recall."""
    rng = np.random.default_rng(6)
    covered: dict[str, list[bool]] = {}
    for _ in range(60):
        first, second = rng.normal(0.4, 1, (2, 100, 6))
        real = rng.normal(size=(100, 6))
        for name, (_, low, high) in set_differences(first, second, real):
            covered.setdefault(name, []).append(low <= 0 <= high)
    assert {name: sum(each) >= 52 for name, each in covered.items()} == dict.fromkeys(covered, True)
    half = rng.normal(size=(300, 6))
    half[:, 0] = abs(half[:, 0]) + 1
    real, whole = rng.normal(size=(2, 300, 6))
    found = dict(set_differences(whole, half, real))
    assert min(found["recall"][1], found["coverage"][1]) > 0
    assert found["kid"][2] < 0
    own, other = manifold_terms(real, whole), manifold_terms(real, half)
    for name in own:
        assert found[name][0] == pytest.approx(own[name].mean() - other[name].mean())
