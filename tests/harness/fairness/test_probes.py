"""The effect of one cue: planted ones are found, none is made up, and the base portrait is the unit."""

import math

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from harness.fairness import probes
from harness.fairness.probes import GAP, TREND, probe_effects

LEVELS = [f"monk {level:02d}" for level in range(1, 11)]


def series(values: NDArray[np.float64]) -> pd.DataFrame:
    """The long table of (bases, levels) values."""
    bases = [f"portrait-{i:03d}" for i in range(len(values))]
    levels = LEVELS * len(values)
    return pd.DataFrame({"base": np.repeat(bases, len(LEVELS)), "level": levels, "value": values.ravel()})


def p_values(values: NDArray[np.float64]) -> dict[str, float]:
    """The p-values of the trend and of the gap."""
    effects = probe_effects(series(values))
    found = dict(zip(effects["term"], effects["p_value"].to_numpy(float), strict=True))
    return {term: found[term] for term in (TREND, GAP)}


def noise(bases: int, seed: int) -> NDArray[np.float64]:
    """Faces of very different difficulty, with unit noise within each."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(bases, 10)) + rng.normal(scale=5, size=(bases, 1))


def test_an_error_that_grows_with_the_tone_is_found() -> None:
    """A slope of a tenth of a standard deviation per tone is found with its sign and size, at the right levels."""
    effects = probe_effects(series(noise(60, 1) + 0.1 * np.arange(10))).set_index("term")
    estimate, low, high, p_value, null_mean, null_p95 = effects[list(effects)[:6]].to_numpy(float).T
    trend, gap = len(LEVELS), len(LEVELS) + 1
    assert list(effects.index) == [*LEVELS, TREND, GAP]
    assert 0 < low[trend] < 0.1 < high[trend]
    assert p_value[trend] < 0.001
    assert estimate[gap] > null_p95[gap] > null_mean[gap] > 0
    assert high[0] < 0 < low[9]
    assert estimate[:10].sum() == pytest.approx(0, abs=1e-9)


def test_contrasts_are_to_the_reference_level_where_one_is_named() -> None:
    """The reference differs from itself by nothing, another level by their paired mean difference."""
    values = noise(40, 2)
    effects = probe_effects(series(values), reference="monk 03").set_index("term")
    assert not effects[["estimate", "low", "high"]].to_numpy(float)[2].any()
    assert effects.loc["monk 07", "estimate"] == pytest.approx((values[:, 6] - values[:, 2]).mean())


def test_chance_is_not_called_an_effect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 300 series without an effect, either test finds one at the nominal 5 % in 3 to 7 %."""
    monkeypatch.setattr(probes, "REPLICATES", 200)
    found = [p_values(noise(30, seed)) for seed in range(300)]
    for term in (TREND, GAP):
        assert 0.03 <= np.mean([p[term] < 0.05 for p in found]) <= 0.07


def test_faces_that_react_in_opposite_ways_are_no_trend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each face has a slope of its own and their mean is 0, a trend is found in at most 10 % of 100 samples."""
    monkeypatch.setattr(probes, "REPLICATES", 200)
    rng = np.random.default_rng(3)
    found = 0
    for seed in range(100):
        values = noise(30, seed) + rng.normal(size=(30, 1)) * np.arange(10)
        found += p_values(values)[TREND] < 0.05
    assert found / 100 <= 0.1


def test_incomplete_series_are_left_out_and_counted() -> None:
    """A base without a level and a base with an infinite value are dropped; the others give what they give alone."""
    frame = series(noise(42, 4))
    frame.loc[frame["base"] == "portrait-041", "value"] = math.inf
    holes = frame.drop(index=frame.index[(frame["base"] == "portrait-040") & (frame["level"] == "monk 05")])
    effects = probe_effects(holes)
    assert effects[["bases", "dropped"]].drop_duplicates().to_numpy().tolist() == [[40, 2]]
    whole = frame[frame["base"] < "portrait-040"]
    assert effects.drop(columns="dropped").equals(probe_effects(whole).drop(columns="dropped"))


def test_few_bases_are_insufficient() -> None:
    """Under 30 bases the status says so; with one base or none there are no figures."""
    assert set(probe_effects(series(noise(29, 5)))["status"]) == {"insufficient"}
    assert set(probe_effects(series(noise(30, 5)))["status"]) == {"ok"}
    alone = probe_effects(series(noise(1, 5)))
    assert alone["estimate"].isna().all()
    assert list(alone["term"]) == [*LEVELS, TREND, GAP]


def test_a_table_that_is_no_series_is_refused() -> None:
    """Two values at one level, one level only, and an unknown reference are named."""
    frame = series(noise(30, 6))
    with pytest.raises(ValueError, match="two values at one level"):
        probe_effects(pd.concat([frame, frame]))
    with pytest.raises(ValueError, match="1 levels"):
        probe_effects(frame[frame["level"] == "monk 01"])
    with pytest.raises(ValueError, match="monk 11"):
        probe_effects(frame, reference="monk 11")
