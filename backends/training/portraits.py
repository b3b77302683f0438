"""Makes the embedded demonstration portraits: `python -m backends.training.portraits`.

Samples the generator trained by `configs/portraits.yaml`, 32 adults of each race and gender, checks that none is
nearer to a training photo than real held-out photos are, and writes `harness/data/portraits.parquet` with its card.
"""

import io
import json
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from backends.checkpoint import load_network
from backends.sr3.diffusion import Denoiser, ancestral, cosine_gamma, from_v, gammas
from backends.sr3.unet import UNet
from backends.training.data import GENDERS, RACES, label_vectors, load_images
from harness.errors import HarnessError
from harness.resize import to_uint8

EACH = 32
STEPS = 50
GUIDANCE = 2.0
REST = 0.12
SEED = 2026
ADULT = (18, 80)
DATA = Path("harness/data")
CARD = """# Embedded portraits: demonstration data, not evidence

{count} synthetic portraits of {size} x {size} pixels, {each} of each race and gender, made by
`python -m backends.training.portraits` with the generator that
`python -m backends.training backends/training/configs/portraits.yaml` trains. No real person is shown.

- Generator: a label-conditional diffusion model at full size (v-prediction, guidance {guidance}, {steps} ancestral
  steps, then its estimate of the noise-free image at noise level {rest}). It is no upscaler, is compared with none,
  and nothing is trained on its samples.
- Labels are what the generator was asked for (race and gender as in UTKFace, age in years drawn from {low} to {high}),
  not what a person sees in the picture.
- Licence: research only, because the generator was trained on UTKFace's train split (non-commercial).
- Nearest-neighbour check, root mean squared pixel distance to the nearest of {train} training photos or their mirror
  images: portraits at least {closest:.1f}, median {median:.1f}; {held} held-out photos: 1st percentile {first:.1f},
  median {real:.1f}. No portrait is nearer to a training photo than the 1st percentile of real photos: passed.
"""


@torch.inference_mode()
def sample(labels: Tensor, size: int, network: torch.nn.Module) -> NDArray[np.uint8]:
    """Portraits for the conditioning vectors `labels`: (N, size, size, 3) uint8."""
    parts = []
    for start in range(0, len(labels), 32):
        wanted = labels[start : start + 32]
        rng = torch.Generator().manual_seed(SEED + start)
        shape = (len(wanted), 3, size, size)
        denoise = partial(_guided, network, wanted)
        x = ancestral(
            denoise,
            torch.randn(shape, generator=rng),
            gammas(STEPS),
            _ignore,
            partial(torch.randn, shape, generator=rng),
        )
        parts.append(to_uint8(((_without_rest(x, denoise) + 1) * 127.5).permute(0, 2, 3, 1).double().numpy()))
        print(f"{start + len(wanted)} of {len(labels)} portraits", flush=True)
    return np.concatenate(parts)


def _guided(network: torch.nn.Module, wanted: Tensor, y: Tensor, gamma: Tensor) -> Tensor:
    """The network's prediction, pushed away from the one without labels (classifier-free guidance)."""
    y = y.contiguous(memory_format=torch.channels_last)
    given, free = network(y, gamma, wanted), network(y, gamma, torch.zeros_like(wanted))
    guided: Tensor = free + GUIDANCE * (given - free)
    return guided


def _without_rest(x: Tensor, denoise: Denoiser) -> Tensor:
    """The image without the noise that a small network leaves: its estimate of y_0 at the noise level REST."""
    gamma = cosine_gamma(torch.full((len(x),), REST))
    y = gamma[:, None, None, None].sqrt() * x
    return from_v(y, denoise(y, gamma), gamma)[0]


def _ignore(_done: int) -> None:
    pass


def nearest(images: NDArray[np.uint8], among: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Root mean squared distance (0..255) of each image to the nearest of `among` or their mirror images."""
    flat = torch.from_numpy(images.reshape(len(images), -1)).float()
    best = torch.full((len(images),), float("inf"))
    for start in range(0, len(among), 2000):
        part = among[start : start + 2000]
        for candidates in (part, part[:, :, ::-1]):
            other = torch.from_numpy(np.ascontiguousarray(candidates).reshape(len(part), -1)).float()
            best = torch.minimum(best, torch.cdist(flat, other).amin(dim=1))
    distances: NDArray[np.float64] = (best.double() / flat.shape[1] ** 0.5).numpy()
    return distances


def write(images: NDArray[np.uint8], labels: list[tuple[str, str, int]], path: Path) -> None:
    """Write images and labels as a Hugging Face image parquet with lossless WebP."""
    rows = []
    for i, (image, (race, gender, age)) in enumerate(zip(images, labels, strict=True)):
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "WEBP", lossless=True, method=6)
        name = f"portrait-{i:03d}.webp"
        record = {"bytes": buffer.getvalue(), "path": name}
        rows.append({"image": record, "age": age, "gender": gender, "race": race})
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), path, compression="none")


def main() -> int:
    """Run the command line; returns the exit status (1 if a portrait copies a training photo, 2 on an error)."""
    try:
        return make()
    except (FileNotFoundError, ValueError, HarnessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def make() -> int:
    """Make the portraits and, if none copies a training photo, write them with their card; returns 1 if one does.

    Raises:
        FileNotFoundError: the generator's weights are not there.
        DatasetError: the photos are not there.
        ValueError: the weights are not those of a generator.
    """
    weights = Path("backends/weights/portraits.safetensors")
    if not weights.exists():
        raise FileNotFoundError(f"{weights} is missing; train it first with configs/portraits.yaml")
    network, _ = load_network(weights, UNet)
    rng = np.random.default_rng(SEED)
    cells = [(race, gender) for race in RACES for gender in GENDERS for _ in range(EACH)]
    labels = [(race, gender, int(rng.integers(*ADULT))) for race, gender in cells]
    races, genders, ages = ([label[k] for label in labels] for k in range(3))
    images = sample(label_vectors(races, genders, ages), 64, network)  # type: ignore[arg-type]
    train, held = (load_images(f"utkface:data/utkface#{split}", 64) for split in ("train", "validation"))
    ours, real = nearest(images, train), nearest(held, train)
    copies = int((ours < np.quantile(real, 0.01)).sum())
    figures = {"count": len(images), "size": 64, "each": EACH, "guidance": GUIDANCE, "steps": STEPS, "rest": REST}
    figures |= {"low": ADULT[0], "high": ADULT[1] - 1, "train": len(train), "held": len(held)}
    distances = {"closest": ours.min(), "median": np.median(ours), "first": np.quantile(real, 0.01)}
    if copies == 0:
        write(images, labels, DATA / "portraits.parquet")
        (DATA / "portraits.md").write_text(CARD.format(**figures, **distances, real=np.median(real)))
    print(json.dumps({**figures, **{k: round(float(v), 2) for k, v in distances.items()}, "copies": copies}))
    return int(copies > 0)


if __name__ == "__main__":
    sys.exit(main())
