"""Replay serves stored outputs by image id, and reproduces published scores."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from backends.base import Batch, Refused
from backends.replay import Replay
from backends.server import warm_up
from harness.datasets import open_dataset
from harness.degrade import make_target
from harness.images import decode
from harness.metrics import score


def batch(*ids: str, scale: int = 4) -> Batch:
    """A batch of black 8 x 8 images."""
    return Batch(np.zeros((len(ids), 8, 8, 3), np.uint8), scale, ids, tuple(range(len(ids))))


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Two stored outputs of 32 x 32 pixels."""
    for name, level in {"a": 10, "b": 200}.items():
        Image.new("RGB", (32, 32), (level, level, level)).save(tmp_path / f"{name}.png")
    return tmp_path


def test_outputs_come_by_id(outputs: Path) -> None:
    """The output named after the image comes back, whatever the order; a repeated image has the same one."""
    result = Replay(str(outputs)).upscale(batch("b", "a", "a#1"), lambda _done, _total: None)
    assert result[:, 0, 0, 0].tolist() == [200, 10, 10]


def test_what_is_missing_is_refused(outputs: Path) -> None:
    """An image without an output, an output of another size and a damaged one are refused by name."""
    replay = Replay(str(outputs))
    for wrong in (batch("c"), batch("a", scale=2)):
        with pytest.raises(Refused, match=r"'[ac]'"):
            replay.upscale(wrong, lambda _done, _total: None)
    (outputs / "a.png").write_bytes(b"not a picture")
    with pytest.raises(Refused, match=r"^a"):
        replay.upscale(batch("a"), lambda _done, _total: None)


def test_the_digest_follows_the_outputs(outputs: Path) -> None:
    """Another pixel in an output is another digest: a cache cannot confuse two sets."""
    before = Replay(str(outputs)).description.digest
    assert Replay(str(outputs)).description.digest == before
    Image.new("RGB", (32, 32)).save(outputs / "a.png")
    assert Replay(str(outputs)).description.digest != before


def test_nothing_to_serve_is_said(tmp_path: Path) -> None:
    """An empty folder and a file that is no parquet are refused with a sentence."""
    with pytest.raises(ValueError, match="no output images"):
        Replay(str(tmp_path))
    (tmp_path / "x.parquet").write_text("x")
    with pytest.raises(ValueError, match="not a parquet file"):
        Replay(str(tmp_path / "x.parquet"))


def test_two_outputs_of_one_name_are_refused(tmp_path: Path) -> None:
    """Two files, or two rows, that would answer for the same image are refused with their name."""
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        Image.new("RGB", (32, 32)).save(tmp_path / folder / "a.png")
    with pytest.raises(ValueError, match="two outputs are named 'a'"):
        Replay(str(tmp_path))
    data = (tmp_path / "one" / "a.png").read_bytes()
    rows = pd.DataFrame({"image": [{"bytes": data, "path": path} for path in ("x/a.png", "y/a.webp")]})
    rows.to_parquet(tmp_path / "rows.parquet")
    with pytest.raises(ValueError, match="two outputs are named 'a'"):
        Replay(str(tmp_path / "rows.parquet"))


def test_no_image_is_mistaken_for_the_warm_up(outputs: Path) -> None:
    """The server's warm-up passes, and an image called warm-up has its own output or none."""
    replay = Replay(str(outputs))
    warm_up(replay)
    with pytest.raises(Refused, match="'warm-up'"):
        replay.upscale(batch("warm-up"), lambda _done, _total: None)
    Image.new("RGB", (32, 32), (7, 7, 7)).save(outputs / "warm-up.png")
    result = Replay(str(outputs)).upscale(batch("warm-up"), lambda _done, _total: None)
    assert result.min() == result.max() == 7


def test_published_lpips_is_reproduced(data_root: Path) -> None:
    """Our LPIPS of published outputs, against the authors' bilinear target, correlates above .999 with theirs."""
    folder = data_root / "upsampled_published"
    theirs = pd.read_csv(folder / "psp-fairface.csv")
    names = [Path(file).stem for file in theirs["file"]]
    assert len(theirs) == len(names) == 1400
    replay = Replay(str(folder / "psp-fairface.parquet"))
    (shard,) = sorted((data_root / "fairface_test").glob("*.parquet"))
    dataset = open_dataset(f"parquet:{shard}")
    chosen = dataset.records[::14]
    targets = np.stack([make_target(dataset.image(record), 128, "bilinear") for record in chosen])
    stored = np.stack([decode(replay.stored[record.id](), name=record.id) for record in chosen])
    ours = pd.Series(score("lpips_alex", stored, targets, targets, 1), index=[record.id for record in chosen])
    published = pd.Series(theirs["lpips"].to_numpy(float), index=names)[ours.index]
    assert np.corrcoef(ours, published)[0, 1] > 0.999
