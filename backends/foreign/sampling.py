"""Sampling along the schedule that a foreign diffusion network was trained with (Ho et al., arXiv 2006.11239).

gamma_t is SR3's name for the product of alpha_1 to alpha_t: y_t = sqrt(gamma_t) y_0 + sqrt(1 - gamma_t) eps.
Fewer steps are a subset of the training's, its last step always among them: every network evaluation is at a noise
level that the network knows, and sampling starts where gamma is nearly 0. (The same range of betas over fewer steps
would start from noise that still holds most of the signal: 61 % of it for SR3's 2000 steps cut to 100.)
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TERMINAL = 1e-3
"""A schedule whose last gamma is above this does not end in noise."""

Denoiser = Callable[[Tensor, int], tuple[Tensor, Tensor | None]]
"""(y_t of shape (N, C, H, W), t) -> eps and, where the network predicts it, the variance's place in [-1, 1]."""


@dataclass(frozen=True)
class Step:
    """From y_t at `gamma` to the next lower noise, `after`; `t` counts from 0, and `after` is 1 in the last step."""

    t: int
    gamma: float
    after: float


@dataclass(frozen=True)
class Source:
    """Where noise comes from, and who is told of the number of finished steps and may raise to cancel."""

    noise: Callable[[], Tensor]
    on_step: Callable[[int], None]


def linear_gammas(first: float, last: float, steps: int) -> tuple[float, ...]:
    """gamma_t for betas that grow linearly from `first` to `last` (section 4 of the paper).

    Raises:
        ValueError: the schedule does not end in noise.
    """
    gammas = np.cumprod(1 - np.linspace(first, last, steps))
    if gammas[-1] > TERMINAL:
        raise ValueError(f"the last of these {steps} steps still holds {gammas[-1]:.2g} of the signal")
    return tuple(float(gamma) for gamma in gammas)


def strided(gammas: Sequence[float], steps: int) -> list[Step]:
    """`steps` of the training's steps, evenly spaced from the last one down to the first."""
    chosen = [round(t) for t in np.linspace(len(gammas) - 1, 0, steps)]
    after = [*(gammas[t] for t in chosen[1:]), 1.0]
    return [Step(t, gammas[t], following) for t, following in zip(chosen, after, strict=True)]


def _predicted(y: Tensor, eps: Tensor, gamma: float) -> Tensor:
    """y_0 implied by eps at y_t, clipped to the range of images (eq. 15)."""
    y0: Tensor = (y - math.sqrt(1 - gamma) * eps) / math.sqrt(gamma)
    return y0.clamp(-1, 1)


def ddim(denoise: Denoiser, steps: Sequence[Step], source: Source) -> Tensor:
    """The deterministic sampler (Song et al., arXiv 2010.02502, eq. 12 with sigma = 0): a sample of y_0."""
    y = source.noise()
    for done, step in enumerate(steps, 1):
        eps, _ = denoise(y, step.t)
        y0 = _predicted(y, eps, step.gamma)
        eps = (y - math.sqrt(step.gamma) * y0) / math.sqrt(1 - step.gamma)
        y = math.sqrt(step.after) * y0 + math.sqrt(1 - step.after) * eps
        source.on_step(done)
    return y


def ancestral(denoise: Denoiser, steps: Sequence[Step], source: Source) -> Tensor:
    """Ancestral sampling by the posterior q(y_{t-1} | y_t, y_0) (eqs. 6 and 7): a sample of y_0."""
    y = source.noise()
    for done, step in enumerate(steps, 1):
        eps, place = denoise(y, step.t)
        y0 = _predicted(y, eps, step.gamma)
        alpha = step.gamma / step.after
        mean = math.sqrt(step.after) * (1 - alpha) * y0 + math.sqrt(alpha) * (1 - step.after) * y
        y = mean / (1 - step.gamma)
        if step.after < 1:
            y = y + _deviation(step, place) * source.noise()
        source.on_step(done)
    return y


def _deviation(step: Step, place: Tensor | None) -> Tensor:
    """The posterior's, or what the network puts between it and beta_t (Nichol and Dhariwal, 2102.09672, eq. 15)."""
    beta = 1 - step.gamma / step.after
    posterior = beta * (1 - step.after) / (1 - step.gamma)
    if place is None:
        return torch.tensor(math.sqrt(posterior))
    share = (place + 1) / 2
    return torch.exp((share * math.log(beta) + (1 - share) * math.log(posterior)) / 2)
