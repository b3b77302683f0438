"""SR3 for photos of any size: the sampler works on the whole image, the network on tiles of the size it was trained on.

The network's GroupNorm takes its statistics over what it sees, so they differ between tiles as they did between the
crops that it was trained on, and windows as wide as a quarter of a tile hide the steps. Its attention is over one tile.
"""

import ctypes
import itertools
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

import backends.pixels
import harness.resize
from backends.base import Batch, Description, Option, Progress, Refused
from backends.checkpoint import load_weights
from backends.device import Device
from backends.pixels import back_project, enlarge, to_images
from backends.sr3 import backend as sr3
from backends.sr3 import diffusion, tiles, unet

LARGEST = 512
"""Pixels a side of an input."""
M_MMAP_THRESHOLD, CANVAS_BYTES = -3, 4 * 2**20
"""The parameter of glibc's mallopt(3), and the size from which on freed memory goes back to the system."""
STEPS = Option("steps", 8, "network evaluations for each tile", minimum=1, maximum=1000)
BACK_PROJECTIONS = Option(
    "back_projections", 1, "corrections by the difference to the input that is left at the end", minimum=0, maximum=20
)


class SR3Tiled:
    """A model of several steps for photos, from `weights` of the training kit; other settings are those of `Device`.

    One image is computed after the other, a few tiles at a time: memory grows with the image by some canvases of its
    output alone (float32, three channels).

    Raises:
        ValueError: the weights are another backend's.
    """

    def __init__(self, weights: str = "sr3-x4", **settings: str) -> None:
        return_canvases()
        self.device = Device(**settings)
        path, network, metadata = load_weights(weights, unet.UNet, backend="sr3-x4")
        self.multiple = network.multiple
        self.network = self.device.place(network)
        self.formulation = sr3.formulation(metadata)
        low, tile = int(metadata["low"]), int(metadata["tile"])
        code = [Path(m.__file__ or "") for m in (tiles, sr3, diffusion, unet, backends.pixels, harness.resize)]
        self.description = Description(
            name=path.stem,
            family="diffusion",
            digest=self.device.digest(Path(__file__), *code, path),
            scales=(int(metadata["high"]) // low,),
            licence="Apache-2.0 code; weights for non-commercial research only (trained on UTKFace)",
            domain=f"photos of at least {low} x {low} pixels; trained on parts of aligned faces",
            deterministic=False,
            batch_exact=True,
            minimum=low,
            maximum=LARGEST,
            domain_minimum=low,
            options=(STEPS, *sr3.OF_STEPS[1:], _tile_option(tile, 4 * self.multiple), BACK_PROJECTIONS),
            device=self.device.name,
            precision=self.device.precision,
            max_batch=4,
            progress=True,
        )

    @torch.inference_mode()
    def upscale(self, batch: Batch, progress: Progress) -> NDArray[np.floating]:
        """See `Backend.upscale`; progress counts evaluations of a few tiles, over all steps and images."""
        grid = self._grid(batch)
        tick = self._counter(len(batch.ids) * int(batch.options["steps"]) * len(grid), progress)
        fuse = partial(tiles.fuse, grid=grid, report=tick)
        images = zip(batch.images, batch.seeds, strict=True)
        return np.concatenate([self._enlarged(image[None], seed, batch, fuse) for image, seed in images])

    def _grid(self, batch: Batch) -> tiles.Grid:
        tile, step = int(batch.options["tile"]), 4 * self.multiple
        if tile % step:
            raise Refused("options.tile", f"{tile} is no multiple of {step}, which this network needs")
        height, width = (side * batch.scale for side in batch.images.shape[1:3])
        return tiles.grid(height, width, tile, self.multiple)

    def _counter(self, total: int, progress: Progress) -> Callable[[], None]:
        done = itertools.count(1)

        def tick() -> None:
            self.device.synchronise()
            progress(next(done), total)

        return tick

    def _enlarged(
        self, image: NDArray[np.uint8], seed: int, batch: Batch, fuse: Callable[..., Tensor]
    ) -> NDArray[np.floating]:
        """The output for one image, (1, h, w, 3); its noise is one canvas a draw, from its seed."""
        up = enlarge(image, batch.scale).to(self.device.where)
        noise = partial(self.device.normal, [torch.Generator().manual_seed(seed)], up.shape[1:])

        def denoise(y: Tensor, gamma: Tensor) -> Tensor:
            def predict(x: Tensor) -> Tensor:
                return self.network(x.contiguous(memory_format=torch.channels_last), gamma).float()

            return self.formulation.v(fuse(predict, (up, y)), y, gamma)

        with self.device.autocast():
            y0 = sr3.sample(denoise, noise, batch.options, self.formulation.first, lambda _done: None)
        output = self.formulation.image(y0, up)
        for _ in range(int(batch.options["back_projections"])):
            output = back_project(output, image)
        return to_images(output)


def return_canvases() -> None:
    """Have freed canvases given back to the system at once: glibc would keep them for its process."""
    if sys.platform == "linux" and hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(M_MMAP_THRESHOLD, CANVAS_BYTES)


def _tile_option(tile: int, least: int) -> Option:
    text = f"side of a tile in output pixels, a multiple of {least}; borders are at the multiples of 3/4 of it"
    return Option("tile", tile, text, minimum=least, maximum=4 * max(tile, least))
