"""Deletion and insertion: a planted truth passes as faithful, nothing else does."""

import numpy as np
import pytest

from harness.attribution import Case, Float, Pixels, Upscale, edge_map, random_map
from harness.faithfulness import Areas, areas, gains, verdict
from harness.resize import to_uint8

SIDE = 16


def upscaler(truth: Float) -> Upscale:
    """An upscaler whose whole output is the mean of the input weighted by a map (h, w)."""
    weight = truth / truth.sum()

    def upscale(images: Pixels) -> Pixels:
        means = np.einsum("nijc,ij->nc", images, weight)
        return np.broadcast_to(to_uint8(means)[:, None, None], (len(images), 64, 64, 3))

    return upscale


def planted(seed: int) -> tuple[Case, Upscale, Float]:
    """A noisy picture, an upscaler that looks at a few pixels of it, and the map of them."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (SIDE, SIDE, 3), dtype=np.uint8)
    truth = np.zeros((SIDE, SIDE))
    truth[tuple(rng.integers(0, SIDE - 2, 2)[:, None] + np.arange(2)[:, None].T)] = [4.0, 2.0]
    upscale = upscaler(truth)
    output = upscale(image[None])[0]
    return Case(image, output, output, seed), upscale, truth


def scores_of(count: int) -> dict[str, Float]:
    """Scores of the truth, of the truth shuffled and of both rivals, on so many pictures."""
    rows = []
    for seed in range(count):
        case, upscale, truth = planted(seed)
        shuffled = np.random.default_rng(seed + 1000).permuted(truth.ravel()).reshape(truth.shape)
        maps = {"truth": truth, "shuffled": shuffled, "random": random_map(case), "edge": edge_map(case)}
        rows.append({name: areas(upscale, case, found).score for name, found in maps.items()})
    return {name: np.array([row[name] for row in rows]) for name in rows[0]}


def test_the_truth_is_faithful_and_a_shuffled_map_is_not() -> None:
    """The map of what a planted upscaler looks at beats both rivals; the same values elsewhere do not."""
    scores = scores_of(32)
    rivals = [scores["random"], scores["edge"]]
    assert verdict(gains(scores["truth"], rivals), 32) == "faithful"
    assert verdict(gains(scores["shuffled"], rivals), 32) == "not faithful"
    assert verdict(gains(scores["truth"][:20], [rival[:20] for rival in rivals]), 20) == "insufficient"


def test_a_map_that_beats_one_rival_alone_is_not_faithful() -> None:
    """Both rivals have to be beaten; a map compared with itself gains nothing."""
    scores = scores_of(32)
    found = gains(scores["truth"], [scores["random"], scores["truth"]])
    assert found[0].p_value < 0.001
    assert (found[1].mean, found[1].p_value) == (0, 1)
    assert verdict(found, 32) == "not faithful"


def test_areas_of_a_single_pixel_are_known() -> None:
    """The only pixel that counts goes with the first step: both areas lie half a step from their ends."""
    case, _, _ = planted(3)
    truth = np.zeros((SIDE, SIDE))
    truth[8, 8] = 1
    upscale = upscaler(truth)
    whole = Case(case.image, upscale(case.image[None])[0], case.truth, 3)
    found = areas(upscale, whole, truth)
    assert (found.deletion, found.insertion) == pytest.approx((1 / 14, 13 / 14))


def test_a_flat_input_has_no_areas() -> None:
    """Where the blur changes nothing, nothing can be said."""
    flat = np.full((SIDE, SIDE, 3), 90, np.uint8)
    case = Case(flat, np.full((64, 64, 3), 90, np.uint8), np.full((64, 64, 3), 90, np.uint8), 1)
    found = areas(upscaler(np.ones((SIDE, SIDE))), case, np.ones((SIDE, SIDE)))
    assert np.isnan([found.deletion, found.insertion, Areas(np.nan, np.nan).score]).all()
