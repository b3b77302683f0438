"""Feed-forward upscalers as backends: SR3's regression baseline, SRGAN and ESRGAN, for faces."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import harness.resize
from backends.base import Batch, Description, Family, Progress, code_digest
from backends.checkpoint import FOLDER, load_network
from backends.gan import networks
from backends.pixels import enlarge, to_images, to_model
from backends.sr3 import unet


class FeedForward:
    """A shipped network that makes the output in one pass; its card lies beside the weights."""

    def __init__(self, name: str, family: Family) -> None:
        weights = FOLDER / f"{name}-16-64.safetensors"
        self.network, metadata = load_network(weights, nn.Module)
        self.std = float(metadata["std"])
        low, high = int(metadata["low"]), int(metadata["high"])
        code = [Path(module.__file__ or "") for module in (networks, unet, harness.resize)]
        scale, multiple = high // low, int(getattr(self.network, "multiple", 1))
        self.description = Description(
            name=name,
            family=family,
            digest=code_digest(Path(__file__), *code, weights),
            scales=(scale,),
            licence="Apache-2.0 code; weights for non-commercial research only (trained on UTKFace)",
            domain=f"aligned faces of {low} x {low} pixels",
            minimum=low,
            maximum=16 * low,
            multiple_of=max(1, multiple // scale),
            domain_minimum=low,
        )

    @torch.inference_mode()
    def upscale(self, batch: Batch, _progress: Progress) -> NDArray[np.floating]:
        """See `Backend.upscale`."""
        up = enlarge(batch.images, batch.scale)
        return to_images(up + self.std * residual(self.network, to_model(batch.images), up))


def residual(network: nn.Module, low: Tensor, up: Tensor) -> Tensor:
    """The residual over bicubic that a network predicts, in units of its standard deviation.

    Args:
        network: a U-Net, which sees the enlarged image and is told the noise level 0, or a generator of
            `backends.gan.networks`, which sees the input.
        low: (N, 3, H, W) in [-1, 1].
        up: the same, enlarged by bicubic.
    """
    if isinstance(network, unet.UNet):
        predicted: Tensor = network(up.contiguous(memory_format=torch.channels_last), up.new_zeros(len(up)))
    else:
        predicted = network(low.contiguous(memory_format=torch.channels_last))
    return predicted


def regression() -> FeedForward:
    """The regression baseline of the SR3 paper."""
    return FeedForward("regression", "regression")


def srgan() -> FeedForward:
    """SRGAN."""
    return FeedForward("srgan", "gan")


def esrgan() -> FeedForward:
    """ESRGAN."""
    return FeedForward("esrgan", "gan")
