"""Two generators side by side: the first's measure minus the second's, held against the same real images.

KID is compared by jackknife over all images; of recall and coverage the terms are those of the same real images, so
they are paired; precision and density are means over each generator's own images, which have no partner. The balls of
`harness.manifold` are taken as given, as in the table of each generator alone.
"""

from collections.abc import Iterator

import numpy as np

from harness.fairness.inference import contrasts
from harness.manifold import Float, manifold_terms
from harness.scores import mean_interval
from harness.set_measures import kid_difference

Difference = tuple[float, float, float]
"""The first's minus the second's, and the ends of the 95 % interval."""
PAIRED = ("recall", "coverage")


def set_differences(first: Float, second: Float, real: Float) -> Iterator[tuple[str, Difference]]:
    """The difference in each measure of sets, from finite features (n, d), as many of each."""
    found = kid_difference(first, second, real)
    yield "kid", (found.value, found.low, found.high)
    own, other = manifold_terms(real, first), manifold_terms(real, second)
    for name in own:
        yield name, paired(own[name], other[name]) if name in PAIRED else _unpaired(own[name], other[name])


def paired(first: Float, second: Float) -> Difference:
    """The difference in the mean of values of the same images."""
    known = mean_interval(first - second)
    return known["mean"], known["low"], known["high"]


def _unpaired(first: Float, second: Float) -> Difference:
    """The difference in the mean of values of other images."""
    found, _ = contrasts(np.concatenate([first, second]), np.repeat(["1", "2"], [len(first), len(second)]))
    return found.difference, found.low, found.high
