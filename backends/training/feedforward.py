"""Training of feed-forward upscalers: SR3's regression baseline, SRGAN and ESRGAN.

The perceptual loss is LPIPS on VGG16 (Zhang et al. 2018), where SRGAN and ESRGAN compare VGG19's conv5_4: a departure,
shared by all models here that have such a loss. Reported figures use AlexNet's LPIPS, on which nothing is trained.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from backends.checkpoint import build
from backends.gan.backend import residual
from backends.pixels import to_model
from backends.sr3.unet import UNet
from backends.training.config import TrainingConfig
from backends.training.pairs import FIGURES, Pairs, portions
from harness.metrics import lpips_network


class _Feedforward:
    """What the two tasks share: the pairs, the generator, its validation."""

    def __init__(self, config: TrainingConfig) -> None:
        self.config = config
        self.pairs = Pairs(config)
        self.count = len(self.pairs.images)
        self.sizes: dict[str, object] = config.network.model_dump()
        self.sizes |= {"c_in": 3} if config.network.kind == "unet" else {"scale": config.high // config.low}
        self.network = build(self.sizes)
        self.parts: dict[str, nn.Module] = {"network": self.network}

    def _inputs(self, hr: Tensor) -> tuple[Tensor, Tensor]:
        low = self.pairs.resizer.down(hr)
        return low, self.pairs.resizer.up(low)

    def _output(self, network: nn.Module, low: Tensor, up: Tensor) -> Tensor:
        return up + self.pairs.std * _residual(network, low, up)

    def validate(self, network: nn.Module) -> dict[str, float]:
        """See `Task.validate`; the loss is L1."""
        held_out = to_model(self.pairs.held_out)
        outputs = torch.cat([self._output(network, *self._inputs(part)) for part in portions(held_out)])
        loss = float(F.l1_loss(outputs, held_out))
        return {"validation_loss": loss, **self.pairs.figures(outputs[:FIGURES])}

    def export(self) -> tuple[dict[str, object], dict[str, str]]:
        """See `Task.export`."""
        config = self.config
        return self.sizes, {"std": f"{self.pairs.std:.8f}", "low": str(config.low), "high": str(config.high)}


def _residual(network: nn.Module, low: Tensor, up: Tensor) -> Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return residual(network, low, up, takes_enlarged=isinstance(network, UNet)).float()


class RegressionTask(_Feedforward):
    """The paper's regression baseline: SR3's U-Net without noise, trained on the mean squared error."""

    def losses(self, _step: int, indices: Tensor, rng: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """See `Task.losses`."""
        hr = self.pairs.batch(indices, rng)
        low, up = self._inputs(hr)
        yield "network", F.mse_loss(_residual(self.network, low, up), (hr - up) / self.pairs.std)


class Critic(nn.Module):
    """A patch discriminator with spectral norm that sees images beside the enlarged input.

    Args:
        channels: width of its first layer.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        widths = [6, channels, 2 * channels, 4 * channels]
        layers: list[nn.Module] = []
        for wide, wider in itertools.pairwise(widths):
            layers += [spectral_norm(nn.Conv2d(wide, wider, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
        layers += [spectral_norm(nn.Conv2d(widths[-1], widths[-1], 3, padding=1)), nn.LeakyReLU(0.2)]
        layers += [spectral_norm(nn.Conv2d(widths[-1], 1, 3, padding=1))]
        self.layers = nn.Sequential(*layers)

    def forward(self, image: Tensor, up: Tensor) -> Tensor:
        """Logits of the patches, (N, 1, H / 8, W / 8)."""
        x = torch.cat([image, up], dim=1).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            logits: Tensor = self.layers(x)
        return logits.float()


class GANTask(_Feedforward):
    """SRGAN or ESRGAN: the generator alone on L1 first, then with a critic and a perceptual loss."""

    def __init__(self, config: TrainingConfig) -> None:
        super().__init__(config)
        if config.adversarial is None:
            raise ValueError("a GAN needs the weights of its losses")
        self.weights = config.adversarial
        self.critic = Critic(self.weights.critic_channels)
        self.parts["critic"] = self.critic
        self.lpips = lpips_network("vgg")

    def losses(self, step: int, indices: Tensor, rng: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """See `Task.losses`."""
        hr = self.pairs.batch(indices, rng)
        low, up = self._inputs(hr)
        fake = self._output(self.network, low, up)
        if step < self.weights.pretrain:
            yield "network", F.l1_loss(fake, hr)
            return
        yield "critic", self._contrast(self.critic(hr, up), self.critic(fake.detach(), up))
        yield "network", self._generator_loss(hr, fake, up)

    def _generator_loss(self, hr: Tensor, fake: Tensor, up: Tensor) -> Tensor:
        w = self.weights
        with torch.autocast("cpu", dtype=torch.bfloat16):
            perceptual = self.lpips(fake, hr).float().mean()
        adversarial = self._adversarial(self.critic(fake, up), hr, up)
        loss: Tensor = w.pixel * F.l1_loss(fake, hr) + w.perceptual * perceptual + w.critic * adversarial
        return loss

    def _adversarial(self, judged: Tensor, hr: Tensor, up: Tensor) -> Tensor:
        if not self.weights.relativistic:
            return F.softplus(-judged).mean()
        with torch.no_grad():
            real = self.critic(hr, up)
        return self._contrast(judged, real)

    def _contrast(self, high: Tensor, low: Tensor) -> Tensor:
        """Loss that pushes logits up in `high` and down in `low`; relative to each other's mean for ESRGAN.

        Standard: softplus(-high) + softplus(low), the minimax GAN's (Goodfellow et al. 2014). Relativistic average:
        the same of high - mean(low) and low - mean(high) (ESRGAN, eqs. 1 and 2).
        """
        if self.weights.relativistic:
            high, low = high - low.mean(), low - high.mean()
        return (F.softplus(-high).mean() + F.softplus(low).mean()) / 2
