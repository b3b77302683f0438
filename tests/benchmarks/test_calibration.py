"""The benchmarks of the audit's statistics measure what they say."""

import numpy as np
import pandas as pd
import pytest

from benchmarks import calibration, power
from benchmarks.enlarged import Enlarged, enlarge
from harness.datasets import limit, open_dataset


@pytest.fixture(scope="module")
def portraits() -> Enlarged:
    """Twenty portraits of the harness, enlarged."""
    return enlarge(limit(open_dataset("synthetic"), 20))


def test_every_test_of_the_audit_is_tried_on_shuffled_labels() -> None:
    """Each test gets a share between 0 and 1, and photos of small or unknown groups are left out before."""
    rng = np.random.default_rng(1)
    labels = pd.DataFrame({"race": ["asian", "black", "rare"] + ["asian", "black"] * 150, "age": "old"})
    labels["gender"] = ["m", "unknown", "m"] + ["f", "m", "m", "f"] * 75
    values, kept = calibration.judged(rng.normal(size=303), labels[calibration.ATTRIBUTES])
    assert len(values) == len(kept) == 301
    assert set(kept["race"]) == {"asian", "black"}
    shares = calibration.shares(values, kept, 3)
    assert len(shares) == 12
    assert all(0 <= share <= 1 for share in shares.values())


def test_the_published_test_is_off_and_ours_is_not() -> None:
    """With equal rates of .05 it nearly always finds bias, with rates of .9 never; ours does neither."""
    rows = calibration.beside_published(100)
    assert rows["RDP, rate 0.05"][0] > 0.9
    assert rows["RDP, rate 0.9"][0] == 0
    assert max(ours for _, ours in rows.values()) < 0.15


def test_the_blur_takes_the_psnr_that_was_asked_for(portraits: Enlarged) -> None:
    """The blur that is found costs 1 dB on average, within a twentieth."""
    blurred = power.blurred(portraits.outputs, power.blur_for(portraits, 1.0))
    assert np.mean(portraits.psnr() - portraits.psnr(blurred)) == pytest.approx(1, abs=0.05)


def test_a_bias_is_named_only_with_its_direction() -> None:
    """A group that is clearly better is found, and never counts as rightly named."""
    clean = np.random.default_rng(2).normal(size=1000)
    for shift, right in ((-1.0, True), (1.0, False)):
        gap, contrast, named = next(iter(power.runs(clean, clean + shift)))
        assert gap
        assert contrast
        assert named is right
