"""Adversarial inputs: changes of a few levels a value that move an upscaler's output as far as they can.

x is an input, x' the attacked one, within epsilon levels of x in every value and within 0..255. All attacks climb one
objective, which needs no ground truth (after Choi et al. 2019, arXiv 1904.06097):

    F(x') = mean over sampler seeds z of MSE(f(x', z), f(x, z))

signs    no attack: random signs times epsilon, the control that every attack has to beat
ifgsm    I-FGSM (Kurakin et al. 2017): `steps` steps of epsilon / steps along the gradient's signs, after a random one,
         since F has no slope at x itself
pgd      projected gradient descent (Madry et al. 2018) from a random point of the ball, in steps of 2 epsilon: F is
         nearly convex in x' - x, so that its maximum is at a corner, and 3 such steps find a better one than 10 steps
         of epsilon / 4
search   for upscalers without a gradient: random squares of random signs are kept where F grows

The gradient averaged over several z is "expectation over transformation" (Athalye et al. 2018): without it, an attack
on a stochastic upscaler learns one seed by heart.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from harness.resize import to_uint8

Pixels = NDArray[np.uint8]
Floats = NDArray[np.float32]
Float = NDArray[np.float64]
Generators = Sequence[np.random.Generator]
"""One for each image, so that its attack does not depend on the others of its batch."""

Differentiate = Callable[[Floats, Floats | None, int], tuple[Floats, Floats | None]]
"""(inputs (N, H, W, 3), cotangents (N, sH, sW, 3) or None, number of the seed) -> unrounded outputs, gradients."""
Upscale = Callable[[Pixels, int], Pixels]
"""(inputs (N, H, W, 3), number of the seed) -> outputs (N, sH, sW, 3)."""
Slope = Callable[[Floats], Floats]
"""Attacked inputs (N, H, W, 3) -> the gradient of the objective there."""
Height = Callable[[Pixels], Float]
"""Attacked inputs (N, H, W, 3) -> the objective of each, (N,)."""

DIAMETER = 2
"""The step of PGD in epsilons: from any point of the ball to any corner."""


def mse(first: NDArray[np.generic], second: NDArray[np.generic]) -> Float:
    """Mean squared difference of each of (N, H, W, 3) images, in squared levels: (N,)."""
    error: Float = np.square(first.astype(np.float64) - second.astype(np.float64)).mean(axis=(1, 2, 3))
    return error


@dataclass(frozen=True)
class Ball:
    """The inputs that an attack may choose from: `epsilon` levels, a whole number, around (N, H, W, 3) `images`."""

    images: Pixels
    epsilon: int

    def clip(self, moved: NDArray[np.floating]) -> Floats:
        """The nearest inputs of the ball."""
        centre = self.images.astype(np.float32)
        low, high = np.maximum(centre - self.epsilon, 0), np.minimum(centre + self.epsilon, 255)
        return np.asarray(np.clip(moved, low, high), np.float32)

    def within(self, radius: float, rngs: Generators) -> Floats:
        """Random points at most `radius` levels away: half noise, half one sign for a whole channel.

        From noise alone an attack on a smooth map, such as bicubic, ends in noise; its best is one shift everywhere.
        """
        shape = self.images.shape[1:]
        drawn = [rng.uniform(-0.5, 0.5, shape) + rng.choice([-0.5, 0.5], shape[-1]) for rng in rngs]
        return self.clip(self.images + np.float64(radius) * np.stack(drawn))

    def corners(self, rngs: Generators) -> Pixels:
        """The control: epsilon times random signs away."""
        signs = np.stack([rng.choice([-1, 1], self.images.shape[1:]) for rng in rngs])
        return to_uint8(self.clip(self.images + self.epsilon * signs.astype(np.float32)))


def slope(images: Pixels, differentiate: Differentiate, seeds: int) -> Slope:
    """The gradient of the objective at attacked inputs, for clean `images` and `seeds` sampler seeds."""
    clean = [differentiate(images.astype(np.float32), None, seed)[0] for seed in range(seeds)]

    def gradient(moved: Floats) -> Floats:
        total: Floats = np.zeros_like(moved)
        for seed, before in enumerate(clean):
            after, _ = differentiate(moved, None, seed)
            _, gradients = differentiate(moved, 2 * (after - before) / before[0].size, seed)
            total += 0 if gradients is None else gradients / seeds
        return total

    return gradient


def height(images: Pixels, upscale: Upscale, seeds: int) -> Height:
    """The objective of attacked inputs by their rounded outputs, for clean `images` and `seeds` sampler seeds."""
    clean = [upscale(images, seed) for seed in range(seeds)]

    def objective(moved: Pixels) -> Float:
        values: Float = np.mean([mse(upscale(moved, seed), before) for seed, before in enumerate(clean)], axis=0)
        return values

    return objective


def ifgsm(ball: Ball, gradient: Slope, steps: int, rngs: Generators) -> Floats:
    """I-FGSM; the attacked inputs are not rounded yet."""
    step = ball.epsilon / steps
    return _ascend(ball, gradient, ball.within(step, rngs), [step] * steps)


def pgd(ball: Ball, gradient: Slope, steps: int, rngs: Generators) -> Floats:
    """Projected gradient descent; the attacked inputs are not rounded yet."""
    return _ascend(ball, gradient, ball.within(ball.epsilon, rngs), [DIAMETER * ball.epsilon] * steps)


GRADIENT_ATTACKS = {"ifgsm": ifgsm, "pgd": pgd}


def _ascend(ball: Ball, gradient: Slope, moved: Floats, steps: Sequence[float]) -> Floats:
    for size in steps:
        moved = ball.clip(moved + size * np.sign(gradient(moved)))
    return moved


def search(ball: Ball, objective: Height, queries: int, rngs: Generators) -> Pixels:
    """Random search from random corners of the ball: `queries` times, a square gets one random sign a channel."""
    best = ball.corners(rngs)
    found = objective(best)
    for _ in range(queries):
        trial = to_uint8(ball.clip(np.stack([_squared(*pair) for pair in zip(best, _moves(ball, rngs), strict=True)])))
        values = objective(trial)
        better = values > found
        best[better], found[better] = trial[better], values[better]
    return best


Move = tuple[slice, slice, Floats]
"""Rows and columns of a square, and the values that it gets, (side, side, 3)."""


def _moves(ball: Ball, rngs: Generators) -> list[Move]:
    moves = []
    for image, rng in zip(ball.images, rngs, strict=True):
        height_, width, channels = image.shape
        side = int(rng.integers(1, min(height_, width) + 1))
        top, left = (int(rng.integers(0, n - side + 1)) for n in (height_, width))
        rows, columns = slice(top, top + side), slice(left, left + side)
        signs = rng.choice([-1.0, 1.0], channels)
        moves.append((rows, columns, (image[rows, columns] + ball.epsilon * signs).astype(np.float32)))
    return moves


def _squared(image: Pixels, move: Move) -> Floats:
    rows, columns, values = move
    changed = image.astype(np.float32)
    changed[rows, columns] = values
    return changed
