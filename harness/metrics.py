"""Scores of single images: fidelity (PSNR, SSIM), perception (LPIPS), consistency with the input, sharpness.

`METRICS` names them with their recipes; `score` computes one for a batch. Conventions are those of the
super-resolution literature: BT.601 luma in 16..235 (MATLAB's rgb2ycbcr), `scale` pixels of border cropped for
the metrics on luma, SSIM with an 11 x 11 Gaussian window where it lies inside the image.
An image too small for a metric (nothing left after the crop, less than the window, less than the network needs)
scores NaN: not measured.
"""

import copy
import math
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from harness import weights
from harness.errors import ConfigError, ImageError, one_line
from harness.resize import resize

if TYPE_CHECKING:
    import torch
    from torch import nn

Images = NDArray[np.uint8]
Float = NDArray[np.float64]

ROUNDING = 1e-20  # a mean squared error below this is rounding of double precision
WINDOW = 11  # side of SSIM's window, in pixels
SIGMA = 1.5  # its standard deviation
LPIPS_MINIMUM = 32  # pixels a side, what AlexNet needs; the authors advise 64
LPIPS_PIXELS = 1 << 20  # in one forward pass: bounds memory
GREY = np.array([0.299, 0.587, 0.114])  # of R, G and B in the grey image whose sharpness is measured
LAPLACIAN = np.array([[1.0, 1.0, 1.0], [1.0, -8.0, 1.0], [1.0, 1.0, 1.0]])
BACKBONES = {"alex": ("alexnet.ckpt", "AlexNet_0"), "vgg": ("vgg16.ckpt", "VGG16_0")}

Net = Literal["alex", "vgg"]


@dataclass(frozen=True)
class Metric:
    """A per-image metric; `reference` says that it needs the ground truth, else the input image will do.

    `higher_is_better` is None where more is neither better nor worse. `recipe` is all that must agree for two figures
    to be comparable. `compute` maps outputs, what they are compared with, and the scale to one value per image.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool | None
    recipe: str
    reference: bool
    compute: Callable[[Images, Images, int], Float]


def score(name: str, outputs: Images, targets: Images | None, inputs: Images, scale: int) -> Float:
    """Score a batch with the metric `name`: (N,) values, NaN where an image is too small for the metric.

    Args:
        name: A key of `METRICS`.
        outputs: (N, H, W, 3) uint8, what the backend returned.
        targets: (N, H, W, 3) uint8, the ground truth; None will do for metrics without `reference`.
        inputs: (N, H / scale, W / scale, 3) uint8, what the backend received.
        scale: The factor of upscaling.

    Raises:
        ConfigError: there is no such metric.
        ImageError: the images do not fit each other, or the ground truth is missing.
        WeightsError: the metric's network is not to be had.
    """
    if name not in METRICS:
        raise ConfigError(f"no metric is called {one_line(name, 80)}; known: {', '.join(METRICS)}")
    metric = METRICS[name]
    references = targets if metric.reference else inputs
    if references is None:
        raise ImageError(f"{name} needs the ground truth: leave the metric out, or give a dataset with references")
    _check(name, outputs, references, 1 if metric.reference else scale)
    return metric.compute(outputs, references, scale)


def _check(name: str, outputs: Images, references: Images, factor: int) -> None:
    n, height, width, channels = references.shape if references.ndim == 4 else (0, 0, 0, 0)
    fits = outputs.shape == (n, height * factor, width * factor, channels) and channels == 3
    if not fits or outputs.dtype != np.uint8 or references.dtype != np.uint8:
        raise ImageError(
            f"{name} cannot compare {outputs.dtype} {outputs.shape} with {references.dtype} {references.shape}: "
            f"give uint8 (N, H, W, 3), the output {factor} times as large"
        )


# Fidelity


def luma(image: NDArray[np.uint8 | np.float64]) -> Float:
    """BT.601 luma, 16..235, of an RGB image on the 0..255 scale, unrounded: (..., 3) to (...)."""
    r, g, b = np.moveaxis(image.astype(np.float64), -1, 0)
    result: Float = 16 + (65.481 * r + 128.553 * g + 24.966 * b) / 255  # pixel by pixel: equal pixels stay equal
    return result


def _psnr(a: Float, b: Float, peak: float = 255.0) -> float:
    """10 log10(peak² / MSE) in dB; infinite for equal images, NaN for empty ones."""
    if not a.size:
        return math.nan
    mse = float(np.mean(np.square(a - b)))
    return 10 * math.log10(peak**2 / mse) if mse else math.inf


def _mse(a: Float, b: Float) -> float:
    """Mean squared error on a scale of 0 to 1, of images on one of 0 to 255."""
    return float(np.mean(np.square((a - b) / 255)))


def _ssim(a: Float, b: Float) -> float:
    """Mean structural similarity (Wang et al. 2004, eq. 13) over the window's valid positions and the channels."""
    if min(a.shape[:2]) < WINDOW:
        return math.nan
    mean_a, mean_b = _window(a), _window(b)
    var_a, var_b = _window(a * a) - mean_a**2, _window(b * b) - mean_b**2
    covariance = _window(a * b) - mean_a * mean_b
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return float(np.mean(luminance * structure))


def _window(image: Float) -> Float:
    """Gaussian-weighted local means of an (H, W) or (H, W, C) image where the window lies inside it."""
    from scipy.ndimage import gaussian_filter

    r = WINDOW // 2
    result: Float = gaussian_filter(image, SIGMA, radius=r, axes=(0, 1))[r:-r, r:-r]
    return result


def _on_rgb(measure: Callable[[Float, Float], float], outputs: Images, targets: Images, _: int) -> Float:
    pairs = zip(outputs.astype(np.float64), targets.astype(np.float64), strict=True)
    return np.array([measure(output, target) for output, target in pairs])


def _on_luma(measure: Callable[[Float, Float], float], outputs: Images, targets: Images, scale: int) -> Float:
    inner = (slice(scale, -scale), slice(scale, -scale))
    pairs = zip(outputs, targets, strict=True)
    return np.array([measure(luma(output)[inner], luma(target)[inner]) for output, target in pairs])


# Consistency


def _lr_mse(outputs: Images, inputs: Images, _: int) -> Float:
    height, width = inputs.shape[1:3]
    pairs = zip(outputs, inputs, strict=True)
    mse = np.array([np.mean(np.square(resize(output / 255, height, width) - low / 255)) for output, low in pairs])
    return np.where(mse < ROUNDING, 0.0, mse)


def _lr_psnr(outputs: Images, inputs: Images, scale: int) -> Float:
    mse = _lr_mse(outputs, inputs, scale)
    return -10 * np.log10(mse, where=mse > 0, out=np.full_like(mse, -math.inf))


# Sharpness


def _sharpness(outputs: Images, _: Images, __: int) -> Float:
    """Variance of the Laplacian (Pech-Pacheco et al. 2000), as Lasz et al. 2024 compute their "blur"."""
    from scipy.ndimage import convolve

    if min(outputs.shape[1:3]) < len(LAPLACIAN):
        return np.full(len(outputs), math.nan)
    return np.array([convolve(output @ GREY / 255, LAPLACIAN, mode="mirror").var(ddof=1) for output in outputs])


# Perception


@lru_cache
def lpips_network(net: Net) -> "nn.Module":
    """LPIPS 0.1 (Zhang et al. 2018) with pinned weights, on the CPU: (N, 3, H, W) pairs in -1..1 to (N, 1, 1, 1).

    Kept for the process, frozen, in evaluation mode; copy it before moving it to a device.

    Raises:
        WeightsError: the weights are not to be had.
    """
    import torch
    from lpips import LPIPS

    file, trunk = BACKBONES[net]
    arrays = weights.read_arrays(weights.resolve(file))
    with torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips passes torchvision an argument that is on its way out
        network: nn.Module = LPIPS(net=net, pretrained=False, pnet_rand=True, verbose=False)
    state = network.state_dict()
    layers = [arrays[trunk][f"Conv_{i}"][part] for i in range(len(arrays[trunk])) for part in ("kernel", "bias")]
    heads = [arrays[f"NetLinLayer_{i}"]["Conv_0"]["kernel"] for i in range(5)]
    wanted = [k for k in state if k.startswith("net.")] + [f"lin{i}.model.1.weight" for i in range(5)]
    for key, value in zip(wanted, layers + heads, strict=True):
        oihw = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value
        state[key].copy_(torch.from_numpy(oihw.copy()))
    return network.requires_grad_(requires_grad=False).eval()


def _lpips(net: Net, outputs: Images, targets: Images, _: int) -> Float:
    n, height, width, _ = outputs.shape
    if min(height, width) < LPIPS_MINIMUM:
        return np.full(n, math.nan)
    return _in_parts(lpips_network(net), outputs, targets).reshape(n)


def lpips_map(first: Images, second: Images) -> Float:
    """LPIPS (AlexNet) at every pixel of pairs of (N, H, W, 3), at least `LPIPS_MINIMUM` a side: (N, H, W).

    The maps of the network's layers are enlarged by bilinear and summed.

    Raises:
        WeightsError: the weights are not to be had.
    """
    network: Any = copy.copy(lpips_network("alex"))
    network.spatial = True
    return _in_parts(network, first, second)[:, 0]


def _in_parts(network: "nn.Module", first: Images, second: Images) -> Float:
    """The network's answers for pairs of images, so many at a time as memory allows."""
    import torch

    n, height, width, _ = first.shape
    size = max(1, LPIPS_PIXELS // (height * width))
    with torch.inference_mode():
        parts = [
            network(_to_tensor(first[i : i + size]), _to_tensor(second[i : i + size])).numpy()
            for i in range(0, n, size)
        ]
    return np.concatenate(parts, dtype=np.float64)


def _to_tensor(images: Images) -> "torch.Tensor":
    """(N, H, W, 3) uint8 to (N, 3, H, W) float32 in -1..1."""
    import torch

    return torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1


# The registry


def _lpips_recipe(net: Net) -> str:
    file, _ = BACKBONES[net]
    return f"LPIPS 0.1, {net}, RGB, -1..1, weights {file} sha256 {weights.WEIGHTS[file].sha256[:12]}"


_LUMA = "BT.601 luma 16..235, float64, unrounded, border of `scale` px cropped"
_SSIM = "Gaussian window 11 x 11 sigma 1.5, K1 .01, K2 .03, range 255, valid region, population covariance"
_LOW = "output reduced by antialiased bicubic a=-0.5, float, against the 8-bit input, RGB, range 0..1"

_SHARPNESS = (
    "variance of the Laplacian (3 x 3, 8 neighbours, borders mirrored) of grey .299 R + .587 G + .114 B, range 0..1; "
    "not quality: noise, ringing and invented texture raise it"
)

METRICS = {
    metric.name: metric
    for metric in (
        Metric(
            name="psnr",
            title="PSNR (RGB)",
            unit="dB",
            higher_is_better=True,
            recipe="RGB, all pixels, peak 255, per image",
            reference=True,
            compute=partial(_on_rgb, _psnr),
        ),
        Metric(
            name="psnr_y",
            title="PSNR (Y)",
            unit="dB",
            higher_is_better=True,
            recipe=f"{_LUMA}, peak 255, per image",
            reference=True,
            compute=partial(_on_luma, _psnr),
        ),
        Metric(
            name="mse",
            title="MSE (RGB)",
            unit="",
            higher_is_better=False,
            recipe="RGB, all pixels, range 0..1, per image",
            reference=True,
            compute=partial(_on_rgb, _mse),
        ),
        Metric(
            name="ssim",
            title="SSIM (RGB)",
            unit="",
            higher_is_better=True,
            recipe=f"RGB, mean of channels, {_SSIM}",
            reference=True,
            compute=partial(_on_rgb, _ssim),
        ),
        Metric(
            name="ssim_y",
            title="SSIM (Y)",
            unit="",
            higher_is_better=True,
            recipe=f"{_LUMA}, {_SSIM}",
            reference=True,
            compute=partial(_on_luma, _ssim),
        ),
        Metric(
            name="lpips_alex",
            title="LPIPS (AlexNet)",
            unit="",
            higher_is_better=False,
            recipe=_lpips_recipe("alex"),
            reference=True,
            compute=partial(_lpips, "alex"),
        ),
        Metric(
            name="lpips_vgg",
            title="LPIPS (VGG16)",
            unit="",
            higher_is_better=False,
            recipe=_lpips_recipe("vgg"),
            reference=True,
            compute=partial(_lpips, "vgg"),
        ),
        Metric(
            name="lr_mse",
            title="Consistency (MSE)",
            unit="",
            higher_is_better=False,
            recipe=f"{_LOW}, mean squared error",
            reference=False,
            compute=_lr_mse,
        ),
        Metric(
            name="lr_psnr",
            title="Consistency (PSNR)",
            unit="dB",
            higher_is_better=True,
            recipe=f"{_LOW}, peak 1, per image",
            reference=False,
            compute=_lr_psnr,
        ),
        Metric(
            name="sharpness",
            title="Sharpness",
            unit="",
            higher_is_better=None,
            recipe=_SHARPNESS,
            reference=False,
            compute=_sharpness,
        ),
    )
}


def preflight(names: Iterable[str]) -> None:
    """Make sure that the weights of the metrics `names` are at hand, before anything is computed.

    Raises:
        WeightsError: some are not and cannot be fetched.
    """
    for name in sorted(names):
        if name.startswith("lpips_"):
            weights.resolve(BACKBONES[name.removeprefix("lpips_")][0])
