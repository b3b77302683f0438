"""SR3 as a backend: noise and the enlarged image in, a face out, by a sampler of `backends.sr3.diffusion`."""

import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from torch import Tensor

import harness.resize
from backends.base import Batch, Description, Option, Progress
from backends.device import Device
from backends.sr3 import diffusion, unet
from harness.errors import one_line
from harness.resize import resize_matrix

WEIGHTS = Path(__file__).parent.parent / "weights" / "sr3-16-64.safetensors"
MAX_BYTES = 200_000_000  # of a weights file
LARGEST = {"c_in": 64, "channels": 1024, "multipliers": 64, "blocks": 16, "patch": 16, "labels": 1024}


class SR3:
    """The shipped 16 -> 64 face model; its card lies beside the weights. The settings are those of `Device`."""

    def __init__(self, **settings: str) -> None:
        self.device = Device(**settings)
        network, metadata = load_network(WEIGHTS)
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
        output: NDArray[np.floating] = ((up + self.std * residual + 1) * 127.5).permute(0, 2, 3, 1).cpu().numpy()
        return output

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


def load_network(path: Path) -> tuple[unet.UNet, dict[str, str]]:
    """The U-Net of a weights file, its parameters as float32, and the file's metadata.

    Raises:
        ValueError: one line; the file is missing, larger than `MAX_BYTES`, or not a whole set of weights for the
            network that its metadata describes.
    """
    try:
        tensors, metadata = _read(path)
        with torch.device("meta"):  # no memory before the file's shapes are known to fit
            network = unet.UNet(**_sizes(metadata["network"]))
        network.load_state_dict(tensors, assign=True)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{path.name}: not the weights of this network: {one_line(str(error))}") from error
    return network.eval(), metadata


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    if path.stat().st_size > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES // 1_000_000} MB")
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata() or {})
        return {name: file.get_tensor(name).float() for name in file.keys()}, metadata  # noqa: SIM118 - not a dict


def _sizes(text: str) -> dict[str, Any]:
    """The arguments of `UNet` from a file's metadata, each within `LARGEST`."""
    sizes = json.loads(text)
    if not isinstance(sizes, dict):
        raise TypeError("the network's sizes are no JSON object")
    for name, value in sizes.items():
        numbers = value if isinstance(value, list) and len(value) <= 8 else [value]
        if not all(type(n) is int and (name == "labels" or n > 0) and 0 <= n <= LARGEST[name] for n in numbers):
            raise ValueError(f"{name}: not within 1 and {LARGEST[name]}")
    return sizes


def enlarge(images: NDArray[np.uint8], scale: int) -> Tensor:
    """(N, H, W, 3) uint8 -> (N, 3, scale H, scale W) float32 in about [-1, 1], by the one resize."""
    x = torch.from_numpy(images).permute(0, 3, 1, 2).double() / 127.5 - 1
    rows, columns = (torch.from_numpy(resize_matrix(n, n * scale).copy()) for n in images.shape[1:3])
    return (rows @ x @ columns.T).float()
