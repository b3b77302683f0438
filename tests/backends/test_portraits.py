"""The command that makes the portraits: nothing is written that copies a training photo, errors are one line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from backends.training import portraits
from harness.datasets import LICENCES

RNG = np.random.default_rng(0)
PHOTOS, HELD = (RNG.integers(0, 256, (320, 64, 64, 3), dtype=np.uint8) for _ in range(2))
OTHERS = 255 * RNG.integers(0, 2, PHOTOS.shape, dtype=np.uint8)  # pure black and white: far from both
OUTPUTS = [Path("harness/data/portraits.parquet"), Path("harness/data/portraits.md")]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[NDArray[np.uint8]], int]:
    """Runs the command in an empty folder with a generator that draws these portraits."""
    monkeypatch.chdir(tmp_path)
    weights = Path("backends/weights/portraits.safetensors")
    for parent in (weights.parent, OUTPUTS[0].parent):
        parent.mkdir(parents=True)
    weights.touch()
    monkeypatch.setattr(portraits, "load_network", lambda *_: (None, {}))
    monkeypatch.setattr(portraits, "load_images", lambda spec, _size: PHOTOS if "train" in spec else HELD)

    def run(drawn: NDArray[np.uint8]) -> int:
        monkeypatch.setattr(portraits, "sample", lambda *_: drawn)
        return portraits.main()

    return run


def test_portraits_are_written_with_their_card(make: Callable[[NDArray[np.uint8]], int]) -> None:
    """Portraits that copy nothing are written, and the card says that the check passed."""
    assert make(OTHERS) == 0
    assert all(path.exists() for path in OUTPUTS)
    assert "photos: passed." in OUTPUTS[1].read_text()


def test_copies_are_not_written(make: Callable[[NDArray[np.uint8]], int], capsys: pytest.CaptureFixture[str]) -> None:
    """One portrait that is a training photo is enough: exit status 1, and neither the file nor its card."""
    assert make(np.concatenate([PHOTOS[:1], OTHERS[1:]])) == 1
    assert not any(path.exists() for path in OUTPUTS)
    assert '"copies": 1' in capsys.readouterr().out


def test_missing_photos_and_wrong_weights_are_one_line(
    make: Callable[[NDArray[np.uint8]], int], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """What cannot be read ends the command with exit status 2 and a sentence."""
    for name, error in {
        "load_images": FileNotFoundError("no photos"),
        "load_network": ValueError("no network"),
    }.items():

        def fail(*_: object, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(portraits, name, fail)
        assert make(OTHERS) == 2
        assert capsys.readouterr().err == f"error: {error}\n"
    assert not any(path.exists() for path in OUTPUTS)


def test_the_licence_is_that_of_the_training_data() -> None:
    """The embedded portraits are listed as research only, as their card says."""
    assert LICENCES["synthetic"].startswith("research only")
    assert "research only" in portraits.CARD
