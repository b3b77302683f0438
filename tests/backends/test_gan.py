"""Feed-forward upscalers: the generators' sizes and shapes, and what the backend makes of a network's residual."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode

from backends import checkpoint
from backends.base import Batch
from backends.checkpoint import build
from backends.gan.backend import FeedForward
from backends.gan.networks import RRDBNet, SRResNet, doublings
from backends.interpolation import Bicubic
from harness.resize import to_uint8

pytestmark = pytest.mark.usefixtures("one_thread")

RNG = np.random.default_rng(0)
SIZES = {"kind": "srresnet", "channels": 4, "blocks": 1, "scale": 4}


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny SRGAN in the place of the shipped one; returns its file."""
    monkeypatch.setattr(checkpoint, "FOLDER", tmp_path)
    path = tmp_path / "srgan-16-64.safetensors"
    network = build(SIZES)
    save(path, {k: v.half() for k, v in network.state_dict().items()})
    return path


def save(path: Path, tensors: dict[str, torch.Tensor]) -> None:
    """A weights file as the training kit writes it."""
    save_file(tensors, path, {"network": json.dumps(SIZES), "std": "0.1", "low": "16", "high": "64"})


def batch(count: int) -> Batch:
    """Some images of 16 x 16 pixels, as a server hands them over."""
    images: NDArray[np.uint8] = RNG.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8)
    names = tuple(str(i) for i in range(count))
    return Batch(images, 4, names, tuple(range(count)))


def ignore(_done: int, _total: int) -> None:
    """Nobody waits for progress."""


def test_esrgan_has_the_published_size() -> None:
    """With 23 blocks the generator has the 16,697,987 parameters of the authors' RRDBNet."""
    with torch.device("meta"):
        network = RRDBNet(blocks=23)
    assert sum(p.numel() for p in network.parameters()) == 16_697_987


@pytest.mark.parametrize(("network", "cost"), [(SRResNet, 0.5679e9), (RRDBNet, 1.4608e9)])
def test_a_generator_costs_what_its_layers_add_up_to(network: type[SRResNet | RRDBNet], cost: float) -> None:
    """Multiply-adds from 16 to 64 pixels, summed by hand over the papers' layers (SRResNet-16, RRDB-6)."""
    counter = FlopCounterMode(display=False)
    with torch.device("meta"), counter:
        network()(torch.zeros(1, 3, 16, 16))
    assert counter.get_total_flops() / 2 == pytest.approx(cost, rel=1e-3)


@pytest.mark.parametrize("kind", ["srresnet", "rrdb"])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_a_generator_enlarges_by_its_scale(kind: str, scale: int) -> None:
    """Height and width grow by the scale, and an untrained network adds nothing to bicubic."""
    network = build({"kind": kind, "channels": 4, "blocks": 1, "scale": scale})
    output = network(torch.rand(2, 3, 5, 7))
    assert output.shape == (2, 3, 5 * scale, 7 * scale)
    assert not output.any()


@pytest.mark.parametrize("scale", [0, 1, 3, 6, -4])
def test_a_scale_that_is_no_power_of_two_is_refused(scale: int) -> None:
    """The generators double; what they cannot reach is said."""
    with pytest.raises(ValueError, match=f"scale {scale} is not a power of two"):
        doublings(scale)


@pytest.mark.usefixtures("shipped")
def test_an_untrained_network_gives_bicubic() -> None:
    """The output is the bicubic enlargement plus the network's residual, which starts at nothing."""
    images = batch(3)
    output = to_uint8(FeedForward("srgan-16-64", "srgan").upscale(images, ignore).astype(np.float64))
    expected = to_uint8(np.asarray(Bicubic().upscale(images, ignore), dtype=np.float64))
    assert np.abs(output.astype(int) - expected.astype(int)).max() <= 1
    assert (output != expected).mean() < 1e-3


def test_the_residual_is_scaled_by_its_deviation(shipped: Path) -> None:
    """A network that answers 1 everywhere lifts the image by the stored deviation, 0.1 of the range -1 to 1."""
    images = batch(1)
    before = FeedForward("srgan-16-64", "srgan").upscale(images, ignore)
    state = build(SIZES).state_dict()
    state["exit.bias"] += 1
    save(shipped, state)
    lifted = FeedForward("srgan-16-64", "srgan").upscale(images, ignore)
    np.testing.assert_allclose(lifted - before, 0.1 * 127.5, atol=1e-3)


def test_weights_of_another_network_change_the_digest(shipped: Path) -> None:
    """The digest is that of the code and of this very file."""
    before = FeedForward("srgan-16-64", "srgan").description.digest
    state = build(SIZES).state_dict()
    state["exit.bias"] += 1
    save(shipped, state)
    assert FeedForward("srgan-16-64", "srgan").description.digest != before
