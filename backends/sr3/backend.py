"""SR3 as a backend: noise and the enlarged image in, a face out, by a sampler of `backends.sr3.diffusion`."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import harness.resize
from backends.base import Batch, Description, Option, Progress
from backends.checkpoint import FOLDER, load_network
from backends.device import Device
from backends.pixels import enlarge, to_images
from backends.sr3 import diffusion, unet

WEIGHTS = FOLDER / "sr3-16-64.safetensors"


class SR3:
    """The shipped 16 -> 64 face model; its card lies beside the weights. The settings are those of `Device`."""

    def __init__(self, **settings: str) -> None:
        self.device = Device(**settings)
        network, metadata = load_network(WEIGHTS, unet.UNet)
        self.network = self.device.place(network)
        self.std = float(metadata["std"])
        low, high = int(metadata["low"]), int(metadata["high"])
        scale = high // low
        self.description = Description(
            name="sr3",
            family="diffusion",
            digest=self.device.digest(
                Path(__file__), Path(diffusion.__file__), Path(unet.__file__), Path(harness.resize.__file__), WEIGHTS
            ),
            scales=(scale,),
            licence="Apache-2.0 code; weights for non-commercial research only (trained on UTKFace)",
            domain=f"aligned faces of {low} x {low} pixels",
            deterministic=False,
            minimum=low,
            maximum=4 * low,
            multiple_of=max(1, network.multiple // scale),
            domain_minimum=low,
            options=(
                Option("steps", 16, "network evaluations for each image", minimum=1, maximum=1000),
                Option("sampler", "ddim", "ddim: deterministic; ancestral: the paper's", choices=("ddim", "ancestral")),
            ),
            device=self.device.name,
            precision=self.device.precision,
            merge=True,
            progress=True,
        )

    @torch.inference_mode()
    def upscale(self, batch: Batch, progress: Progress) -> NDArray[np.floating]:
        """See `Backend.upscale`."""
        up = enlarge(batch.images, batch.scale).to(self.device.where)
        generators = [torch.Generator().manual_seed(seed) for seed in batch.seeds]
        noise = partial(self.device.normal, generators, up.shape[1:])
        steps = int(batch.options["steps"])
        with self.device.autocast():
            residual = self._sample(up, noise, steps, str(batch.options["sampler"]), progress)
        return to_images(up + self.std * residual)

    def _sample(self, up: Tensor, noise: partial[Tensor], steps: int, sampler: str, progress: Progress) -> Tensor:
        def denoise(y: Tensor, gamma: Tensor) -> Tensor:
            x = torch.cat([up, y], dim=1).contiguous(memory_format=torch.channels_last)
            return self.network(x, gamma).float()

        def on_step(done: int) -> None:
            self.device.synchronise()
            progress(done, steps)

        if sampler == "ancestral":
            return diffusion.ancestral(denoise, noise(), steps, on_step, noise)
        return diffusion.ddim(denoise, noise(), steps, on_step)
