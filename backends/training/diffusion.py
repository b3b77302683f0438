"""Training of diffusion models: SR3, and the generator of the embedded portraits."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backends.checkpoint import build
from backends.pixels import to_images, to_model
from backends.sr3.diffusion import Formulation, cosine_gamma, ddim, diffuse, gammas
from backends.training.config import TrainingConfig
from backends.training.data import load_images, load_labels
from backends.training.pairs import FIGURES, PORTION, Pairs, crop, flip, paired_figures, portions
from harness.resize import to_uint8

STEPS = 8
"""Sampler steps behind the validation figures of SR3."""


def stratified_t(count: int, rng: torch.Generator) -> Tensor:
    """`count` values in (0, 1), one in each of `count` equal strata, shuffled."""
    t = (torch.arange(count) + torch.rand(count, generator=rng)) / count
    return t[torch.randperm(count, generator=rng)]


def diffusion_loss(
    network: nn.Module, formulation: Formulation, y0: Tensor, rng: torch.Generator, **inputs: Tensor | None
) -> Tensor:
    """Mean squared error of the prediction at stratified noise levels.

    `inputs` are what else the network gets: the `condition` beside y_t, the `labels`, the `level` of the condition.
    """
    gamma = formulation.gamma(stratified_t(len(y0), rng))
    eps = torch.randn(y0.shape, generator=rng)
    y_t = diffuse(y0, eps, gamma)
    condition = inputs.get("condition")
    x = y_t if condition is None else torch.cat([condition, y_t], dim=1)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = network(x, gamma, labels=inputs.get("labels"), level=inputs.get("level"))
    return F.mse_loss(prediction.float(), formulation.wanted(y0, eps, gamma))


def blurred(low: Tensor, largest: float, rng: torch.Generator) -> Tensor:
    """Half of the images (N, 3, H, W) blurred by a Gaussian, sigma uniform up to `largest` pixels; 0: none.

    The paper blurs inputs by varying strength, in training alone, and gives neither range nor share.
    """
    if not largest:
        return low
    draws = torch.rand((2, len(low), 1), generator=rng)
    sigma = (draws[0] * largest).clamp_min(1e-3)
    kernel = torch.exp(-((torch.arange(7) - 3) ** 2) / (2 * sigma**2))
    kernel = kernel / kernel.sum(dim=1, keepdim=True)
    x = F.pad(low, (3, 3, 3, 3), mode="replicate").transpose(0, 1)
    n = len(low)
    for shape in ((n, 1, 7, 1), (n, 1, 1, 7)):
        x = F.conv2d(x, kernel.reshape(shape), groups=n)
    return torch.where(draws[1][:, :, None, None] < 0.5, x.transpose(0, 1), low)


def noisy(low: Tensor, s: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Conditioning augmentation (CDM, section 2.1): z_s ~ q(z_s | z) of images (N, 3, H, W), and gamma of s, (N,).

    s, (N,), are times of the cosine schedule; the network is told their gamma.
    """
    gamma = cosine_gamma(s)
    return diffuse(low, torch.randn(low.shape, generator=rng), gamma), gamma


class SR3Task:
    """SR3: of the residual over bicubic scaled to unit variance with v-prediction, or as the paper has it."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.pairs = Pairs(config)
        self.count = len(self.pairs.images)
        self.sizes = config.network.model_dump() | {"c_in": 6} | ({"levels": 1} if config.augmentation else {})
        self.network = build(self.sizes)
        self.parts: dict[str, nn.Module] = {"network": self.network}
        std = self.pairs.std if config.residual else 1.0
        self.formulation = Formulation(config.target, config.residual, std)

    def _loss(self, network: nn.Module, hr: Tensor, up: Tensor, level: Tensor | None, rng: torch.Generator) -> Tensor:
        return diffusion_loss(network, self.formulation, self.formulation.y0(hr, up), rng, condition=up, level=level)

    def _condition(self, low: Tensor, rng: torch.Generator, at: float | None = None) -> tuple[Tensor, Tensor | None]:
        """Enlarged inputs with noise at a level, without one at levels drawn up to the largest, and what is told."""
        level, largest = None, self.config.augmentation
        if largest:
            s = largest * torch.rand(len(low), generator=rng) if at is None else torch.full((len(low),), at)
            low, level = noisy(low, s, rng)
        return self.pairs.resizer.up(low), level

    def losses(self, _step: int, indices: Tensor, rng: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """See `Task.losses`."""
        hr = self.pairs.batch(indices, rng)
        up, level = self._condition(blurred(self.pairs.resizer.down(hr), self.config.blur, rng), rng)
        hr, up = self._seen(hr, up, rng)
        yield "network", self._loss(self.network, hr, up, level, rng)

    def _seen(self, hr: Tensor, up: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """What the network sees of photos and their enlarged inputs: all, or a crop."""
        config = self.config
        if config.crops:
            hr, up = crop((hr, up), config.high, config.high // config.low, rng)
        return hr, up

    def validate(self, network: nn.Module) -> dict[str, float]:
        """See `Task.validate`."""
        rng = torch.Generator().manual_seed(1)
        photos = (to_model(part) for part in portions(torch.from_numpy(self.pairs.held_out)))
        seen = [self._used(hr, rng) for hr in photos]
        losses = [self._loss(network, *each, rng) for each in seen]
        few = seen[: FIGURES // PORTION]
        outputs = torch.cat([self._sample(network, up, level, rng) for _, up, level in few])
        targets = to_uint8(to_images(torch.cat([hr for hr, _, _ in few])).astype(np.float64))
        return {"validation_loss": float(torch.stack(losses).mean()), **paired_figures(outputs, targets)}

    def _used(self, hr: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor | None]:
        """Photos, their inputs as the model is to be used, and what it is told of their level."""
        up, level = self._condition(self.pairs.resizer.down(hr), rng, at=self.config.level)
        return *self._seen(hr, up, rng), level

    def _sample(self, network: nn.Module, up: Tensor, level: Tensor | None, rng: torch.Generator) -> Tensor:
        def denoise(y: Tensor, gamma: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                prediction: Tensor = network(torch.cat([up, y], dim=1), gamma, level=level)
            return self.formulation.v(prediction.float(), y, gamma)

        levels = gammas(STEPS, self.formulation.first)
        y0 = ddim(denoise, torch.randn(up.shape, generator=rng), levels, lambda _: None)
        return self.formulation.image(y0, up)

    def export(self) -> tuple[dict[str, object], dict[str, str]]:
        """See `Task.export`."""
        config, formulation = self.config, self.formulation
        settings = {"std": f"{formulation.std:.8f}", "low": str(config.low), "high": str(config.high)}
        settings |= {"target": formulation.target, "residual": str(formulation.residual).lower()}
        if config.augmentation:
            settings |= {"augmentation": str(config.augmentation), "level": str(config.level)}
        return self.sizes, settings | ({"tile": str(config.high)} if config.crops else {})


class PortraitsTask:
    """The generator behind the embedded portraits: label-conditional diffusion at full size, labels dropped 10 %."""

    def __init__(self, config: TrainingConfig) -> None:
        self.images = load_images(config.train, config.high)
        self.held_out = to_model(load_images(config.validation, config.high))
        self.labels = load_labels(config.train)
        self.held_out_labels = load_labels(config.validation)
        self.count = len(self.images)
        self.sizes = config.network.model_dump() | {"c_in": 3, "labels": 9}
        self.network = build(self.sizes)
        self.parts: dict[str, nn.Module] = {"network": self.network}

    def _loss(self, network: nn.Module, y0: Tensor, rng: torch.Generator, labels: Tensor) -> Tensor:
        return diffusion_loss(network, Formulation(), y0, rng, labels=labels)

    def losses(self, _step: int, indices: Tensor, rng: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """See `Task.losses`."""
        labels = self.labels[indices]
        labels = labels * (torch.rand(len(labels), 1, generator=rng) >= 0.1)
        yield "network", self._loss(self.network, flip(to_model(self.images[indices.numpy()]), rng), rng, labels)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """See `Task.validate`."""
        rng = torch.Generator().manual_seed(1)
        parts = zip(portions(self.held_out), portions(self.held_out_labels), strict=True)
        return {
            "validation_loss": float(torch.stack([self._loss(network, y0, rng, labels) for y0, labels in parts]).mean())
        }

    def export(self) -> tuple[dict[str, object], dict[str, str]]:
        """See `Task.export`."""
        return self.sizes, {}
