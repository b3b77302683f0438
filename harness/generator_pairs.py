"""Two generators side by side: the first's measure minus the second's, held against the same real images.

Intervals are of 95 %. Those of KID, recall and coverage are by jackknife over the images of both generators and over
the real ones, which both share; they are rather too wide. Precision and density are means over each generator's own
images, resampled apart. The balls of `harness.manifold` are taken as given, as in the table of each generator alone;
there recall and coverage allow for the real images only, which is too little for two sets of generated ones.
"""

import math
from collections.abc import Iterator

import numpy as np

from harness.fairness.inference import contrasts
from harness.manifold import Float, manifold_terms, reach_terms
from harness.scores import mean_interval
from harness.set_measures import kid_difference
from harness.statistics import jackknife

Difference = tuple[float, float, float]
"""The first's minus the second's, and the ends of the interval."""
Reach = tuple[Float, Float]
"""Terms of real images, and what the measure loses without each generated one."""


def set_differences(first: Float, second: Float, real: Float) -> Iterator[tuple[str, Difference]]:
    """The difference in each measure of sets, from finite features (n, d), as many of each."""
    found = kid_difference(first, second, real)
    yield "kid", (found.value, found.low, found.high)
    own, other = manifold_terms(real, first), manifold_terms(real, second)
    for name in ("precision", "density"):
        yield name, _unpaired(own[name], other[name])
    reached, others = reach_terms(real, first), reach_terms(real, second)
    for name in reached:
        yield name, _reach(reached[name], others[name])


def paired(first: Float, second: Float) -> Difference:
    """The difference in the mean of values of the same images."""
    known = mean_interval(first - second)
    return known["mean"], known["low"], known["high"]


def _unpaired(first: Float, second: Float) -> Difference:
    """The difference in the mean of values of other images."""
    found, _ = contrasts(np.concatenate([first, second]), np.repeat(["1", "2"], [len(first), len(second)]))
    return found.difference, found.low, found.high


def _reach(first: Reach, second: Reach) -> Difference:
    """The difference in how many real images are reached: paired, and each generator's images left out in turn."""
    terms = first[0] - second[0]
    value, variance = float(terms.mean()), float(terms.var()) / len(terms)
    half = 1.96 * math.sqrt(variance + jackknife(first[1]) + jackknife(second[1]))
    return value, value - half, value + half
