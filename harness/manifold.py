"""How well a set of generated images covers the real ones, from features: precision and recall, density and coverage.

Each real (or generated) image stands for a ball around it, out to its k-th nearest neighbour in its own set:

precision   share of the generated images in the ball of a real one: how many look real
recall      share of the real images in the ball of a generated one: how much of the real set can be generated
density     balls of real images that a generated one is in, over k, mean; may exceed 1
coverage    share of the real images whose ball holds a generated one

Precision and recall are those of Kynkaanniemi et al. 2019 (k = 3), density and coverage those of Naeem et al. 2020
(k = 5). They depend on the numbers of images: give as many real ones as generated ones, and compare with a real set of
that size. The Vendi score (Friedman and Dieng 2023) counts how many different images a set is worth.

Features are (n, d) float64 and finite.
"""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

K_PRECISION = 3
K_DENSITY = 5
BLOCK = 1024
"""Rows of a matrix of distances that are in memory at once."""
DUPLICATES = 0.01
"""The share of real images whose nearest neighbour counts as a near-duplicate."""


def _blocks(x: Float, y: Float) -> Iterator[tuple[slice, Float]]:
    """Squared distances of rows of x to all y, a block at a time; not exactly 0 where they are equal."""
    centre = y.mean(axis=0)  # what both have in common would cost digits
    x, y = x - centre, y - centre
    squares = np.square(y).sum(axis=1)
    for start in range(0, len(x), BLOCK):
        rows = slice(start, min(start + BLOCK, len(x)))
        part = x[rows]
        yield rows, np.maximum(np.square(part).sum(axis=1)[:, None] + squares - 2 * part @ y.T, 0)


def radii(x: Float, k: int) -> Float:
    """The distance of each row to its k-th nearest other row, (n,); infinite where there are not so many."""
    if len(x) <= k:
        return np.full(len(x), np.inf)
    found = np.empty(len(x))
    for rows, squared in _blocks(x, x):
        np.fill_diagonal(squared[:, rows], -1.0)  # itself comes first
        found[rows] = np.sqrt(np.partition(squared, k, axis=1)[:, k])
    return found


def nearest(x: Float, y: Float) -> Float:
    """The distance of each row of x to the nearest row of y, (n,)."""
    return np.concatenate([np.sqrt(squared.min(axis=1)) for _, squared in _blocks(x, y)])


def manifold_terms(real: Float, generated: Float) -> dict[str, Float]:
    """What each image adds: the means are precision, recall, density and coverage.

    The terms of precision and density are of the generated images, those of recall and coverage of the real ones. A
    bootstrap over terms covers which images were drawn on that side; the balls of the other side are taken as given.
    """
    wide, wider = radii(real, K_PRECISION), radii(real, K_DENSITY)
    reach = radii(generated, K_PRECISION)
    terms = {name: np.zeros(len(generated)) for name in ("precision", "density")}
    terms |= {name: np.zeros(len(real)) for name in ("recall", "coverage")}
    for rows, squared in _blocks(generated, real):
        distances = np.sqrt(squared)
        terms["precision"][rows] = (distances < wide).any(axis=1)
        terms["density"][rows] = (distances < wider).sum(axis=1) / K_DENSITY
        terms["recall"] = np.maximum(terms["recall"], (distances < reach[rows, None]).any(axis=0))
        terms["coverage"] = np.maximum(terms["coverage"], (distances < wider).any(axis=0))
    return terms


def reach_terms(real: Float, generated: Float) -> dict[str, tuple[Float, Float]]:
    """What each image does for recall and coverage: of both, the terms of the real images and those of the generated.

    The former are as in `manifold_terms`, (n,); the latter how much the measure falls without each generated image,
    (m,): the share of the real images that it alone reaches.
    """
    wider, reach = radii(real, K_DENSITY), radii(generated, K_PRECISION)
    counts = {name: np.zeros(len(real), int) for name in ("recall", "coverage")}
    places = {name: np.zeros(len(real), int) for name in counts}
    for rows, squared in _blocks(generated, real):
        distances = np.sqrt(squared)
        for name, hits in (("recall", distances < reach[rows, None]), ("coverage", distances < wider)):
            counts[name] += hits.sum(axis=0)
            places[name] += np.arange(rows.start, rows.start + len(hits)) @ hits
    alone = {name: np.bincount(places[name][counts[name] == 1], minlength=len(generated)) for name in counts}
    return {name: ((counts[name] > 0).astype(float), alone[name] / len(real)) for name in counts}


def vendi(features: Float) -> float:
    """The Vendi score: the exponential of the entropy of the eigenvalues of K / n, K the cosines between the rows.

    From 1, where all rows have one direction, to n, where they are orthogonal. There is no interval: a resample
    repeats images, and that is less diverse. NaN where a row is 0.
    """
    lengths = np.linalg.norm(features, axis=1, keepdims=True)
    if not len(features) or not lengths.all():
        return float("nan")
    x = features / lengths
    gram = x @ x.T if len(x) <= x.shape[1] else x.T @ x  # both have the eigenvalues that are not 0
    values = np.linalg.eigvalsh(gram / len(x))
    values = values[values > 0]
    return float(np.exp(-(values * np.log(values)).sum()))


def near_duplicates(x: Float, real: Float) -> NDArray[np.bool_]:
    """Whether each image of a set is as near to another of it as only the nearest `DUPLICATES` of the real ones are."""
    return radii(x, 1) <= np.quantile(radii(real, 1), DUPLICATES)


def near_copies(x: Float, real: Float, training: Float) -> NDArray[np.bool_]:
    """Whether each image is as near to one of the training set as only the nearest `DUPLICATES` of other real ones."""
    return nearest(x, training) <= np.quantile(nearest(real, training), DUPLICATES)
