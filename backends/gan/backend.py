"""Feed-forward upscalers as backends: SR3's regression baseline, SRGAN and ESRGAN, for faces."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import harness.resize
from backends.base import Batch, Description, FloatBatch, Gradients, Progress
from backends.checkpoint import load_weights
from backends.device import Device, Network
from backends.gan import networks
from backends.pixels import Pixels, differentiate, enlarge, to_images, to_model
from backends.sr3 import unet


class FeedForward:
    """A network that makes the output in one pass, from `weights` of the training kit that are for the `backend`.

    The settings are those of `Device`.

    Raises:
        ValueError: the weights are another backend's.
    """

    def __init__(self, weights: str, backend: str, **settings: str) -> None:
        self.device = Device(**settings)
        path, network, metadata = load_weights(weights, nn.Module, backend=backend)
        self.takes_enlarged = isinstance(network, unet.UNet)
        self.network = self.device.place(network)
        self.std = float(metadata["std"])
        low, high = int(metadata["low"]), int(metadata["high"])
        code = [Path(module.__file__ or "") for module in (networks, unet, harness.resize)]
        scale, multiple = high // low, int(getattr(network, "multiple", 1))
        self.description = Description(
            name=path.stem.removesuffix("-16-64"),
            family="regression" if backend == "regression" else "gan",
            digest=self.device.digest(Path(__file__), *code, path),
            scales=(scale,),
            licence="Apache-2.0 code; weights for non-commercial research only (trained on UTKFace)",
            domain=f"aligned faces of {low} x {low} pixels",
            minimum=low,
            maximum=16 * low,
            multiple_of=max(1, multiple // scale),
            domain_minimum=low,
            device=self.device.name,
            precision=self.device.precision,
            merge=True,
        )

    @torch.inference_mode()
    def upscale(self, batch: Batch, _progress: Progress) -> NDArray[np.floating]:
        """See `Backend.upscale`."""
        return to_images(self._output(batch.images, batch.scale))

    def gradient(self, batch: FloatBatch, _progress: Progress) -> Gradients:
        """See `Differentiable.gradient`."""
        return differentiate(lambda images: self._output(images, batch.scale), batch)

    def _output(self, images: Pixels, scale: int) -> Tensor:
        up = enlarge(images, scale).to(self.device.where)
        low = to_model(images).to(self.device.where)
        with self.device.autocast():
            predicted = residual(self.network, low, up, takes_enlarged=self.takes_enlarged).float()
        self.device.synchronise()
        return up + self.std * predicted


def residual(network: Network, low: Tensor, up: Tensor, *, takes_enlarged: bool) -> Tensor:
    """The residual over bicubic that a network predicts, in units of its standard deviation.

    Args:
        network: a U-Net or a generator of `backends.gan.networks`.
        low: (N, 3, H, W) in [-1, 1].
        up: the same, enlarged by bicubic.
        takes_enlarged: the network is a U-Net, which sees `up` and is told the noise level 0; else it sees `low`.
    """
    if takes_enlarged:
        return network(up.contiguous(memory_format=torch.channels_last), up.new_zeros(1))
    return network(low.contiguous(memory_format=torch.channels_last))


def regression(weights: str = "regression-16-64", **settings: str) -> FeedForward:
    """The regression baseline of the SR3 paper."""
    return FeedForward(weights, "regression", **settings)


def srgan(weights: str = "srgan-16-64", **settings: str) -> FeedForward:
    """SRGAN."""
    return FeedForward(weights, "srgan", **settings)


def esrgan(weights: str = "esrgan-16-64", **settings: str) -> FeedForward:
    """ESRGAN."""
    return FeedForward(weights, "esrgan", **settings)
