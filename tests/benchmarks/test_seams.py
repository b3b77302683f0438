"""The seam metric: 1 without borders and for tiles fused at every step, not for tiles that were drawn apart."""

from functools import partial

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from backends.sr3 import diffusion, tiles
from benchmarks.seams import BORDERS, TOLERANCE, gradients, measure, ratio, ratio_to, seams
from harness.errors import ConfigError
from harness.resize import to_uint8

SIDE, TILE, MULTIPLE = 192, 64, 16
STEPS = 3


def ignore(*_: object) -> None:
    """Steps that nobody counts."""


def textured(y: Tensor, gamma: Tensor) -> Tensor:
    """What a perfect network predicts for independent pixels of N(0, 0.25)."""
    g = gamma[:, None, None, None]
    surprise = y / (g * 0.25 + 1 - g)
    return diffusion.v_target(g.sqrt() * 0.25 * surprise, (1 - g).sqrt() * surprise, gamma)


def blurring(y: Tensor, gamma: Tensor) -> Tensor:
    """A prediction that depends on the neighbours, as a network's does, and on what lies beyond a tile's edge."""
    return textured(torch.nn.functional.avg_pool2d(y, 3, 1, 1), gamma)


def draw(denoise: diffusion.Denoiser, seed: int) -> Tensor:
    """A sample of a canvas, (1, 3, SIDE, SIDE)."""
    noise = torch.randn((1, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(seed))
    return diffusion.ddim(denoise, noise, diffusion.gammas(STEPS), ignore)


def picture(y0: Tensor) -> NDArray[np.uint8]:
    """A canvas as an image."""
    return to_uint8(127.5 + 80 * y0[0].permute(1, 2, 0).double().numpy())


GRID = tiles.grid(SIDE, SIDE, TILE, MULTIPLE)
borders = partial(BORDERS["sr3-x4"], options={"tile": TILE})


@pytest.mark.parametrize("model", [textured, blurring])
def test_tiles_fused_at_every_step_have_no_seams(model: diffusion.Denoiser) -> None:
    """The gradient across borders is that elsewhere, within the tolerance."""

    def denoise(y: Tensor, gamma: Tensor) -> Tensor:
        return tiles.fuse(lambda x: model(x, gamma), (y,), grid=GRID, report=ignore)

    rows = seams([picture(draw(denoise, seed)) for seed in range(2)], borders)
    value, low, high = ratio(rows)
    assert len(rows) == 2 * 2 * 3
    assert low < value < high
    assert abs(value - 1) < TOLERANCE


def test_tiles_drawn_apart_and_joined_at_the_end_have_seams() -> None:
    """The same windows over samples of different noise: the average of two drawings is flatter than one."""

    def apart(seed: int) -> NDArray[np.uint8]:
        cut = [tile for group in GRID for tile in group]
        drawn = iter(
            [draw(textured, 100 * seed + i)[:, :, r.places[:, None], c.places] for i, (r, c) in enumerate(cut)]
        )
        grid = [[tile] for tile in cut]
        return picture(tiles.fuse(lambda _: next(drawn), (torch.zeros(1, 3, SIDE, SIDE),), grid=grid, report=ignore))

    value, _, high = ratio(seams([apart(seed) for seed in range(2)], borders))
    assert value < 1 - 2 * TOLERANCE
    assert high < 1


def test_a_step_at_a_border_is_a_seam() -> None:
    """Tiles of different brightness raise the gradient across the border alone, in one direction alone."""
    image = np.random.default_rng(0).integers(100, 110, (96, 96, 3)).astype(np.uint8)
    image[:, 48:] += 20
    ((across, elsewhere),) = gradients(image, [48])
    assert across > 3 * elsewhere
    rows = seams([image], borders)
    assert ratio(rows)[0] > 1 + TOLERANCE
    assert ratio_to(rows, rows) == pytest.approx((1, 1, 1))


def test_what_has_no_borders_is_refused() -> None:
    """A photo within one tile, and a backend without tiles, get one line."""
    with pytest.raises(ConfigError, match="no larger than a tile"):
        seams([np.zeros((64, 64, 3), np.uint8)], borders)
    with pytest.raises(ConfigError, match="bicubic does not work by tiles; those that do: sr3-x4, realesrgan"):
        measure("bicubic", [])
