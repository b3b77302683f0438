"""Checkpoints that spandrel knows: an ESRGAN in BasicSR's layout, described and served."""

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from backends.base import Batch
from backends.foreign.spandrel import Spandrel
from harness.contract import check
from harness.errors import Unavailable
from harness.plan import parse_backend
from harness.processes import LocalServer

architectures = pytest.importorskip("spandrel.architectures.SPAN", reason="needs the extra spandrel")
pytestmark = [
    pytest.mark.usefixtures("one_thread"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),  # of its dependencies
]

FEATURES, GROWTH = 8, 32


def basicsr(channels: int = 3) -> dict[str, Tensor]:
    """Zero weights of an RRDBNet with one block; names and shapes from BasicSR's definition.

    Source: github.com/XPixelGroup/BasicSR, basicsr/archs/rrdbnet_arch.py at 323cc143d4813648c9c1b21008d545f2be4bf811.
    """
    sizes = {"conv_first": (channels, FEATURES), "conv_last": (FEATURES, 3)}
    sizes |= dict.fromkeys(("conv_body", "conv_up1", "conv_up2", "conv_hr"), (FEATURES, FEATURES))
    for block in (1, 2, 3):
        for i in range(5):
            name = f"body.0.rdb{block}.conv{i + 1}"
            sizes[name] = (FEATURES + i * GROWTH, FEATURES if i == 4 else GROWTH)
    state: dict[str, Tensor] = {}
    for name, (c_in, c_out) in sizes.items():
        state |= {f"{name}.weight": torch.zeros(c_out, c_in, 3, 3), f"{name}.bias": torch.zeros(c_out)}
    return state


def repeating() -> dict[str, Tensor]:
    """Weights that hand the colours through: the network repeats pixels, four by four."""
    state = basicsr()
    for name in ("conv_first", "conv_up1", "conv_up2", "conv_hr", "conv_last"):
        for colour in range(3):
            state[f"{name}.weight"][colour, colour, 1, 1] = 1
    return state


NEWER = {"conv_body": "trunk_conv", "conv_up1": "upconv1", "conv_up2": "upconv2", "conv_hr": "HRconv"}
"""BasicSR's names of convolutions -> those of ESRGAN's own repository.

Source: github.com/xinntao/ESRGAN, RRDBNet_arch.py at d274b11e25f93cb8fc81b65fe40115e52c08d51b.
"""
OLDER = {"conv_first": "model.0", "conv_body": "model.1.sub.1", "conv_up1": "model.3", "conv_up2": "model.6"}
OLDER |= {"conv_hr": "model.8", "conv_last": "model.10"}
"""The same -> those of its first release; after one block the trunk's convolution has number 1.

Source: github.com/xinntao/ESRGAN, transer_RRDB_models.py at 7f37803677e2b145621027c5258dc9076ab0befa.
"""


def newer(name: str) -> str:
    """A tensor's name in BasicSR as ESRGAN's repository has it."""
    part, _, kind = name.rpartition(".")
    return f"{NEWER.get(part, part).replace('body.', 'RRDB_trunk.').replace('rdb', 'RDB')}.{kind}"


def older(name: str) -> str:
    """A tensor's name in BasicSR as ESRGAN's first release has it."""
    part, _, kind = name.rpartition(".")
    return f"{OLDER[part]}.{kind}" if part in OLDER else f"model.1.sub.{part[5:].replace('rdb', 'RDB')}.0.{kind}"


def batch(*shape: int) -> Batch:
    """A batch of one image of noise."""
    image = np.random.default_rng(0).integers(0, 256, (1, *shape, 3), dtype=np.uint8)
    return Batch(image, 4, ("a",), (0,))


def ignore(_done: int, _total: int) -> None:
    """Nobody waits for progress."""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A checkpoint as BasicSR's training writes it."""
    torch.save({"params_ema": repeating()}, tmp_path / "net_g.pth")
    return tmp_path / "net_g.pth"


def test_pixels_go_through_as_they_are(checkpoint: Path) -> None:
    """Order of colours, range and places are spandrel's: a network that repeats pixels gives repeated pixels."""
    images = batch(12, 20)
    output = Spandrel(str(checkpoint)).upscale(images, ignore)
    np.testing.assert_allclose(output[0], images.images[0].repeat(4, axis=0).repeat(4, axis=1), atol=1e-3)


@pytest.mark.parametrize("spelling", [newer, older])
@pytest.mark.parametrize("wrapped", [dict, lambda state: {"state_dict": {f"module.{k}": v for k, v in state.items()}}])
def test_the_spellings_of_esrgan_are_one_network(
    tmp_path: Path, spelling: Callable[[str], str], wrapped: Callable[[dict[str, Tensor]], object]
) -> None:
    """Checkpoints of ESRGAN's own two releases, bare and as parallel training saves them, are read as BasicSR's are."""
    torch.manual_seed(0)
    state = {name: 0.1 * torch.randn_like(tensor) for name, tensor in basicsr().items()}
    torch.save(state, tmp_path / "basicsr.pth")
    torch.save(wrapped({spelling(name): tensor for name, tensor in state.items()}), tmp_path / "esrgan.pth")
    images = batch(6, 10)
    ours, theirs = (Spandrel(str(tmp_path / f"{n}.pth")).upscale(images, ignore) for n in ("basicsr", "esrgan"))
    assert ours.std() > 1
    np.testing.assert_array_equal(theirs, ours)


def test_half_precision_is_served_where_the_architecture_has_it(checkpoint: Path) -> None:
    """In bfloat16 repeated pixels are off by its rounding alone, 1/256 of their value."""
    images, backend = batch(12, 12), Spandrel(str(checkpoint), precision="bfloat16")
    output = backend.upscale(images, ignore)
    assert backend.description.precision == "bfloat16"
    np.testing.assert_allclose(output[0], images.images[0].repeat(4, axis=0).repeat(4, axis=1), rtol=2**-7)


def test_a_network_that_reaches_into_its_convolutions_is_served(tmp_path: Path) -> None:
    """SPAN puts three convolutions' weights together as it runs; served, it gives what it gives by itself."""
    torch.manual_seed(0)
    network = architectures.SPAN(num_in_ch=3, num_out_ch=3, feature_channels=8, upscale=4).eval()
    save_file(network.state_dict(), tmp_path / "span.safetensors")
    image = np.random.default_rng(0).integers(0, 256, (12, 20, 3), dtype=np.uint8)
    with torch.inference_mode():
        alone = network(torch.from_numpy(image).permute(2, 0, 1)[None] / 255)[0].permute(1, 2, 0) * 255
    served = Spandrel(str(tmp_path / "span.safetensors")).upscale(Batch(image[None], 4, ("a",), (0,)), ignore)
    np.testing.assert_allclose(served[0], alone.clamp(0, 255), atol=1e-2)


def test_a_checkpoint_is_described(checkpoint: Path, tmp_path: Path) -> None:
    """Scale and size requirements are those of the network; what the file does not say is not made up."""
    d = Spandrel(str(checkpoint)).description
    assert (d.scales, d.multiple_of, d.family, d.batch_exact) == ((4,), 1, "other", True)
    assert d.licence.startswith("not in the file")
    assert "ESRGAN" in d.domain
    save_file(basicsr(channels=12), tmp_path / "x2.safetensors")  # reads pixels in squares of 2
    unshuffled = Spandrel(str(tmp_path / "x2.safetensors")).description
    assert unshuffled.scales == (2,)
    assert unshuffled.multiple_of % 2 == unshuffled.minimum % unshuffled.multiple_of == 0
    assert unshuffled.digest != d.digest


def test_a_served_checkpoint_keeps_the_contract(checkpoint: Path) -> None:
    """`spandrel:PATH` names it; no check of the contract kit finds anything wrong."""
    assert [r for r in check(f"spandrel:{checkpoint}") if not r.passed] == []


def test_text_of_a_backend_may_hold_a_path() -> None:
    """`NAME:PATH` is the setting `path`; an address is one as before."""
    spec = parse_backend("spandrel:models/x4.pth,name=swinir,device=cpu")
    assert (spec.name, spec.label, spec.address) == ("spandrel", "swinir", None)
    assert spec.settings == {"path": "models/x4.pth", "device": "cpu"}
    assert parse_backend("spandrel@localhost:50051").address == "localhost:50051"


def missing(state: dict[str, Tensor]) -> None:
    """Leave out one tensor."""
    del state["body.0.rdb2.conv3.weight"]


def reshaped(state: dict[str, Tensor]) -> None:
    """Give one tensor a wrong shape."""
    state["conv_body.weight"] = torch.zeros(5, FEATURES, 3, 3)


def grey(state: dict[str, Tensor]) -> None:
    """Make it a network for grey images."""
    state["conv_first.weight"], state["conv_last.weight"] = (
        torch.zeros(FEATURES, 1, 3, 3),
        torch.zeros(1, FEATURES, 3, 3),
    )
    state["conv_last.bias"] = torch.zeros(1)


def unknown(state: dict[str, Tensor]) -> None:
    """Make it something else."""
    state.clear()
    state["linear.weight"] = torch.zeros(2, 2)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (missing, "cannot build its architecture: .*rdb2.conv3|RDB2.conv3"),
        (reshaped, "cannot build its architecture: .*size mismatch"),
        (grey, "does not map an RGB image"),
        (unknown, "knows no architecture"),
    ],
)
def test_other_weights_are_refused(checkpoint: Path, change: object, message: str) -> None:
    """Weights that are missing, of another shape, for grey images or of no known architecture: one line each."""
    state = repeating()
    assert callable(change)
    change(state)
    torch.save(state, checkpoint)
    with pytest.raises(ValueError, match=rf"net_g\.pth: .*({message})") as caught:
        Spandrel(str(checkpoint))
    assert "\n" not in str(caught.value)


def test_a_server_refuses_by_one_line(tmp_path: Path) -> None:
    """What cannot be served ends the server while it starts, with the reason in the harness's error."""
    with (
        pytest.raises(Unavailable, match=r"spandrel ended while starting: error: spandrel: .* is a folder"),
        LocalServer("spandrel", tmp_path / "log", {"path": str(tmp_path)}),
    ):
        pass


def test_a_missing_library_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra, the line says how to install it."""
    monkeypatch.setitem(sys.modules, "spandrel", None)
    with pytest.raises(ValueError, match=r"pip install 'upscaler-harness\[spandrel\]'"):
        Spandrel(str(checkpoint))
