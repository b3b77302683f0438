"""The settings of torch backends: what is refused in one line, what they change, and that it is said."""

import copy
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch._dynamo.utils import counters

from backends.base import Batch
from backends.device import BATCHES, Device, Packed
from backends.sr3.backend import SR3
from harness.contract import check
from harness.plan import parse_backend
from protos.values import Value

pytestmark = pytest.mark.usefixtures("one_thread")

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)


def can_compile() -> bool:
    """Whether this machine has what torch.compile needs."""
    try:
        return Device(compile="true").compiled
    except ValueError:
        return False


no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without CUDA")


def request(images: int = 2, sampler: str = "ddim") -> Batch:
    """The first test images, in four steps."""
    options: dict[str, Value] = {"steps": 4, "sampler": sampler, "schedule": 1.0}
    return Batch(PIXELS[:images], 4, ("a", "b")[:images], (1, 2)[:images], options)


def upscale(model: SR3, images: int = 2) -> NDArray[np.floating]:
    """What SR3 makes of the first test images, on the 0..255 scale."""
    return model.upscale(request(images), lambda _done, _total: None)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"device": "gpu"}, "device='gpu': choose cpu, cuda or cuda:N"),
        ({"device": "cuda:-1"}, "choose cpu, cuda or cuda:N"),
        ({"device": "cuda:64"}, "device=cuda:64: PyTorch finds [0-9no]+ CUDA devices here"),
        ({"precision": "float16"}, "precision='float16': choose float32 or bfloat16"),
        ({"compile": "yes"}, "compile='yes': choose true or false"),
    ],
)
def test_settings_that_cannot_be_are_one_sentence(settings: dict[str, str], words: str) -> None:
    """A wrong value names the setting and what it may be."""
    with pytest.raises(ValueError, match=words):
        Device(**settings)


@no_gpu
@pytest.mark.parametrize("device", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there_is_one_line(device: str) -> None:
    """A `cuda` setting on a machine without CUDA ends the command with one sentence and no traceback."""
    command = [sys.executable, "-m", "harness", "backends", "serve", f"sr3,device={device}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 2
    assert f"device={device}: PyTorch finds no CUDA devices here" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_compiler_that_is_not_there_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compilation without a C++ compiler is refused at the start, not in the middle of torch.compile."""
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(ValueError, match=r"there is no C\+\+ compiler \(no-such-compiler\)"):
        Device(compile="true")


def test_settings_start_a_backend_and_options_go_with_requests() -> None:
    """The command line's text is parted by what the registry lists."""
    spec = parse_backend("sr3,precision=bfloat16,steps=4,name=sr3-bf16")
    assert (spec.label, spec.settings, spec.options) == ("sr3-bf16", {"precision": "bfloat16"}, {"steps": "4"})
    assert parse_backend("sr3@host:1,precision=bfloat16").settings == {}


def test_what_changes_the_bits_changes_the_digest(monkeypatch: pytest.MonkeyPatch) -> None:
    """Outputs of another precision, or compiled, are never taken for those of the default from a cache."""
    monkeypatch.setattr("backends.device._check_compiler", lambda: None)
    digests = {
        Device(**settings).digest(Path(__file__))
        for settings in ({}, {"precision": "bfloat16"}, {"compile": "true"}, {"device": "cpu", "precision": "float32"})
    }
    assert len(digests) == 3


def test_bfloat16_is_described_and_close_to_float32() -> None:
    """bfloat16 changes the output by a few levels at most, and the description says which precision made it."""
    exact, fast = SR3(), SR3(precision="bfloat16")
    assert (exact.description.precision, fast.description.precision) == ("float32", "bfloat16")
    assert exact.description.digest != fast.description.digest
    difference = np.abs(upscale(exact) - upscale(fast))
    assert 0 < difference.mean() < 0.5
    assert difference.max() < 4


def test_bfloat16_keeps_the_contract() -> None:
    """No check of the contract kit finds anything wrong with SR3 in bfloat16, the batch rule among them."""
    assert [result for result in check("sr3,precision=bfloat16") if not result.passed] == []


def test_neighbours_do_not_change_a_bit_in_bfloat16() -> None:
    """An image alone and in a batch is the same: rounding to bfloat16 would blow up the smallest difference."""
    model = SR3(precision="bfloat16")
    assert np.array_equal(upscale(model)[0], upscale(model, 1)[0])


@pytest.mark.parametrize("sampler", ["ddim", "ancestral"])
def test_nothing_stays_behind_on_the_cpu(monkeypatch: pytest.MonkeyPatch, sampler: str) -> None:
    """With the network on another device every step runs there: only the finished image is fetched.

    PyTorch's `meta` device stands for the GPU: it refuses to be mixed with the CPU's tensors, and has no values.
    """
    model, steps = SR3(), []
    monkeypatch.setattr(model.device, "where", torch.device("meta"))
    monkeypatch.setattr(model.device, "autocast", nullcontext)
    model.network = model.device.place(model.network)  # type: ignore[arg-type]
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        model.upscale(request(sampler=sampler), lambda done, _total: steps.append(done))
    assert steps == [1, 2, 3, 4]


def test_packed_convolutions_compute_the_same() -> None:
    """Weights in oneDNN's order give what PyTorch's give, for all convolutions and batches; gradients pass."""
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.Sequential(nn.Conv2d(8, 8, 4, stride=2, groups=2, bias=False)),
        nn.Conv2d(8, 3, 1),
        nn.Conv2d(3, 48, 1),  # stays as it is: slower packed
    )
    packed = cast("nn.Module", Device().place(copy.deepcopy(plain)))
    assert sum(isinstance(module, Packed) for module in packed.modules()) == 3
    for shape in ((1, 3, 16, 16), (5, 3, 16, 16), (1, 3, 64, 24)):
        x = torch.rand(shape)
        with torch.inference_mode():
            torch.testing.assert_close(packed(x), plain(x), atol=1e-5, rtol=1e-5)
    x = torch.rand(1, 3, 16, 16, requires_grad=True)
    (expected,), (found,) = (torch.autograd.grad(network(x).sum(), x) for network in (plain, packed))
    torch.testing.assert_close(found, expected)


@pytest.mark.skipif(not can_compile(), reason="needs a C++ compiler and Python's headers")
@pytest.mark.parametrize("batches", [(1,), BATCHES])
def test_only_the_first_call_compiles(batches: tuple[int, ...]) -> None:
    """The first call compiles for its image size and each of the batches; all else runs as written."""
    torch.compiler.reset()
    network = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
    compiled = Device(compile="true").place(network, batches=batches)
    with torch.inference_mode():
        before = counters["stats"]["unique_graphs"]
        compiled(torch.rand(1, 3, 8, 8))
        programs = counters["stats"]["unique_graphs"]
        assert programs - before == len(batches)
        for shape in ((1, 3, 8, 8), (5, 3, 8, 8), (64, 3, 8, 8), (2, 3, 12, 8)):
            x = torch.rand(shape).contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(compiled(x), network(x))
    assert counters["stats"]["unique_graphs"] == programs
