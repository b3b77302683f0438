"""Degradations of many steps, as photos meet them outside the laboratory: two published chains, old prints, cameras.

Each takes an (H, W, 3) float64 image in [0, 1], its strength in (0, 1] and a generator, and returns such an image of
the same size, which may leave [0, 1]. What is drawn from a range is moved towards what changes nothing: at strength s
it is n + s (drawn - n), where n is no blur, no noise, quality 100, factor 1. So severity 5, strength 1, has the ranges
whole, in pixels of the image itself, and severity v has v / 5 of them; probabilities do not change.

`real_esrgan` has the ranges of Real-ESRGAN (Wang et al. 2021, arXiv 2107.10833, its x4plus configuration) and `bsrgan`
those of BSRGAN (Zhang et al. 2021, arXiv 2103.14006) with a scale factor of 1, for the image already has its final
size. They differ from the papers in this: resizing is the product's own (antialiased); the Poisson noise of
Real-ESRGAN counts 255 photons at full scale; BSRGAN's resizing brings the image back at a later place of the shuffled
order, without its shifted kernel; its camera is a Bayer mosaic in linear light instead of recorded camera profiles.
`old_photo` has the blur, resizing and JPEG ranges of Wan et al. 2020 (arXiv 2004.09484); grain, fading, stains and
scratches are drawn by rules of our own. `camera_blur` is our own.
"""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from scipy import ndimage, special

from harness.corruptions import Float, Parameters, filtered, jpeg_compression
from harness.metrics import GREY
from harness.resize import resize

Range = tuple[float, float]
STRENGTHS: tuple[Parameters, ...] = ((0.2,), (0.4,), (0.6,), (0.8,), (1.0,))
"""The parameters of severities 1 to 5 of each degradation."""
GAMMA = 2.2
KINDS = ("gaussian", "generalised", "plateau")
SEPIA = np.array([1.0, 0.88, 0.66])
"""The colour of white paper that has yellowed."""
BAYER = np.array([[0, 1], [1, 2]])
"""Which of R, G and B a sensor's pixel sees."""


def real_esrgan(image: Float, parameters: Parameters, rng: Generator) -> Float:
    """Blur, resize, noise and JPEG, twice, and a ringing filter at the end."""
    (strength,) = parameters
    shape = image.shape
    image = _esrgan_blur(image, (0.2, 3), strength, rng)
    image = _esrgan_resize(image, ((0.2, 0.7, 0.1), (0.15, 1.5)), strength, rng)
    image = _jpeg(_esrgan_noise(image, ((1, 30), (0.05, 3)), strength, rng), (30, 95), strength, rng)
    if rng.random() < 0.8:
        image = _esrgan_blur(image, (0.2, 1.5), strength, rng)
    image = _esrgan_resize(image, ((0.3, 0.4, 0.3), (0.3, 1.2)), strength, rng)
    image = _esrgan_noise(image, ((1, 25), (0.05, 2.5)), strength, rng)
    if rng.random() < 0.5:
        return _ringing(_back(_jpeg(image, (30, 95), strength, rng), shape, rng), strength, rng)
    return _jpeg(_ringing(_back(image, shape, rng), strength, rng), (30, 95), strength, rng)


def bsrgan(image: Float, parameters: Parameters, rng: Generator) -> Float:
    """Two blurs, a resizing and its return, noise, JPEG and a camera in a random order, and JPEG at the end."""
    (strength,) = parameters
    shape = image.shape
    factor = 1 / _toward(1, rng.uniform(1, 2), strength)
    steps: list[Callable[[Float], Float]] = [
        lambda x: _bsrgan_blur(x, strength, rng),
        lambda x: _bsrgan_blur(x, strength, rng),
        lambda x: _resized(x, factor, rng),
        lambda x: _back(x, shape, rng),
        lambda x: _bsrgan_noise(x, strength, rng),
        lambda x: _jpeg(x, (30, 95), strength, rng) if rng.random() < 0.9 else x,
        lambda x: _mosaic(x, strength, rng) if rng.random() < 0.25 else x,
    ]
    order = rng.permutation(7).tolist()
    small, large = sorted((order.index(2), order.index(3)))
    order[small], order[large] = 2, 3
    for index in order:
        image = steps[index](image)
    return _jpeg(image, (30, 95), strength, rng)


def old_photo(image: Float, parameters: Parameters, rng: Generator) -> Float:
    """What became of a print: unsharp and grainy, faded, stained, scratched, and then scanned small as JPEG.

    Blur, small scan and JPEG have a probability of 0.7 each, the loss of colour of 0.1; the others always happen.
    """
    (strength,) = parameters
    if rng.random() < 0.7:
        sigma = strength * rng.uniform(1, 5)
        image = filtered(image, _bell(int(rng.choice((3, 5, 7))), (sigma, sigma)))
    image = _grain(image, strength, rng)
    if rng.random() < 0.1:
        image = _mixed(image, (image @ GREY)[..., None], strength)
    image = _scratched(_stained(_faded(image, strength, rng), strength, rng), strength, rng)
    if rng.random() < 0.7:
        image = _back(_resized(image, _toward(1, rng.uniform(0.5, 1), strength), rng), image.shape, rng)
    return _jpeg(image, (40, 100), strength, rng) if rng.random() < 0.7 else image


def camera_blur(image: Float, parameters: Parameters, rng: Generator) -> Float:
    """A hand that moves or a missed focus, with equal chances, and the noise of the sensor, in linear light.

    The line of the movement, or the disk of the focus, is up to an eighth of the longer side across; a full pixel holds
    500 / strength electrons, and reading adds up to 0.01 of full scale.
    """
    (strength,) = parameters
    across = strength * rng.uniform(0.75, 1) * max(image.shape) / 8
    points = _line(across, rng.uniform(0, np.pi)) if rng.random() < 0.5 else _disk(across / 2)
    return _display(_sensor(filtered(_linear(image), _splat(points)), strength, rng))


DEGRADATIONS = {function.__name__: function for function in (real_esrgan, bsrgan, old_photo, camera_blur)}


def _toward(neutral: float, drawn: float, strength: float) -> float:
    return neutral + strength * (drawn - neutral)


def _mixed(image: Float, changed: Float, strength: float) -> Float:
    return image + strength * (changed - image)


def _jpeg(image: Float, quality: Range, strength: float, rng: Generator) -> Float:
    return jpeg_compression(image, (_toward(100, rng.uniform(*quality), strength),), rng)


def _resized(image: Float, factor: float, rng: Generator) -> Float:
    height, width = (max(1, round(side * factor)) for side in image.shape[:2])
    return resize(image, height, width, str(rng.choice(("box", "bilinear", "bicubic"))))


def _back(image: Float, shape: tuple[int, ...], rng: Generator) -> Float:
    return resize(image, shape[0], shape[1], str(rng.choice(("box", "bilinear", "bicubic"))))


def _normal(kernel: Float) -> Float:
    """A kernel that keeps the brightness."""
    result: Float = kernel / kernel.sum()
    return result


def _squared_distance(side: int, sigmas: Range, angle: float) -> Float:
    """Over a (side, side) grid, how many standard deviations from its middle, squared, along two turned axes."""
    rows, columns = np.mgrid[:side, :side] - side // 2
    along, across = (np.cos(angle) * columns + np.sin(angle) * rows, np.cos(angle) * rows - np.sin(angle) * columns)
    distance: Float = (along / max(sigmas[0], 1e-3)) ** 2 + (across / max(sigmas[1], 1e-3)) ** 2
    return distance


def _bell(side: int, sigmas: Range, angle: float = 0.0) -> Float:
    return _normal(np.exp(-_squared_distance(side, sigmas, angle) / 2))


def _esrgan_blur(image: Float, sigmas: Range, strength: float, rng: Generator) -> Float:
    """One of the six kernels of 7 to 21 pixels, or a ringing one with a probability of 0.1."""
    side = 2 * int(rng.integers(3, 11)) + 1
    if rng.random() < 0.1:
        cutoff = rng.uniform(np.pi / (3 if side < 13 else 5), np.pi)
        return _mixed(image, filtered(image, _ring(side, cutoff)), strength)
    family = rng.choice(6, p=(0.45, 0.25, 0.12, 0.03, 0.12, 0.03))
    pair = strength * rng.uniform(*sigmas, 2)
    wide, high = (pair[0], pair[0]) if family % 2 == 0 else pair
    squared = _squared_distance(side, (wide, high), rng.uniform(-np.pi, np.pi))
    kind = KINDS[family // 2]
    power = {"gaussian": 1.0, "generalised": _beta(0.5, 4, rng), "plateau": _beta(1, 2, rng)}[kind]
    kernel = 1 / (1 + squared**power) if kind == "plateau" else np.exp(-(squared**power) / 2)
    return filtered(image, _normal(kernel))


def _beta(low: float, high: float, rng: Generator) -> float:
    """A shape below or above 1 with equal chances."""
    return rng.uniform(low, 1) if rng.random() < 0.5 else rng.uniform(1, high)


def _ring(side: int, cutoff: float) -> Float:
    """The kernel of a circular low-pass filter: what passes has at most `cutoff` radians a pixel."""
    rows, columns = np.mgrid[:side, :side] - side // 2
    radius = np.hypot(rows, columns)
    radius[side // 2, side // 2] = 1e-6
    return _normal(cutoff * special.j1(cutoff * radius) / (2 * np.pi * radius))


def _ringing(image: Float, strength: float, rng: Generator) -> Float:
    """The last filter of Real-ESRGAN, with a probability of 0.8."""
    side, cutoff = 2 * int(rng.integers(3, 11)) + 1, rng.uniform(np.pi / 3, np.pi)
    return _mixed(image, filtered(image, _ring(side, cutoff)), strength) if rng.random() < 0.8 else image


def _esrgan_resize(image: Float, how: tuple[tuple[float, ...], Range], strength: float, rng: Generator) -> Float:
    """Up, down or neither, by given probabilities, to a factor between the bounds."""
    chances, (low, high) = how
    factor = (rng.uniform(1, high), rng.uniform(low, 1), 1.0)[rng.choice(3, p=chances)]
    return _resized(image, _toward(1, factor, strength), rng)


def _esrgan_noise(image: Float, how: tuple[Range, Range], strength: float, rng: Generator) -> Float:
    """Normal noise (deviation of 255) or scaled Poisson noise with equal chances; grey with a probability of 0.4."""
    deviation, scale = rng.uniform(*how[0]) / 255, rng.uniform(*how[1])
    normal, grey = rng.random() < 0.5, rng.random() < 0.4
    seen = np.clip((image @ GREY)[..., None] if grey else image, 0, 1)
    noise = rng.normal(0, deviation, seen.shape) if normal else scale * (rng.poisson(seen * 255) / 255 - seen)
    return image + strength * noise


def _bsrgan_blur(image: Float, strength: float, rng: Generator) -> Float:
    """A kernel of 7 to 25 pixels, with equal chances two variances of up to 5 or one deviation of up to 2.2."""
    side, angle = 2 * int(rng.integers(3, 13)) + 1, rng.uniform(0, np.pi)
    if rng.random() < 0.5:
        wide, high = strength * np.sqrt(rng.uniform(0, 5, 2))
        return filtered(image, _bell(side, (wide, high), angle))
    sigma = strength * rng.uniform(0, 2.2)
    return filtered(image, _bell(side, (sigma, sigma)))


def _bsrgan_noise(image: Float, strength: float, rng: Generator) -> Float:
    """Normal noise of 2 to 25 of 255, apart in each channel or equal in all, or of a random covariance up to 25²."""
    kind = rng.choice(("colour", "grey", "covariance"), p=(0.4, 0.4, 0.2))
    level = 25.0 if kind == "covariance" else rng.uniform(2, 25)
    noise = rng.normal(0, strength * level / 255, image.shape)
    if kind == "grey":
        noise = noise[..., :1]
    if kind == "covariance":
        turn = np.linalg.qr(rng.normal(size=(3, 3)))[0]
        noise = noise @ (turn * np.sqrt(rng.random(3))) @ turn.T
    return image + noise


def _line(length: float, angle: float) -> Float:
    """Points (row, column) along a line through the origin."""
    along = np.linspace(-length / 2, length / 2, 64)
    return np.outer(along, (np.sin(angle), np.cos(angle)))


def _disk(radius: float) -> Float:
    """Points (row, column) over a disk around the origin."""
    axis = np.linspace(-radius, radius, 33)
    points = np.stack(np.meshgrid(axis, axis), axis=-1).reshape(-1, 2)
    inside: Float = points[np.hypot(points[:, 0], points[:, 1]) <= radius]
    return inside


def _splat(points: Float) -> Float:
    """A kernel that gives each point's weight to the four pixels around it."""
    half = int(np.ceil(np.abs(points).max())) + 1
    axis = np.arange(-half, half + 1)
    rows, columns = (np.maximum(0, 1 - np.abs(axis[:, None] - p)) for p in points.T)
    kernel: Float = rows @ columns.T / len(points)
    return kernel


def _linear(image: Float) -> Float:
    return np.clip(image, 0, 1) ** GAMMA


def _display(light: Float) -> Float:
    return np.clip(light, 0, 1) ** (1 / GAMMA)


def _sensor(light: Float, strength: float, rng: Generator) -> Float:
    """The noise of counting 500 / strength electrons at full scale and of reading them."""
    electrons = 500 / strength
    counted = rng.poisson(np.clip(light, 0, None) * electrons) / electrons
    return counted + rng.normal(0, 0.01 * strength, light.shape)


def _mosaic(image: Float, strength: float, rng: Generator) -> Float:
    """A camera: each pixel sees one colour through a Bayer filter, with the sensor's noise; the others are guessed."""
    light = _sensor(_linear(image), strength, rng)
    height, width, _ = image.shape
    colours = np.tile(BAYER, ((height + 1) // 2, (width + 1) // 2))[:height, :width]
    seen = (colours[..., None] == np.arange(3)).astype(np.float64)
    tent = np.array([[1.0, 2.0, 1.0], [2.0, 4.0, 2.0], [1.0, 2.0, 1.0]])
    weight = filtered(seen, tent)
    guessed = np.divide(filtered(seen * light, tent), weight, out=light.copy(), where=weight > 0)
    return _mixed(image, _display(guessed), strength)


def _grain(image: Float, strength: float, rng: Generator) -> Float:
    """Clumps of silver: grey noise of up to 50 of 255, smoothed, strongest in the mid-tones."""
    noise = ndimage.gaussian_filter(rng.normal(size=image.shape[:2]), rng.uniform(0.4, 0.8), mode="reflect")
    deviation = strength * rng.uniform(5, 50) / 255
    tone = np.clip(image @ GREY, 0, 1)
    grain: Float = deviation * noise / noise.std() * 4 * tone * (1 - tone)
    return image + grain[..., None]


def _faded(image: Float, strength: float, rng: Generator) -> Float:
    """Less contrast, raised blacks, and yellowed paper: at most half the contrast is gone."""
    kept, lift = 1 - strength * rng.uniform(0.25, 0.5), strength * rng.uniform(0.1, 0.25)
    tint = 1 + strength * rng.uniform(0.5, 1) * (SEPIA - 1)
    return (image * kept + lift) * tint


def _stained(image: Float, strength: float, rng: Generator) -> Float:
    """Up to three brown blots, soft and darker at the rim."""
    height, width, _ = image.shape
    rows, columns = np.mgrid[:height, :width]
    for _ in range(int(rng.integers(1, 4))):
        radius = rng.uniform(0.1, 0.3) * max(height, width)
        distance = np.hypot(rows - rng.uniform(0, height), columns - rng.uniform(0, width)) / radius
        cover = 0.3 * (distance < 1) + 0.3 * np.exp(-(((distance - 1) / 0.15) ** 2))
        image = image * (1 - strength * cover[..., None] * (1 - SEPIA / 2))
    return image


def _scratched(image: Float, strength: float, rng: Generator) -> Float:
    """White lines right across, up to one a sixteen pixels of the longer side, about a pixel wide, slightly bent."""
    height, width, _ = image.shape
    most = max(1, round(strength * max(height, width) / 16))
    mask = np.zeros((height, width))
    for _ in range(int(rng.integers(1, most + 1))):
        start, slope, bend = rng.uniform(0, width), rng.uniform(-0.4, 0.4), rng.uniform(-0.2, 0.2)
        down = np.arange(height) / max(height - 1, 1)
        middle = start + (slope * down + bend * down**2) * height
        mask = np.maximum(mask, np.clip(1 - np.abs(np.arange(width) - middle[:, None]), 0, 1))
    return image + strength * mask[..., None] * (1 - image)
