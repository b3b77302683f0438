"""Diffusion as SR3 writes it (arXiv 2104.07636, sections 2 and 2.4): q(y_t | y_0), targets and samplers.

gamma is the paper's noise level: y_t = sqrt(gamma) y_0 + sqrt(1 - gamma) eps (eq. 4). The schedule is free at
inference. A network may predict eps (the paper's target) or v = sqrt(gamma) eps - sqrt(1 - gamma) y_0
(Salimans and Ho, arXiv 2202.00512), which stays defined at gamma = 0; `Formulation` is what one was trained for. The
samplers take v, which `Formulation.v` makes of either.
"""

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""(y_t of shape (N, C, H, W), gamma of shape (N,) or (1,)) -> v, of y_t's shape.

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


def gammas(steps: int, first: float = 0.0, power: float = 1.0) -> list[float]:
    """Gamma before the first of `steps` steps and after each, from `first` up to 1.

    The times of the cosine schedule are in proportion to (1 - i / steps)^power: of equal intervals for 1; a larger
    power takes shorter steps where little noise is left.
    """
    t = math.acos(math.sqrt(first))
    values = [math.cos(t * (1 - i / steps) ** power) ** 2 for i in range(steps + 1)]
    return [first, *values[1:-1], 1.0]


def paper_gammas() -> Tensor:
    """The 2001 levels from 1 down between which the paper draws gamma in training (section 2.4).

    It gives their number; that beta grows linearly from 1e-6 to 1e-2 is the public reimplementation's choice.
    """
    alphas = 1 - torch.linspace(1e-6, 1e-2, 2000, dtype=torch.float64)
    return torch.cat([torch.ones(1, dtype=torch.float64), alphas.cumprod(0)])


@dataclass(frozen=True)
class Formulation:
    """What a network predicts (`target`), and of what: the image y_0, or its residual over bicubic in units of `std`.

    The target v has the cosine schedule from gamma = 0. eps says nothing of y_0 there; it has the paper's levels.
    """

    target: Literal["v", "eps"] = "v"
    residual: bool = True
    std: float = 1.0

    @property
    def first(self) -> float:
        """Gamma where sampling begins."""
        return 0.0 if self.target == "v" else float(paper_gammas()[-1])

    def gamma(self, t: Tensor) -> Tensor:
        """Levels to train at, for t uniform in (0, 1): the cosine schedule's, or the paper's, piecewise uniform."""
        if self.target == "v":
            return cosine_gamma(t)
        levels = paper_gammas()
        place = t.double() * (len(levels) - 1)
        segment = place.long()
        return torch.lerp(levels[segment], levels[segment + 1], place - segment).float()

    def y0(self, image: Tensor, up: Tensor) -> Tensor:
        """What is diffused, from images (N, 3, H, W) in [-1, 1] and their enlarged inputs."""
        return (image - up) / self.std if self.residual else image

    def image(self, y0: Tensor, up: Tensor) -> Tensor:
        """The inverse of `y0`."""
        return up + self.std * y0 if self.residual else y0

    def wanted(self, y0: Tensor, eps: Tensor, gamma: Tensor) -> Tensor:
        """The prediction that is right."""
        return v_target(y0, eps, gamma) if self.target == "v" else eps

    def v(self, prediction: Tensor, y_t: Tensor, gamma: Tensor) -> Tensor:
        """V of a prediction at y_t. One of eps implies y_0, which, if an image, is kept within its range, [-1, 1]."""
        if self.target == "v":
            return prediction
        g = _column(gamma)
        y0 = (y_t - (1 - g).sqrt() * prediction) / g.sqrt()
        y0 = y0 if self.residual else y0.clamp(-1, 1)
        return (g.sqrt() * y_t - y0) / (1 - g).sqrt()


def one_step(denoise: Denoiser, noise: Tensor, gamma: float) -> Tensor:
    """y_0 of a one-step student: the noise, (N, C, H, W), is taken for y_t at the noise level gamma below 1."""
    return _step(denoise, noise, gamma, 1.0)


def ddim(denoise: Denoiser, y: Tensor, levels: list[float], on_step: Callable[[int], None]) -> Tensor:
    """Deterministic sampler (DDIM, arXiv 2010.02502, eq. 12 with sigma = 0).

    Args:
        denoise: predicts v.
        y: noise, shape (N, C, H, W).
        levels: gamma before the first network evaluation and after each, ascending to 1.
        on_step: called with the number of finished steps; may raise to cancel.

    Returns:
        A sample of y_0.
    """
    for i, (g, g_next) in enumerate(itertools.pairwise(levels)):
        y = _step(denoise, y, g, g_next)
        on_step(i + 1)
    return y


def dpm_solver(denoise: Denoiser, y: Tensor, levels: list[float], on_step: Callable[[int], None]) -> Tensor:
    """DPM-Solver++(2M) (Lu et al., arXiv 2211.01095, algorithm 2); arguments and result as `ddim`'s.

    Each step is DDIM's with y_0 extrapolated from the last two predictions, D = y_0 + (y_0 - y_0') / (2 r); the first
    step, before which there is no prediction, counts as one from gamma = 0.
    """
    before = y
    triples = zip([0.0, *levels[:-2]], levels[:-1], levels[1:], strict=True)
    for i, (g_before, g, g_next) in enumerate(triples):
        gamma = torch.full((1,), g, device=y.device)
        y0, _ = from_v(y, denoise(y, gamma), gamma)
        d = y0 + _extrapolation(g_before, g, g_next) * (y0 - before)
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
    denoise: Denoiser, y: Tensor, levels: list[float], on_step: Callable[[int], None], noise: Callable[[], Tensor]
) -> Tensor:
    """The paper's sampler (algorithm 2, eq. 11): posterior mean plus sqrt(1 - alpha_t) z, none at the last step.

    `noise` draws z of y's shape; the others are `ddim`'s. At gamma = 0, where eq. 11 divides by zero, the step is taken
    to the marginal of the predicted y_0 instead.
    """
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
