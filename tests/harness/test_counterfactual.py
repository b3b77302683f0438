"""Counterfactual portraits: the edit does what it says, and nothing else; the datasets made of them."""

from collections import Counter

import numpy as np
import pytest
from numpy.typing import NDArray

from harness.cielab import to_lab
from harness.counterfactual import LEVELS, check_edit, face_region, move, series_check, skin_mask, skin_tone
from harness.datasets import limit, open_dataset
from harness.degrade import seed_of
from harness.errors import DatasetError
from harness.networks import open_network

Portraits = dict[str, NDArray[np.uint8]]


@pytest.fixture(scope="module")
def portraits() -> Portraits:
    """The unedited portraits of the counterfactual datasets, by id."""
    dataset = open_dataset("counterfactual:light")
    return {str(r.identity): dataset.image(r) for r in dataset.records if r.labels["light"] == "light 01"}


def test_nothing_outside_the_mask_changes(portraits: Portraits) -> None:
    """At each level of both cues, pixels where the mask is 0 keep their bytes, and there are such pixels."""
    for image in list(portraits.values())[::10]:
        for cue, levels in LEVELS.items():
            mask = skin_mask(image) if cue == "tone" else face_region(image.shape)
            assert (mask == 0).any()
            for level in range(1, levels + 1):
                assert (move(image, cue, level) == image)[mask == 0].all()


def test_each_tone_is_reached(portraits: Portraits) -> None:
    """The skin's median comes within 2 of the Monk tone's swatch by CIEDE2000, whatever tone it had."""
    reached = [
        check_edit(image, move(image, "tone", monk), skin_mask(image), monk)["delta_e"]
        for image in list(portraits.values())[::3]
        for monk in (1, 3, 6, 8, 10)
    ]
    assert max(reached) < 2
    assert np.median(reached) < 0.6


def test_tones_come_in_order(portraits: Portraits) -> None:
    """The skin darkens from tone to tone, but for tone 3, which on the Monk scale is lighter than tone 2."""
    for image in list(portraits.values())[::15]:
        mask = skin_mask(image)
        lightness = [skin_tone(move(image, "tone", monk), mask)[0] for monk in range(1, 11)]
        assert np.argsort(lightness)[::-1].tolist() == [0, 2, 1, *range(3, 10)]


def test_dark_skin_stays_skin(portraits: Portraits) -> None:
    """Of the pixels that are skin in a portrait, at least 95 % still are when it has been moved to Monk tone 10."""
    for image in list(portraits.values())[::3]:
        before, after = (skin_mask(i) > 0.5 for i in (image, move(image, "tone", 10)))
        assert after[before].mean() > 0.95
        assert before.mean() > 0.3


def test_the_mask_does_not_depend_on_the_race(portraits: Portraits) -> None:
    """The median share of the picture that is skin differs by less than a quarter between black and white faces."""
    race = {r.identity: r.labels["race"] for r in open_dataset("counterfactual:light").records}
    share = {
        wanted: np.median([skin_mask(image).mean() for name, image in portraits.items() if race[name] == wanted])
        for wanted in ("black", "white")
    }
    assert abs(share["black"] / share["white"] - 1) < 0.25


def test_light_falls_from_the_left(portraits: Portraits) -> None:
    """Level 1 is the portrait itself; each further level lightens the left of the face and darkens its right."""
    image = next(iter(portraits.values()))
    assert (move(image, "light", 1) == image).all()
    sides = []
    for level in range(1, 6):
        lightness = to_lab(move(image, "light", level))[..., 0]
        sides.append((lightness[:, 10:24].mean(), lightness[:, 42:56].mean()))
    left, right = np.diff(sides, axis=0).T
    assert (left > 1).all()
    assert (right < -1).all()


def test_the_check_sees_a_bad_edit(portraits: Portraits) -> None:
    """A spill outside the mask, a blurred face and a tone that is not reached show in the figures."""
    image = next(iter(portraits.values()))
    mask = skin_mask(image)
    good = check_edit(image, move(image, "tone", 6), mask, 6)
    assert good["outside"] == 0
    assert good["structure"] > 0.9
    spilt = image.copy()
    spilt[mask == 0] ^= 8
    flat = np.repeat(image.mean(axis=1, keepdims=True), 64, axis=1).astype(np.uint8)
    assert check_edit(image, spilt, mask)["outside"] == 8
    assert check_edit(image, flat, mask)["structure"] < 0.5
    assert check_edit(image, image, mask, 10)["delta_e"] > 20
    assert check_edit(image, np.full_like(image, 255), mask)["clipped"] > 0.9


def test_a_light_that_did_not_change_changes_no_prediction(portraits: Portraits) -> None:
    """The attribute network gives a portrait and its level 1 the same labels and age; all levels are listed."""
    chosen = dict(list(portraits.items())[:2])
    table = series_check(chosen, "light", open_network("attributes"))
    assert table.groupby("base")["level"].apply(list).tolist() == [[1, 2, 3, 4, 5]] * 2
    same = table[table["level"] == 1]
    assert not same[["race_flip", "gender_flip"]].to_numpy().any()
    assert same["age_shift"].abs().max() < 0.01


def test_the_dataset_is_balanced_and_says_what_it_is() -> None:
    """Six portraits of each race and gender at each of ten tones, with their portrait as identity and a warning."""
    dataset = open_dataset("counterfactual:tone")
    cells = Counter((r.labels["race"], r.labels["gender"], r.labels["tone"]) for r in dataset.records)
    assert len(cells) == 100
    assert set(cells.values()) == {6}
    assert dataset.attributes == ("race", "gender", "tone")
    assert dataset.demonstration
    assert "not independent" in dataset.notes[0]
    record = dataset.records[0]
    assert record.id == f"{record.identity}.tone-01"
    assert record.labels["tone"] == "monk 01"


def test_an_edit_is_the_same_bytes_each_time() -> None:
    """Two openings of the dataset read the same file contents."""
    first, second = (open_dataset("counterfactual:tone").records[::100] for _ in range(2))
    assert [r.read() for r in first] == [r.read() for r in second]


def test_a_limit_keeps_series_whole() -> None:
    """A limit of 45 images gives four whole portraits, nested in those of 120; one smaller than a series gives one."""
    dataset = open_dataset("counterfactual:tone")
    few, more = (limit(dataset, n) for n in (45, 120))
    assert set(Counter(r.identity for r in few.records).values()) == {10}
    assert len(few.records) == 40
    assert {r.id for r in few.records} < {r.id for r in more.records}
    assert len(limit(dataset, 3).records) == 10
    assert "40 of 600 images" in few.notes[-1]


def test_the_levels_of_a_portrait_share_a_seed() -> None:
    """What is seeded is the portrait, so that chance in a backend does not look like the cue; elsewhere the image."""
    dataset = open_dataset("counterfactual:tone")
    assert len({seed_of(0, dataset.unit(r)) for r in dataset.records}) == 60
    plain = open_dataset("synthetic")
    assert all(plain.unit(r) == r.id for r in plain.records)


def test_an_unknown_cue_is_refused() -> None:
    """A cue that there is no edit for is refused with those that there are."""
    with pytest.raises(DatasetError, match="counterfactual:tone or counterfactual:light"):
        open_dataset("counterfactual:age")
