"""Training of diffusion models: SR3, and the generator of the embedded portraits."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backends.pixels import to_model
from backends.sr3.diffusion import cosine_gamma, ddim, diffuse, v_target
from backends.sr3.unet import UNet
from backends.training.config import TrainingConfig
from backends.training.data import load_images, load_labels
from backends.training.pairs import FIGURES, Pairs, flip, portions

STEPS = 8
"""Sampler steps behind the validation figures of SR3."""


def stratified_t(count: int, rng: torch.Generator) -> Tensor:
    """`count` values in (0, 1), one in each of `count` equal strata, shuffled."""
    t = (torch.arange(count) + torch.rand(count, generator=rng)) / count
    return t[torch.randperm(count, generator=rng)]


def v_loss(network: nn.Module, y0: Tensor, rng: torch.Generator, **inputs: Tensor | None) -> Tensor:
    """Mean squared error of the v-prediction at stratified noise levels."""
    gamma = cosine_gamma(stratified_t(len(y0), rng))
    eps = torch.randn(y0.shape, generator=rng)
    y_t = diffuse(y0, eps, gamma)
    condition, labels = inputs.get("condition"), inputs.get("labels")
    x = y_t if condition is None else torch.cat([condition, y_t], dim=1)
    x = x.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        prediction = network(x, gamma) if labels is None else network(x, gamma, labels)
    return F.mse_loss(prediction.float(), v_target(y0, eps, gamma))


class SR3Task:
    """SR3 on the residual over bicubic, scaled to unit variance, with v-prediction."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.pairs = Pairs(config)
        self.count = len(self.pairs.images)
        self.sizes = config.network.model_dump() | {"c_in": 6}
        self.network = UNet(**{k: v for k, v in self.sizes.items() if k != "kind"})
        self.parts: dict[str, nn.Module] = {"network": self.network}

    def _loss(self, network: nn.Module, hr: Tensor, rng: torch.Generator) -> Tensor:
        up = self._enlarged(hr)
        return v_loss(network, (hr - up) / self.pairs.std, rng, condition=up)

    def _enlarged(self, hr: Tensor) -> Tensor:
        return self.pairs.resizer.up(self.pairs.resizer.down(hr))

    def losses(self, _step: int, indices: Tensor, rng: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """See `Task.losses`."""
        yield "network", self._loss(self.network, self.pairs.batch(indices, rng), rng)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """See `Task.validate`."""
        rng = torch.Generator().manual_seed(1)
        held_out = to_model(self.pairs.held_out)
        parts = [self._loss(network, part, rng) for part in portions(held_out)]
        outputs = torch.cat([self._sample(network, part, rng) for part in portions(held_out[:FIGURES])])
        return {"validation_loss": float(torch.stack(parts).mean()), **self.pairs.figures(outputs)}

    def _sample(self, network: nn.Module, hr: Tensor, rng: torch.Generator) -> Tensor:
        up = self._enlarged(hr)

        def denoise(y: Tensor, gamma: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                prediction: Tensor = network(torch.cat([up, y], dim=1), gamma)
            return prediction.float()

        return up + self.pairs.std * ddim(denoise, torch.randn(up.shape, generator=rng), STEPS, lambda _: None)

    def export(self) -> tuple[dict[str, object], dict[str, str]]:
        """See `Task.export`."""
        config = self.config
        return self.sizes, {"std": f"{self.pairs.std:.8f}", "low": str(config.low), "high": str(config.high)}


class PortraitsTask:
    """The generator behind the embedded portraits: label-conditional diffusion at full size, labels dropped 10 %."""

    def __init__(self, config: TrainingConfig) -> None:
        self.images = load_images(config.train, config.high)
        self.held_out = to_model(load_images(config.validation, config.high))
        self.labels = load_labels(config.train)
        self.held_out_labels = load_labels(config.validation)
        self.count = len(self.images)
        self.sizes = config.network.model_dump() | {"c_in": 3, "labels": 9}
        self.network = UNet(**{k: v for k, v in self.sizes.items() if k != "kind"})
        self.parts: dict[str, nn.Module] = {"network": self.network}

    def losses(self, _step: int, indices: Tensor, rng: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """See `Task.losses`."""
        labels = self.labels[indices]
        labels = labels * (torch.rand(len(labels), 1, generator=rng) >= 0.1)
        yield "network", v_loss(self.network, flip(to_model(self.images[indices.numpy()]), rng), rng, labels=labels)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """See `Task.validate`."""
        loss = partial(v_loss, network, rng=torch.Generator().manual_seed(1))
        parts = zip(portions(self.held_out), portions(self.held_out_labels), strict=True)
        return {"validation_loss": float(torch.stack([loss(y0, labels=labels) for y0, labels in parts]).mean())}

    def export(self) -> tuple[dict[str, object], dict[str, str]]:
        """See `Task.export`."""
        return self.sizes, {}
