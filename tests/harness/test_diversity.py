"""Diversity: the mean over pairs of samples, for stochastic backends alone."""

from itertools import combinations

import numpy as np
import pandas as pd
import pytest

from harness.datasets import open_dataset
from harness.diversity import SAMPLE_LPIPS, best_of, pairwise_lpips
from harness.errors import WeightsError
from harness.metrics import score
from harness.plan import CLEAN, plan
from harness.suite import parse_suite

SAMPLES = np.random.default_rng(5).integers(0, 256, (4, 32, 40, 3), dtype=np.uint8)
SUITE = """name: small
title: small
low: 16
high: 64
metrics: [lr_mse]
diversity: {images: 6, samples: 3}
"""


def test_diversity_is_the_mean_over_pairs() -> None:
    """Each pair of samples counts once; equal samples differ by nothing, and small ones cannot be measured."""
    try:
        pairs = [score("lpips_alex", a[None], b[None], b[None], 1)[0] for a, b in combinations(SAMPLES, 2)]
    except WeightsError as error:
        pytest.skip(str(error))
    assert pairwise_lpips(SAMPLES) == pytest.approx(np.mean(pairs), rel=1e-5)
    assert pairwise_lpips(SAMPLES[[0, 0, 0]]) == pytest.approx(0, abs=1e-9)
    assert np.isnan(pairwise_lpips(SAMPLES[:, :20]))


def test_further_samples_are_steps_of_their_own() -> None:
    """After the outputs that are scored come the further samples of a subset, on clean input and without metrics."""
    dataset = open_dataset("synthetic")
    first, *more = plan(parse_suite(SUITE, "x"), dataset)
    assert (len(first.images), first.sample) == (len(dataset.records), 0)
    assert [(step.condition, step.metrics, step.sample) for step in more] == [(CLEAN, (), 1), (CLEAN, (), 2)]
    assert len(set(more[0].images)) == 6
    assert more[0].images == more[1].images


def test_the_best_of_k_never_rises() -> None:
    """It is the mean over images of the smallest LPIPS among the first k; images without all outputs are left out."""
    values = {"a": (0.4, 0.2, 0.3), "b": (0.1, 0.5, 0.05), "c": (0.1, 0.1)}
    rows = [
        {"backend": "sr3", "metric": SAMPLE_LPIPS, "image": image, "sample": sample, "value": value}
        for image, each in values.items()
        for sample, value in enumerate(each)
    ]
    found = list(best_of(pd.DataFrame(rows), ["gan", "sr3"]))
    assert [(row["backend"], row["k"], row["n"]) for row in found] == [("sr3", k, 2) for k in (1, 2, 3)]
    assert [row["value"] for row in found] == pytest.approx([0.25, 0.15, 0.125])
    assert all(row["low"] <= row["value"] <= row["high"] for row in found)
