"""Whether a map of attribution says what an upscaler looks at: deletion and insertion, against maps that know nothing.

Deletion takes the input's pixels away, those that the map calls important first; insertion puts them back. A pixel that
is away has the blurred input's value. A good map makes the window's output change soon, and come back soon
(Petsiuk et al. 2018, RISE, section 4.3; for upscalers with the window's error in the place of a class score).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.attribution import Case, Float, Upscale, answers, loss
from harness.fairness.inference import LEVEL, holm
from harness.statistics import INSUFFICIENT, bootstrap_interval

SHARES = tuple(2.0**power for power in range(-6, 1))
"""Shares of the pixels at each step: they double, since a small window comes from a small part of the input."""
FAITHFUL, NOT_FAITHFUL = "faithful", "not faithful"


@dataclass(frozen=True)
class Areas:
    """Areas under the curves of deletion (a good map's is small) and insertion (large).

    The curves are of 1 - e / e_b over the steps of `SHARES`, with e the window's squared error against the output of
    the whole input, and e_b that of the input blurred all over: 1 is nothing changed, 0 everything. NaN where the blur
    changes nothing.
    """

    deletion: float
    insertion: float

    @property
    def score(self) -> float:
        """Insertion less deletion: the more, the better."""
        return self.insertion - self.deletion


def areas(upscale: Upscale, case: Case, attribution: NDArray[np.floating]) -> Areas:
    """The areas of a map (h, w), whose size counts and not its sign; equal values are ordered at random."""
    place = _places(case, np.abs(attribution))
    first = [(place < share)[..., None] for share in SHARES]
    deleted = [np.where(chosen, case.substrate, case.image) for chosen in first]
    inserted = [np.where(chosen, case.image, case.substrate) for chosen in first[:-1]]
    errors = loss(answers(upscale, case, np.stack([*deleted, *inserted])), case.window.of(case.output))
    blur = errors[len(deleted) - 1]
    if not blur:
        return Areas(np.nan, np.nan)
    deletion, insertion = [0, *errors[: len(deleted)]], [blur, *errors[len(deleted) :], 0]
    return Areas(_area(1 - np.array(deletion) / blur), _area(1 - np.array(insertion) / blur))


def _places(case: Case, importance: NDArray[np.floating]) -> Float:
    """For each pixel the share of pixels that are more important."""
    flat = importance.ravel()
    mixed = case.rng("ties").permutation(flat.size)
    order = mixed[np.argsort(-flat[mixed], kind="stable")]
    places = np.empty(flat.size)
    places[order] = np.arange(flat.size) / flat.size
    return places.reshape(importance.shape)


def _area(curve: Float) -> float:
    return float(np.trapezoid(curve, dx=1 / (len(curve) - 1)))


@dataclass(frozen=True)
class Gain:
    """By how much a map's scores exceed a rival's on the same images: mean, 95 % interval, Holm-adjusted p."""

    mean: float
    low: float
    high: float
    p_value: float


def gains(scores: Float, rivals: Sequence[Float]) -> list[Gain]:
    """The gain over each rival; p-values are of Wilcoxon's signed-rank test that the map is no better, one-sided.

    Holm adjusts them over the rivals. Scores are finite, one an image; NaN for fewer than two images.
    """
    differences = [scores - rival for rival in rivals]
    p_values = holm(np.array([_no_better(difference) for difference in differences]))
    return [
        Gain(float(difference.mean()) if len(difference) else np.nan, *bootstrap_interval(difference), float(p))
        for difference, p in zip(differences, p_values, strict=True)
    ]


def _no_better(difference: Float) -> float:
    from scipy.stats import wilcoxon

    if len(difference) < 2:
        return np.nan
    return float(wilcoxon(difference, alternative="greater").pvalue) if difference.any() else 1.0


def verdict(found: Sequence[Gain], n: int) -> str:
    """Whether a map may be called faithful: it beats every rival; too few images say nothing."""
    if n < INSUFFICIENT:
        return "insufficient"
    return FAITHFUL if all(gain.p_value < LEVEL for gain in found) else NOT_FAITHFUL
