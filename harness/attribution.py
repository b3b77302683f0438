"""Attribution maps: which pixels of an input a window of an upscaler's output comes from.

LAM needs the upscaler's gradient; occlusion and CEM need nothing but its outputs. Images are on the 0..255 scale, maps
are (h, w) arrays over the pixels of the input. Every output of a case has the case's one seed, so that what differs is
what the input changed.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from harness.degrade import seed_of
from harness.resize import resize, to_uint8

Pixels = NDArray[np.uint8]
Float = NDArray[np.float64]
Single = NDArray[np.float32]

Upscale = Callable[[Pixels], Pixels]
"""(N, h, w, 3) -> (N, H, W, 3), each under the case's seed."""
Gradient = Callable[[Single, Single | None, Sequence[int]], tuple[Single, Single | None]]
"""(images (N, h, w, 3), cotangents (N, H, W, 3), N seeds) -> outputs before clipping and rounding, and the gradients
(N, h, w, 3) of sum(output * cotangent); no gradients without cotangents."""

SIDE = 16
"""Pixels a side of the window of the output that is explained (Gu and Dong 2021)."""
BLUR_SIGMA, BLUR_RADIUS = 1.2, 4
"""The start of LAM's path, in pixels of the input: the authors' blur, kernel 9."""
SUBSTRATE_SIGMA = 2.0
"""The blur in pixels of the input that stands where something is taken away. Black would be like no photo at all."""
FLAT = 0.01
"""Added under LAM's root, in squared levels: its slope at flat pixels would be infinite."""
TOLERANCE_DB = 0.01
"""Effect on the PSNR above which CEM draws again (arXiv 2407.19789)."""
ROUNDING = 1 / 12
"""Mean squared error of rounding to 8 bit; a smaller one counts as this, so that equal windows have a finite PSNR."""
PORTION = 64


@dataclass(frozen=True)
class Window:
    """A square of `SIDE` pixels of the output, by its first row and column."""

    top: int
    left: int

    def of(self, images: NDArray[np.generic]) -> Float:
        """The window of (..., H, W, 3) images."""
        rows, columns = slice(self.top, self.top + SIDE), slice(self.left, self.left + SIDE)
        return images[..., rows, columns, :].astype(np.float64)


def choose_window(image: Pixels, scale: int) -> Window:
    """The window with the largest gradient energy in the bicubic enlargement: no backend has a say in it.

    The sum over the window of dx^2 + dy^2; the first of equals. It keeps a pixel away from the far borders, where the
    differences to the next pixel end.
    """
    height, width = (n * scale for n in image.shape[:2])
    down, right = _differences(resize(image.astype(np.float64), height, width))
    energy = np.pad((down**2 + right**2).sum(axis=-1).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    sums = energy[SIDE:, SIDE:] - energy[:-SIDE, SIDE:] - energy[SIDE:, :-SIDE] + energy[:-SIDE, :-SIDE]
    top, left = np.unravel_index(sums.argmax(), sums.shape)
    return Window(int(top), int(left))


@dataclass(frozen=True)
class Case:
    """An input (h, w, 3), its output and the truth or what stands for it, both (H, W, 3), and the seed of it all."""

    image: Pixels
    output: Pixels
    truth: Pixels
    seed: int

    @cached_property
    def scale(self) -> int:
        """The factor from input to output."""
        return len(self.output) // len(self.image)

    @cached_property
    def window(self) -> Window:
        """The window that is explained."""
        return choose_window(self.image, self.scale)

    @cached_property
    def substrate(self) -> Pixels:
        """What stands where something of the input is taken away: the input blurred."""
        return to_uint8(blurred(self.image, SUBSTRATE_SIGMA))

    def rng(self, purpose: str) -> np.random.Generator:
        """Random numbers that this case has for one purpose."""
        return np.random.default_rng(seed_of(self.seed, purpose))


def blurred(image: NDArray[np.generic], sigma: float, radius: int | None = None) -> Float:
    """An (h, w, 3) image under a Gaussian of `sigma` pixels, borders mirrored; cut off at `radius`, or 4 sigma."""
    from scipy.ndimage import gaussian_filter

    reach = None if radius is None else (radius, radius, 0)
    result: Float = gaussian_filter(image.astype(np.float64), (sigma, sigma, 0), radius=reach, mode="mirror")
    return result


def _differences(images: Float) -> tuple[Float, Float]:
    """Each pixel of (..., H, W, 3) subtracted from the one below and from the one to its right."""
    here = images[..., :-1, :-1, :]
    return images[..., 1:, :-1, :] - here, images[..., :-1, 1:, :] - here


def detail(outputs: NDArray[np.floating], window: Window) -> tuple[Float, Single]:
    """LAM's objective of (N, H, W, 3) outputs, and its derivative by them.

    D = sum over the window's pixels and channels of sqrt(dx^2 + dy^2 + eps) (Gu and Dong 2021, section 3.2): it asks
    for edges and texture, not for pixel values.
    """
    around = slice(window.top, window.top + SIDE + 1), slice(window.left, window.left + SIDE + 1)
    down, right = _differences(outputs[:, *around].astype(np.float64))
    length = np.sqrt(down**2 + right**2 + FLAT)
    slope = np.zeros(outputs.shape, np.float32)
    view = slope[:, *around]
    view[:, 1:, :-1] += down / length
    view[:, :-1, 1:] += right / length
    view[:, :-1, :-1] -= (down + right) / length
    return length.sum(axis=(1, 2, 3)), slope


def lam(gradient: Gradient, case: Case, steps: int) -> Float:
    """The local attribution map (Gu and Dong 2021): integrated gradients of `detail` as the input's blur goes away.

    The path gamma has sigma from `BLUR_SIGMA` to 0 in equal steps. Each step adds dD/dI, taken in its middle, times the
    step's change of the image: the mean over the steps of dD/dI * dI/dalpha. The map is |the sum over the channels|
    over its largest value; all zero where nothing matters.
    """
    sigmas = np.linspace(BLUR_SIGMA, 0, 2 * steps + 1)
    path = np.stack([blurred(case.image, sigma, BLUR_RADIUS) for sigma in sigmas])
    points, change = path[1::2].astype(np.float32), np.diff(path[::2], axis=0)
    seeds = [case.seed] * steps
    outputs, _ = gradient(points, None, seeds)
    _, slopes = gradient(points, detail(outputs, case.window)[1], seeds)
    if slopes is None:
        raise ValueError("no gradients came back for cotangents")
    total: Float = np.abs((slopes * change).sum(axis=(0, 3)))
    largest = float(total.max())
    total /= largest or 1.0
    return total


def gini(values: NDArray[np.floating]) -> float:
    """Gini coefficient of values from 0 on: 0 where all are equal, near 1 where one has all; NaN where all are 0."""
    ordered = np.sort(np.ravel(values).astype(np.float64))
    n, total = len(ordered), ordered.sum()
    ranks = 2 * np.arange(1, n + 1) - n - 1
    return float(ranks @ ordered / (n * total)) if total > 0 else math.nan


def diffusion_index(attribution: NDArray[np.floating]) -> float:
    """(1 - Gini) * 100 of a local attribution map: the more, the wider the pixels that an output comes from.

    The coefficient depends on the number of pixels: compare maps of one size only.
    """
    return (1 - gini(attribution)) * 100


# Black boxes


def answers(upscale: Upscale, case: Case, images: Pixels) -> Float:
    """The window of the output of each of (N, h, w, 3) images: (N, SIDE, SIDE, 3)."""
    parts = [case.window.of(upscale(images[start : start + PORTION])) for start in range(0, len(images), PORTION)]
    return np.concatenate(parts)


def loss(windows: Float, reference: Float) -> Float:
    """Mean squared error of each of (N, SIDE, SIDE, 3) windows against one."""
    error: Float = np.mean((windows - reference) ** 2, axis=(1, 2, 3))
    return error


def psnr(windows: Float, reference: Float) -> Float:
    """PSNR in dB of each of (N, SIDE, SIDE, 3) windows against one, at most that of a perfect one, rounded."""
    decibels: Float = 10 * np.log10(255**2 / np.maximum(loss(windows, reference), ROUNDING))
    return decibels


Block = tuple[slice, slice]


def blocks(shape: Sequence[int], side: int) -> list[Block]:
    """The blocks of `side` pixels that tile an image, row by row; the last ones may be smaller."""
    height, width = shape[:2]
    return [
        (slice(top, min(top + side, height)), slice(left, min(left + side, width)))
        for top in range(0, height, side)
        for left in range(0, width, side)
    ]


def _painted(case: Case, where: Sequence[Block], effects: Float) -> Float:
    """A map that has each block's effect in all its pixels."""
    painted = np.zeros(case.image.shape[:2])
    for block, effect in zip(where, effects, strict=True):
        painted[block] = effect
    return painted


def occlusion(upscale: Upscale, case: Case, side: int) -> Float:
    """How far the window moves when a block of `side` pixels of the input gives way to the blurred input.

    In squared levels: the mean squared error of the window against that of the whole input's output.
    """
    where = blocks(case.image.shape, side)
    images = np.repeat(case.image[None], len(where), axis=0)
    for image, block in zip(images, where, strict=True):
        image[block] = case.substrate[block]
    return _painted(case, where, loss(answers(upscale, case, images), case.window.of(case.output)))


@dataclass(frozen=True)
class Interventions:
    """CEM's blocks of `side` pixels of the input, and how many patches each is replaced by.

    `coarse` draws for all, `fine` more for those with an effect beyond `TOLERANCE_DB`. `others` are the inputs
    (M, h, w, 3), M at least 1, that patches are cut from.
    """

    others: Pixels
    side: int
    coarse: int
    fine: int


def cem(upscale: Upscale, case: Case, interventions: Interventions) -> Float:
    """The causal effect map (arXiv 2407.19789): what a block of the input does for the window, in dB.

    PSNR of the window against the truth less the mean of those with the block replaced by patches of other images:
    positive where it helps, negative where it hurts.
    """
    where = blocks(case.image.shape, interventions.side)
    rng, truth = case.rng("cem"), case.window.of(case.truth)
    before = psnr(case.window.of(case.output)[None], truth)

    def effects(chosen: Sequence[Block], draws: int) -> Float:
        images = _replaced(case.image, chosen, draws, interventions.others, rng)
        after = psnr(answers(upscale, case, images), truth)
        mean: Float = (before - after).reshape(len(chosen), draws).mean(axis=1)
        return mean

    found = effects(where, interventions.coarse)
    again = np.flatnonzero(np.abs(found) > TOLERANCE_DB)
    if interventions.fine and len(again):
        weight = interventions.fine / (interventions.fine + interventions.coarse)
        more = effects([where[i] for i in again], interventions.fine)
        found[again] += weight * (more - found[again])
    return _painted(case, where, found)


def _replaced(image: Pixels, chosen: Sequence[Block], draws: int, others: Pixels, rng: np.random.Generator) -> Pixels:
    """The image with each block replaced, so many times, by a patch of anywhere in another image."""
    images = np.repeat(image[None], len(chosen) * draws, axis=0)
    for number, changed in enumerate(images):
        rows, columns = chosen[number // draws]
        height, width = rows.stop - rows.start, columns.stop - columns.start
        source = others[rng.integers(len(others))]
        top, left = rng.integers(len(source) - height + 1), rng.integers(source.shape[1] - width + 1)
        changed[rows, columns] = source[top : top + height, left : left + width]
    return images


# What a map has to beat


def random_map(case: Case) -> Float:
    """A map of nothing."""
    noise: Float = case.rng("random map").random(case.image.shape[:2])
    return noise


def edge_map(case: Case) -> Float:
    """A map that knows the input and no upscaler: the Sobel gradient of the mean over the channels."""
    from scipy.ndimage import sobel

    grey = case.image.mean(axis=-1)
    edges: Float = np.hypot(sobel(grey, axis=0, mode="mirror"), sobel(grey, axis=1, mode="mirror"))
    return edges
