"""Training of the attribute network that audits use: race, gender and age of an aligned face.

MobileNetV2 (Sandler et al., arXiv 1801.04381) from ImageNet weights. Its outputs: logits of `RACES`, logits of
`GENDERS`, age / 100. Photos are shifted, turned and scaled a little, change in brightness and colour, and half of
them pass through a lower resolution, because the audited faces are small.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from backends.training.config import TrainingConfig
from backends.training.data import GENDERS, RACES, load_images, load_labels
from backends.training.pairs import flip, portions
from harness import weights

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet, RGB in 0..1
LOWEST = 24  # pixels a side that a training photo may be reduced to
SMOOTHING = 0.05
AGE_WEIGHT = 5.0


def mobilenet(outputs: int) -> nn.Module:
    """MobileNetV2 with `outputs` outputs and without weights."""
    from torchvision.models import mobilenet_v2

    network: nn.Module = mobilenet_v2(weights=None, num_classes=outputs)
    return network


class AttributesTask:
    """Cross entropy of race and gender, and the absolute error of age."""

    def __init__(self, config: TrainingConfig) -> None:
        self.size = config.high
        self.images = load_images(config.train, config.high)
        self.held_out = load_images(config.validation, config.high)
        self.labels, self.held_out_labels = load_labels(config.train), load_labels(config.validation)
        self.count = len(self.images)
        self.network = mobilenet(len(RACES) + len(GENDERS) + 1)
        start = torch.load(weights.resolve("mobilenet_v2-b0353104.pth"), weights_only=True)
        self.network.load_state_dict({k: v for k, v in start.items() if "classifier" not in k}, strict=False)
        self.parts: dict[str, nn.Module] = {"network": self.network}

    def losses(self, _step: int, indices: Tensor, rng: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """See `Task.losses`."""
        x = torch.from_numpy(self.images[indices.numpy()]).permute(0, 3, 1, 2).float() / 255
        yield "network", _loss(self._outputs(self.network, augment(x, rng)), self.labels[indices])

    def _outputs(self, network: nn.Module, x: Tensor) -> Tensor:
        mean, std = torch.tensor(MEAN)[:, None, None], torch.tensor(STD)[:, None, None]
        outputs: Tensor = network(((x - mean) / std).contiguous(memory_format=torch.channels_last))
        return outputs

    def validate(self, network: nn.Module) -> dict[str, float]:
        """See `Task.validate`; shares that are right, at 64 pixels enlarged to the network's size."""
        x = torch.from_numpy(self.held_out).permute(0, 3, 1, 2).float() / 255
        x = _through(x, 64)
        outputs = torch.cat([self._outputs(network, part) for part in portions(x)])
        races, genders, labels = outputs[:, :5], outputs[:, 5:7], self.held_out_labels
        return {
            "validation_loss": float(_loss(outputs, labels)),
            "race": float((races.argmax(1) == labels[:, :5].argmax(1)).float().mean()),
            "gender": float((genders.argmax(1) == labels[:, 5:7].argmax(1)).float().mean()),
            "age_error_years": float((outputs[:, 7] - labels[:, 7]).abs().mean() * 100),
        }

    def export(self) -> tuple[dict[str, object], dict[str, str]]:
        """See `Task.export`."""
        labels = {"race": ",".join(RACES), "gender": ",".join(GENDERS)}
        return {"kind": "mobilenet"}, {**labels, "size": str(self.size)}


def _loss(outputs: Tensor, labels: Tensor) -> Tensor:
    race = F.cross_entropy(outputs[:, :5], labels[:, :5].argmax(1), label_smoothing=SMOOTHING)
    gender = F.cross_entropy(outputs[:, 5:7], labels[:, 5:7].argmax(1), label_smoothing=SMOOTHING)
    return race + gender + AGE_WEIGHT * F.l1_loss(outputs[:, 7], labels[:, 7])


def augment(x: Tensor, rng: torch.Generator) -> Tensor:
    """Vary photos (N, 3, H, W) in 0..1 as the module says."""
    n = len(x)
    x = flip(_move(x, rng), rng)
    gain = 1 + 0.2 * (2 * torch.rand(n, 1, 1, 1, generator=rng) - 1)
    tint = 1 + 0.05 * (2 * torch.rand(n, 3, 1, 1, generator=rng) - 1)
    x = (x * gain * tint).clamp(0, 1)
    size = int(torch.randint(LOWEST, x.shape[-1], (), generator=rng))
    return torch.cat([_through(x[: n // 2], size), x[n // 2 :]])


def _move(x: Tensor, rng: torch.Generator) -> Tensor:
    """Turn by up to 10 degrees, scale by up to 10 %, shift by up to 6 %."""
    angle, scale, dx, dy = 2 * torch.rand(4, len(x), generator=rng) - 1
    angle, scale = angle * math.radians(10), 1 + 0.1 * scale
    cos, sin = scale * angle.cos(), scale * angle.sin()
    theta = torch.stack([torch.stack([cos, -sin, 0.12 * dx], 1), torch.stack([sin, cos, 0.12 * dy], 1)], 1)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, padding_mode="reflection", align_corners=False)


def _through(x: Tensor, size: int) -> Tensor:
    """Reduce to `size` pixels a side and enlarge again."""
    small = F.interpolate(x, (size, size), mode="bicubic", antialias=True).clamp(0, 1)
    return F.interpolate(small, x.shape[-2:], mode="bicubic", antialias=True).clamp(0, 1)
