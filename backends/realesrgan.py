"""Real-ESRGAN (Wang et al. 2021): the published GAN weights, run by ncnn on the CPU.

`x4plus` is RRDBNet with 23 blocks, for photos; `animevideov3` is a small VGG-style network for anime frames.
Both are trained on synthetic chains of blur, noise and JPEG, so they also remove what looks like a degradation.

Images of more than `WHOLE` pixels a side are cut into tiles, which see `PADDING` pixels more on each side than they
answer for; within half of that of a border two tiles' outputs are blended. The 23 blocks see some 350 pixels far, so a
tile's output is not the whole image's; `benchmarks.seams` measures what that does at the borders.
"""

import itertools
from dataclasses import replace
from pathlib import Path

import ncnn
import numpy as np
from numpy.typing import NDArray

from backends.base import Batch, Description, Option, Progress, code_digest
from harness import weights
from harness.errors import one_line

STEMS = {"x4plus": "realesrgan-x4plus", "animevideov3": "realesr-animevideov3-x4"}
MODEL = Option(
    name="model", default="x4plus", help="x4plus for photos, animevideov3 for anime frames", choices=tuple(STEMS)
)

SCALE = 4
WHOLE = 256
"""Most pixels a side that the network gets at once: 3 GB and 11 s; memory grows with the area."""
PADDING = 32


class RealESRGAN:
    """Upscales by 4, one image after the other; a network is loaded when it is first asked for.

    `model` is the one that requests get which name none, the warm-up among them.

    Raises:
        ValueError: there is no such model.
    """

    def __init__(self, model: str = "x4plus") -> None:
        if model not in STEMS:
            raise ValueError(f"no model {one_line(model, 40)!r}; choose one of {', '.join(STEMS)}")
        self._files = {
            name: (weights.resolve(f"{stem}.param"), weights.resolve(f"{stem}.bin")) for name, stem in STEMS.items()
        }
        self._nets: dict[str, ncnn.Net] = {}
        self.description = Description(
            name="realesrgan",
            family="gan",
            digest=code_digest(Path(__file__), *(path for pair in self._files.values() for path in pair)),
            scales=(SCALE,),
            licence="BSD-3-Clause",
            domain="photos and anime frames of at least 64 pixels with real-world degradations; "
            "16-pixel faces are out of its domain",
            batch_exact=True,
            maximum=1024,
            domain_minimum=64,
            options=(replace(MODEL, default=model),),
            max_batch=16,
            progress=True,
        )

    def upscale(self, batch: Batch, progress: Progress) -> NDArray[np.floating]:
        """See `Backend.upscale`."""
        model = str(batch.options.get("model", self.description.options[0].default))
        if model not in self._nets:
            self._nets[model] = _load(*self._files[model])
        n, height, width, _ = batch.images.shape
        tiles = list(itertools.product(cores(height), cores(width)))
        outputs = np.zeros((n, SCALE * height, SCALE * width, 3), np.float32)
        for done, (i, tile) in enumerate(itertools.product(range(n), tiles), 1):
            _add(self._nets[model], batch.images[i], outputs[i], tile)
            progress(done, n * len(tiles))
        return outputs


def cores(size: int) -> list[slice]:
    """The parts of an axis of `size` pixels that tiles answer for, equal but for a pixel; one up to `WHOLE`."""
    count = 1 if size <= WHOLE else -(-size // (WHOLE - 2 * PADDING))
    edges = [size * i // count for i in range(count + 1)]
    return [slice(*pair) for pair in itertools.pairwise(edges)]


def _add(net: ncnn.Net, image: NDArray[np.uint8], output: NDArray[np.float32], tile: tuple[slice, slice]) -> None:
    """Add a tile's output, weighted, to that of the image; `tile` is what it answers for."""
    sides = image.shape[:2]
    seen = [
        slice(max(0, core.start - PADDING), min(side, core.stop + PADDING))
        for core, side in zip(tile, sides, strict=True)
    ]
    rows, columns = (_weights(*place) for place in zip(tile, seen, sides, strict=True))
    height, width = (slice(SCALE * part.start, SCALE * part.stop) for part in seen)
    output[height, width] += rows[:, None, None] * columns[:, None] * _forward(net, image[tuple(seen)])


def _weights(core: slice, seen: slice, size: int) -> NDArray[np.float32]:
    """1, falling linearly to 0 from `PADDING` / 2 before to as much behind each border with another tile."""
    places = (np.arange(SCALE * seen.start, SCALE * seen.stop) + 0.5) / SCALE
    rise = np.clip((places - core.start) / PADDING + 0.5, 0, 1) if core.start > 0 else 1.0
    fall = np.clip((core.stop - places) / PADDING + 0.5, 0, 1) if core.stop < size else 1.0
    return np.asarray(np.ones(len(places)) * rise * fall, np.float32)


def _load(param: Path, weight: Path) -> ncnn.Net:
    net = ncnn.Net()
    net.opt.num_threads = (
        1  # ncnn's threads spin for each other at each of 1000 layers: beside other work 25 times slower
    )
    net.opt.use_vulkan_compute = False
    net.opt.use_fp16_packed = net.opt.use_fp16_storage = net.opt.use_fp16_arithmetic = False  # float32 everywhere
    if net.load_param(str(param)) or net.load_model(str(weight)):
        raise RuntimeError(f"ncnn cannot read {param} and {weight}: delete them, then run `harness weights fetch`")
    return net


def _forward(net: ncnn.Net, image: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W, 3) uint8 to (4 H, 4 W, 3) on the 0..255 scale."""
    planes = np.ascontiguousarray(image.transpose(2, 0, 1), dtype=np.float32) / 255
    extractor = net.create_extractor()
    extractor.input("data", ncnn.Mat(planes).clone())  # a Mat made of an array does not own its memory
    code, output = extractor.extract("output")
    if code:
        raise RuntimeError(f"ncnn failed with code {code} on an image of {image.shape[1]} x {image.shape[0]} pixels")
    return np.array(output).transpose(1, 2, 0) * np.float32(255)
