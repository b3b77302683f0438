"""The key of a cached output is fixed: if it changes, outputs of earlier runs are no longer found."""

from typing import Any

import numpy as np
import pytest

from harness import store

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
CHANGED = PIXELS.copy()
CHANGED[0, 0, 0] += 1
GIVEN: dict[str, Any] = {
    "digest": "ab" * 32,
    "image": PIXELS,
    "scale": 4,
    "seed": 7,
    "options": {"steps": 8, "sampler": "ddim"},
}
KEY = "cc2e06196c6a65ac7b1c636f439c2f5a"


def test_the_key_is_the_one_of_schema_1() -> None:
    """Fixed inputs give the key that the first release wrote, in whatever order the options come."""
    assert store.SCHEMA == 1
    assert store.cache_key(**GIVEN) == KEY
    assert store.cache_key(**GIVEN | {"options": {"sampler": "ddim", "steps": 8}}) == KEY


@pytest.mark.parametrize(
    "change",
    [
        {"digest": "ab" * 31 + "ac"},
        {"image": CHANGED},
        {"image": PIXELS.reshape(3, 2, 3)},
        {"scale": 2},
        {"seed": 8},
        {"options": {"steps": 9, "sampler": "ddim"}},
        {"options": {"steps": 8}},
        {"options": {"steps": "8", "sampler": "ddim"}},
        {"options": {"steps": 8.0, "sampler": "ddim"}},
    ],
    ids=lambda change: next(iter(change)),
)
def test_every_ingredient_changes_the_key(change: dict[str, Any]) -> None:
    """Code and weights, pixels, shape, scale, seed and each option, with its type, belong to the key."""
    assert store.cache_key(**GIVEN | change) != KEY


def test_another_schema_has_other_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new row and key format does not find the outputs of the old one."""
    monkeypatch.setattr(store, "SCHEMA", 2)
    assert store.cache_key(**GIVEN) != KEY
