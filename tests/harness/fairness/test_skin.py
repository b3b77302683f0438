"""Skin readings: shifts are those that were made, grey has no angle."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.cielab import monk_lab
from harness.datasets import open_dataset
from harness.degrade import make_target
from harness.fairness.skin import ita, regression_to_the_mean, skin_readings, skin_shift
from harness.set_measures import Float


def test_ita_of_the_monk_swatches_is_known() -> None:
    """ITA falls from 83 to -84 degrees over the ten swatches, whose b* is known as well."""
    tones = monk_lab()
    np.testing.assert_allclose(tones[:, 2], [5.4, 7.3, 14.2, 17.8, 23.1, 26.7, 20.5, 13.3, 6.0, 3.5], atol=0.06)
    np.testing.assert_allclose(ita(tones), [83.0, 80.2, 71.7, 64.7, 50.3, 10.9, -20.1, -55.4, -78.3, -84.3], atol=0.06)


def test_a_face_of_one_tone_reads_as_that_tone() -> None:
    """Each swatch is nearest to itself, by the distance to the next tone; what lies outside the patch is ignored."""
    rgb = np.array([list(bytes.fromhex(tone)) for tone in ("f6ede4", "a07e56", "292420")], np.uint8)
    faces = np.broadcast_to(rgb[:, None, None], (3, 64, 64, 3)).copy()
    faces[:, :24], faces[:, 36:], faces[:, :, :16], faces[:, :, 48:] = 0, 0, 255, 255
    readings = skin_readings(faces)
    assert list(readings["monk"]) == [1, 6, 10]
    assert list(readings["monk_margin"]) == pytest.approx([1.95, 14.01, 5.0], abs=0.02)


def test_grey_has_no_angle() -> None:
    """A black-and-white photo has lightness and no ITA, and neither has a shift to it, while the others have."""
    faces = np.full((2, 32, 32, 3), 130, np.uint8)
    faces[1] = (200, 150, 120)
    readings = skin_readings(faces)
    assert math.isnan(readings["ita"][0])
    assert readings[["a", "b"]].iloc[0].abs().max() < 1e-9
    shift = skin_shift(readings, readings.iloc[[1, 1]].reset_index(drop=True))
    assert shift["skin_dita"].isna().tolist() == [True, False]
    assert shift["skin_de"].notna().all()


def test_a_photo_against_itself_has_no_shift(data_root: Path) -> None:
    """On real faces all shifts of a photo against itself are 0; made darker, they are darker, and further on Monk."""
    dataset = open_dataset(f"utkface:{data_root / 'utkface'}#validation")
    photos = np.stack([make_target(dataset.image(record), 64) for record in dataset.records[:60]])
    readings = skin_readings(photos)
    assert (skin_shift(readings, readings).fillna(0) == 0).all(axis=None)
    darker = skin_shift(readings, skin_readings((photos * 0.6).astype(np.uint8)))
    assert (darker["skin_dl"] < 0).all()
    assert (darker["skin_dita"].dropna() < 0).mean() > 0.95
    assert darker["monk_shift"].mean() > 0.5


def test_the_shift_is_the_difference_of_the_readings() -> None:
    """skin_de is the length of (dL*, da*, db*), and monk_shift counts tones towards dark."""
    columns = ["L", "a", "b", "ita", "monk", "monk_margin"]
    photo = pd.DataFrame([[60.0, 10, 20, 26, 5, 1]], columns=columns)
    output = pd.DataFrame([[57.0, 14, 32, 12, 7, 1]], columns=columns)
    shift = skin_shift(photo, output).iloc[0]
    assert shift.tolist() == [-3, 4, 12, -14, 13, 2]


def test_regression_to_the_mean_is_found() -> None:
    """Of 200 samples whose dark faces grow lighter by 0.2 of L*, 92 % or more of the intervals hold -0.2."""
    rng = np.random.default_rng(2)

    def slope(lightness: Float) -> bool:
        shift = 10 - 0.2 * lightness + rng.normal(0, 3, len(lightness))
        estimate = regression_to_the_mean(pd.Series(shift), pd.Series(lightness))
        return estimate.low <= -0.2 <= estimate.high

    assert np.mean([slope(rng.uniform(20, 90, 50)) for _ in range(200)]) >= 0.92
    assert math.isnan(regression_to_the_mean(pd.Series([1.0] * 9), pd.Series([50.0] * 9)).value)
