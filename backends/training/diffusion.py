"""Training of diffusion models: SR3, and the generator of the embedded portraits."""

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backends.checkpoint import build
from backends.pixels import to_images, to_model
from backends.sr3.diffusion import Formulation, ddim, diffuse, gammas
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
    told = [value for name in ("labels", "level") if (value := inputs.get(name)) is not None]
    x = y_t if condition is None else torch.cat([condition, y_t], dim=1)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = network(x, gamma, *told)
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


def noisy(low: Tensor, largest: float, rng: torch.Generator) -> Tensor:
    """Gaussian noise of a deviation uniform up to `largest`, on the scale of 0 to 1, on images in [-1, 1]. 0: none."""
    if not largest:
        return low
    sigma = 2 * largest * torch.rand((len(low), 1, 1, 1), generator=rng)
    return low + sigma * torch.randn(low.shape, generator=rng)


class SR3Task:
    """SR3: of the residual over bicubic scaled to unit variance with v-prediction, or as the paper has it."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.pairs = Pairs(config)
        self.count = len(self.pairs.images)
        self.sizes = config.network.model_dump() | {"c_in": 6}
        self.network = build(self.sizes)
        self.parts: dict[str, nn.Module] = {"network": self.network}
        std = self.pairs.std if config.residual else 1.0
        self.formulation = Formulation(config.target, config.residual, std)

    def _loss(self, network: nn.Module, hr: Tensor, up: Tensor, rng: torch.Generator) -> Tensor:
        return diffusion_loss(network, self.formulation, self.formulation.y0(hr, up), rng, condition=up)

    def _enlarged(self, hr: Tensor) -> Tensor:
        return self.pairs.resizer.up(self.pairs.resizer.down(hr))

    def _augmented(self, hr: Tensor, rng: torch.Generator) -> Tensor:
        """The enlarged inputs, some blurred and some with noise, as the config says."""
        low = self.pairs.resizer.down(hr)
        low = blurred(low, self.config.blur, rng)
        return self.pairs.resizer.up(noisy(low, self.config.conditioning_noise, rng))

    def losses(self, _step: int, indices: Tensor, rng: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """See `Task.losses`."""
        hr = self.pairs.batch(indices, rng)
        hr, up = self._seen(hr, self._augmented(hr, rng), rng)
        yield "network", self._loss(self.network, hr, up, rng)

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
        pairs = [self._seen(hr, self._enlarged(hr), rng) for hr in photos]
        losses = [self._loss(network, hr, up, rng) for hr, up in pairs]
        few = pairs[: FIGURES // PORTION]
        outputs = torch.cat([self._sample(network, up, rng) for _, up in few])
        targets = to_uint8(to_images(torch.cat([hr for hr, _ in few])).astype(np.float64))
        return {"validation_loss": float(torch.stack(losses).mean()), **paired_figures(outputs, targets)}

    def _sample(self, network: nn.Module, up: Tensor, rng: torch.Generator) -> Tensor:
        def denoise(y: Tensor, gamma: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                prediction: Tensor = network(torch.cat([up, y], dim=1), gamma)
            return self.formulation.v(prediction.float(), y, gamma)

        levels = gammas(STEPS, self.formulation.first)
        y0 = ddim(denoise, torch.randn(up.shape, generator=rng), levels, lambda _: None)
        return self.formulation.image(y0, up)

    def export(self) -> tuple[dict[str, object], dict[str, str]]:
        """See `Task.export`."""
        config, formulation = self.config, self.formulation
        settings = {"std": f"{formulation.std:.8f}", "low": str(config.low), "high": str(config.high)}
        settings |= {"target": formulation.target, "residual": str(formulation.residual).lower()}
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
