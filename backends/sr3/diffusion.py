"""Diffusion as SR3 writes it (arXiv 2104.07636, sections 2 and 2.4): q(y_t | y_0), targets and samplers.

gamma is the paper's noise level: y_t = sqrt(gamma) y_0 + sqrt(1 - gamma) eps (eq. 4). The schedule is free at
inference. A network may predict eps (the paper's target) or v = sqrt(gamma) eps - sqrt(1 - gamma) y_0
(Salimans and Ho, arXiv 2202.00512), which stays defined at gamma = 0.
"""

import itertools
import math
from collections.abc import Callable

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(y_t of shape (N, C, H, W), gamma of shape (N,) or (1,)) -> prediction of y_t's shape.

The samplers give one gamma for all: its embedding is then the same product whatever the batch, so that an image's
neighbours do not change its last bits.
"""


def cosine_gamma(t: Tensor) -> Tensor:
    """gamma(t) = cos(t pi / 2)^2 for t in [0, 1]: the cosine schedule with zero terminal signal, gamma(1) = 0."""
    return torch.cos(t * (math.pi / 2)) ** 2


def _column(gamma: Tensor) -> Tensor:
    return gamma[:, None, None, None]


def diffuse(y0: Tensor, eps: Tensor, gamma: Tensor) -> Tensor:
    """y_t ~ q(y_t | y_0) (eq. 4) for gamma of shape (N,), or (1,) for all images."""
    g = _column(gamma)
    return g.sqrt() * y0 + (1 - g).sqrt() * eps


def v_target(y0: Tensor, eps: Tensor, gamma: Tensor) -> Tensor:
    """V = sqrt(gamma) eps - sqrt(1 - gamma) y_0 (arXiv 2202.00512, section 4)."""
    g = _column(gamma)
    return g.sqrt() * eps - (1 - g).sqrt() * y0


def from_v(y_t: Tensor, v: Tensor, gamma: Tensor) -> tuple[Tensor, Tensor]:
    """(y_0, eps) implied by a prediction of v at y_t."""
    g = _column(gamma)
    return g.sqrt() * y_t - (1 - g).sqrt() * v, (1 - g).sqrt() * y_t + g.sqrt() * v


def gammas(steps: int) -> list[float]:
    """Gamma at the ends of `steps` equal intervals of t, from t = 1 down to t = 0 (trailing spacing)."""
    values = [math.cos(math.pi / 2 * (1 - i / steps)) ** 2 for i in range(steps + 1)]
    return [0.0, *values[1:-1], 1.0]


def one_step(denoise: Denoiser, noise: Tensor, gamma: float) -> Tensor:
    """y_0 of a one-step student: the noise, (N, C, H, W), is taken for y_t at the noise level gamma below 1."""
    return _step(denoise, noise, gamma, 1.0)


def ddim(denoise: Denoiser, y: Tensor, steps: int, on_step: Callable[[int], None]) -> Tensor:
    """Deterministic sampler (DDIM, arXiv 2010.02502, eq. 12 with sigma = 0) for a v-network.

    Args:
        denoise: predicts v.
        y: noise at gamma = 0, shape (N, C, H, W).
        steps: network evaluations.
        on_step: called with the number of finished steps; may raise to cancel.

    Returns:
        A sample of y_0.
    """
    levels = gammas(steps)
    for i, (g, g_next) in enumerate(itertools.pairwise(levels)):
        y = _step(denoise, y, g, g_next)
        on_step(i + 1)
    return y


def dpm_solver(denoise: Denoiser, y: Tensor, steps: int, on_step: Callable[[int], None]) -> Tensor:
    """DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, algorithm 2) for a v-network; arguments and result as `ddim`'s.

    Each step is DDIM's with y_0 extrapolated from the last two predictions, D = y_0 + (y_0 - y_0') / (2 r).
    """
    levels = gammas(steps)
    before = y
    for i, (g, g_next) in enumerate(itertools.pairwise(levels)):
        gamma = torch.full((1,), g, device=y.device)
        y0, _ = from_v(y, denoise(y, gamma), gamma)
        d = y0 + _extrapolation(levels[max(0, i - 1)], g, g_next) * (y0 - before)
        eps = (y - math.sqrt(g) * d) / math.sqrt(1 - g)
        y, before = math.sqrt(g_next) * d + math.sqrt(1 - g_next) * eps, y0
        on_step(i + 1)
    return y


def _extrapolation(g_before: float, g: float, g_next: float) -> float:
    """1 / (2 r) with r = (l - l_before) / (l_next - l), where l = log(gamma / (1 - gamma)) / 2.

    At gamma = 0 and 1, l is infinite: with gamma = 0 before, the limit is 0; to gamma = 1 there is none, and the step
    is of first order, as the authors' last one.
    """
    if g_before == 0 or g_next == 1:
        return 0.0
    l_before, l_now, l_next = (math.log(x / (1 - x)) / 2 for x in (g_before, g, g_next))
    return (l_next - l_now) / (2 * (l_now - l_before))


def _step(denoise: Denoiser, y: Tensor, g: float, g_next: float) -> Tensor:
    gamma = torch.full((1,), g, device=y.device)
    y0, eps = from_v(y, denoise(y, gamma), gamma)
    return math.sqrt(g_next) * y0 + math.sqrt(1 - g_next) * eps


def ancestral(
    denoise: Denoiser, y: Tensor, steps: int, on_step: Callable[[int], None], noise: Callable[[], Tensor]
) -> Tensor:
    """The paper's sampler (algorithm 2, eq. 11): posterior mean plus sqrt(1 - alpha_t) z, none at the last step.

    `noise` draws z of y's shape. At gamma = 0, where eq. 11 divides by zero, the step is taken to the
    marginal of the predicted y_0 instead.
    """
    levels = gammas(steps)
    for i, (g, g_next) in enumerate(itertools.pairwise(levels)):
        gamma = torch.full((1,), g, device=y.device)
        y0, eps = from_v(y, denoise(y, gamma), gamma)
        if g_next == 1.0:
            y = y0
        elif g == 0.0:
            y = math.sqrt(g_next) * y0 + math.sqrt(1 - g_next) * noise()
        else:
            alpha = g / g_next
            y = (y - (1 - alpha) / math.sqrt(1 - g) * eps) / math.sqrt(alpha) + math.sqrt(1 - alpha) * noise()
        on_step(i + 1)
    return y
