"""GPI, precision and recall: unbiased on real photos, agreement with independent code, chance is no gap."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch_fidelity.metric_prc import prc_features_to_metric

from harness.datasets import open_dataset
from harness.degrade import make_target
from harness.fairness.perceptual import ENOUGH, covered, gpi_gap, group_measures
from harness.networks import open_network
from harness.set_measures import kid, kid_paired


def jpeg(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The image after JPEG at quality 50."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=50)
    return np.asarray(Image.open(buffer))


def test_pairing_is_allowed_for_on_photos(data_root: Path) -> None:
    """On attribute features of faces and their JPEG copies the paired KID errs ten times less than the plain one.

    The truth is the unbiased KID of photos and copies of other photos.
    """
    dataset = open_dataset(f"utkface:{data_root / 'utkface'}#validation")
    photos = np.stack([make_target(dataset.image(record), 64) for record in dataset.records[:200]])
    network = open_network("attributes")
    x, y = network.features(photos), network.features(np.stack([jpeg(photo) for photo in photos]))
    rng = np.random.default_rng(0)
    orders = [rng.permutation(200) for _ in range(100)]
    truth = np.mean([kid(x[order[:100]], y[order[100:]]).value for order in orders])
    plain, paired = (np.mean([f(x[o[:50]], y[o[:50]]).value for o in orders]) for f in (kid, kid_paired))
    assert abs(paired - truth) * 10 < abs(plain - truth)


def test_precision_and_recall_are_those_of_independent_code() -> None:
    """They equal torch-fidelity's for sets of the same and of different spread."""
    rng = np.random.default_rng(1)
    outputs, photos = rng.normal(size=(250, 4)), rng.normal(0.5, 0.7, size=(230, 4))
    tensors = torch.from_numpy(outputs), torch.from_numpy(photos)
    theirs = prc_features_to_metric(*tensors, prc_neighborhood=3, verbose=False)
    assert covered(outputs, photos).mean() == pytest.approx(theirs["precision"], abs=1e-6)
    assert covered(photos, outputs).mean() == pytest.approx(theirs["recall"], abs=1e-6)


def test_each_group_is_measured_by_itself() -> None:
    """Shifted outputs of one group raise its GPI and lower its recall; identical ones are at 0, 1 and 1."""
    rng = np.random.default_rng(2)
    photos = rng.normal(size=(2 * ENOUGH, 6))
    groups = ["a", "b"] * ENOUGH
    outputs = np.where(np.array(groups)[:, None] == "b", photos + 1.5, photos)
    table = group_measures(outputs, photos, groups=groups).set_index(["group", "measure"])
    assert list(table["value"]["a"]) == [0, 1, 1]
    assert table["low"]["b", "gpi"] > 0
    assert table["high"]["b", "recall"] < 1


def test_small_groups_are_insufficient() -> None:
    """A group of 199 has no measure, says so with its n, and leaves the gap to the others."""
    rng = np.random.default_rng(3)
    photos = rng.normal(size=(3 * ENOUGH - 1, 4))
    groups = ["a"] * ENOUGH + ["b"] * ENOUGH + ["c"] * (ENOUGH - 1)
    outputs = photos + rng.normal(0, 0.1, size=photos.shape)
    table = group_measures(outputs, photos, groups=groups).set_index("group")
    assert set(table["status"]["c"]) == {"insufficient"}
    assert table["value"]["c"].isna().all()
    with_c = gpi_gap(outputs, photos, groups=groups, permutations=20)
    without = gpi_gap(outputs[:400], photos[:400], groups=groups[:400], permutations=20)
    assert with_c == without
    assert math.isnan(gpi_gap(outputs[:200], photos[:200], groups=groups[:200]).observed)


def test_the_gap_is_that_of_the_groups() -> None:
    """The observed gap is the largest difference of the groups' GPI, and a planted one is told from chance."""
    rng = np.random.default_rng(4)
    photos = rng.normal(size=(600, 5))
    groups = np.repeat(["a", "b", "c"], ENOUGH)
    outputs = photos + np.where(groups[:, None] == "b", 0.5, 0.0)
    table = group_measures(outputs, photos, groups=groups).query("measure == 'gpi'")["value"]
    gap = gpi_gap(outputs, photos, groups=groups, permutations=200)
    assert gap.observed == pytest.approx(table.max() - table.min())
    assert gap.p_value < 0.01
    assert gap.null_mean < gap.null_p95 < gap.observed


def test_shuffled_groups_have_no_gap() -> None:
    """Groups of chance are told apart at 5 % in 2 to 8 % of 200 trials."""
    rng = np.random.default_rng(5)
    groups = np.repeat(["a", "b"], ENOUGH)
    rejected = []
    for _ in range(200):
        photos = rng.normal(size=(400, 4))
        outputs = 0.8 * photos + rng.normal(0, 0.3, size=photos.shape)
        rejected.append(gpi_gap(outputs, photos, groups=groups, permutations=99).p_value <= 0.05)
    assert 0.02 <= np.mean(rejected) <= 0.08
