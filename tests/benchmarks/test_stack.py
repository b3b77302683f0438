"""The stack's benchmark on a network of random weights: what it judges, and that it finds what is wrong."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from backends.sr3.unet import UNet
from benchmarks import stack
from benchmarks.stack import CANVASES, Stack, Stage, measure
from harness.client import Client
from harness.processes import LocalServer
from harness.resize import resize, to_uint8

JUDGED = ("  64 ->  256", "a client that leaves", "growth beyond", "LR-PSNR of the stack at 16")


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A tiny `sr3-x4` in use."""
    folder = tmp_path_factory.mktemp("stack")
    sizes: dict[str, Any] = {"c_in": 6, "channels": 8, "multipliers": [1, 2], "blocks": 1, "patch": 2}
    metadata = {"network": json.dumps(sizes), "std": "0.1", "low": "4", "high": "16", "tile": "16"}
    torch.manual_seed(0)
    save_file(UNet(**sizes).state_dict(), folder / "tiny.safetensors", metadata)
    with LocalServer("sr3-x4", folder / "log", {"weights": str(folder / "tiny.safetensors")}) as server:
        if not server.forget_peak_memory():
            pytest.skip("this system does not let a peak be forgotten")
        client = Client(server.address)
        yield Stack(server, client, {"steps": 2, "tile": 64, "back_projections": 10})
        client.close()


def judged(small: Stack) -> dict[str, bool]:
    """The verdicts of a stack from 16 to 64 and 256 pixels, by line."""
    low = to_uint8(resize(np.random.default_rng(0).uniform(50, 200, (4, 4, 3)), 16, 16))
    return dict(measure(small, low))


def test_a_stack_by_tiles_is_as_it_should_be(small: Stack) -> None:
    """Its memory is bounded, a client that leaves leaves nothing behind, and the output is true to its input."""
    verdicts = judged(small)
    assert all(any(line.startswith(words) for line in verdicts) for words in JUDGED)
    assert all(verdicts.values()), verdicts


def test_each_figure_has_its_limit(small: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    """With limits that nothing meets, each of the four judged lines says so, and no other one."""
    for limit in ("MOST_MB", "KEPT_MB", "GROWTH_MB"):
        monkeypatch.setattr(stack, limit, -10_000)
    monkeypatch.setattr(stack, "ENOUGH_DB", 100)
    bad = [line for line, fine in judged(small).items() if not fine]
    assert [line.startswith(words) for line, words in zip(bad, JUDGED, strict=True)] == [True] * 4


def test_only_canvases_may_grow() -> None:
    """From 1024 to 2048 pixels ten canvases become four times as large; what is beyond is growth."""
    second, third = (np.zeros((side, side, 3), np.uint8) for side in (1024, 2048))
    before, after = Stage(second, 1.0, 100 + CANVASES * 12), Stage(third, 4.0, 140 + CANVASES * 48)
    assert after.beyond_mb - before.beyond_mb == 40


def test_another_output_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pixels repeated over an image of noise are not true to it: the exit status is 1, and the line says so."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    monkeypatch.setattr(sys, "argv", ["stack", "nearest", str(tmp_path / "noise.png")])
    assert stack.main() == 1
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "LR-PSNR" in line)
    assert line.endswith("dB: NOT as it should be")
