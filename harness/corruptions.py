"""The 15 corruptions of ImageNet-C and its 4 extra ones, on images of any size, drawn from a given generator.

Hendrycks and Dietterich 2019 (arXiv 1903.12261). `SEVERITIES` holds the parameters of their scripts for images of 32
(CIFAR), 64 (Tiny ImageNet) and 224 pixels. A corruption takes an (H, W, 3) float64 image in [0, 1], the parameters and
a generator, and returns such an image, which may leave [0, 1] and is clipped and rounded by its caller.

What differs from their scripts, on purpose:
- results are rounded to 8 bit, where they truncate, and nothing is rounded in between;
- the disk of defocus keeps the image's brightness, where theirs adds 1 % at radii of 8 and 10;
- sides that are not equal are treated each by its own length, and fog is drawn as large as it has to be;
- motion blur (also that of snow) takes whole pixels along a line, as ImageMagick does, with the border repeated;
- frost is a drawn texture with the mean and contrast of their photographs, which are not part of this project;
- the rims of spattered water are those of the drops themselves, where they look for them by Canny's method;
- elastic bends and displaces in one resampling, and its lengths are shares of the longer side, not of a fixed one.
Kept as in the published data: glass copies a neighbour's colour (the two are not exchanged), saturate makes grey pixels
reddish where it adds, and the first severities of elastic at 32 and 64 pixels only bend.
"""

import io
from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from scipy import ndimage

from harness.metrics import GREY
from harness.resize import resize, to_uint8

Float = NDArray[np.float64]
Parameters = tuple[float, ...]
Corruption = Callable[[Float, Parameters, Generator], Float]

FROST_TINT = np.array([0.89, 1.01, 1.09])
FROST_LEVEL = (0.4, 0.82)
"""Mean of a frost texture, of full scale: the range over the five photographs that the original draws from."""
FROST_CONTRAST = 0.09
WATER = np.array([175, 238, 238]) / 255
MUD = np.array([63, 42, 20]) / 255
RIM = 20
"""Pixels from the rim of a drop, over which the light on spattered water changes."""
EMBOSS = np.array([[-2.0, -1.0, 0.0], [-1.0, 1.0, 1.0], [0.0, 1.0, 2.0]])


def gaussian_noise(image: Float, parameters: Parameters, rng: Generator) -> Float:
    """Normal noise; (standard deviation of full scale)."""
    return image + rng.normal(0.0, parameters[0], image.shape)


def shot_noise(image: Float, parameters: Parameters, rng: Generator) -> Float:
    """Poisson noise; (photons at full scale)."""
    (photons,) = parameters
    return rng.poisson(image * photons) / photons


def impulse_noise(image: Float, parameters: Parameters, rng: Generator) -> Float:
    """Black and white values in equal numbers; (share of values)."""
    hit, white = rng.random(image.shape) < parameters[0], rng.random(image.shape) < 0.5
    return np.where(hit, white, image)


def speckle_noise(image: Float, parameters: Parameters, rng: Generator) -> Float:
    """Normal noise in proportion to the image; (standard deviation)."""
    return image + image * rng.normal(0.0, parameters[0], image.shape)


def gaussian_blur(image: Float, parameters: Parameters, rng: Generator) -> Float:  # noqa: ARG001 - draws nothing
    """(Standard deviation in pixels)."""
    return _smooth(image, parameters[0])


def defocus_blur(image: Float, parameters: Parameters, rng: Generator) -> Float:  # noqa: ARG001 - draws nothing
    """The mean over a disk; (its radius, the standard deviation that smooths its rim), in pixels."""
    radius, rim = parameters
    reach = 1 if radius <= 8 else 2
    axis = np.arange(-int(radius) - reach, int(radius) + reach + 1)
    disk = (axis[:, None] ** 2 + axis**2 <= radius**2).astype(np.float64)
    weights = np.exp(-(np.arange(-reach, reach + 1) ** 2) / (2 * rim**2))
    disk = ndimage.correlate(disk, np.outer(weights, weights), mode="constant")
    return filtered(image, disk / disk.sum())


def glass_blur(image: Float, parameters: Parameters, rng: Generator) -> Float:
    """Pixels take the colour of one nearby, between two blurs; (standard deviation, reach in pixels, passes)."""
    sigma, reach, passes = parameters[0], int(parameters[1]), int(parameters[2])
    height, width, _ = image.shape
    rows, columns = range(height - reach, reach, -1), range(width - reach, reach, -1)
    source = np.arange(height * width).tolist()
    for _ in range(passes):
        jumps = rng.integers(-reach, reach, (len(rows) * len(columns), 2)) @ (1, width)
        places = np.add.outer(np.array(rows, int) * width, np.array(columns, int)).ravel()
        for place, near in zip(places.tolist(), (places + jumps).tolist(), strict=True):
            source[place] = source[near]  # in turn: a colour may travel
    shuffled = _smooth(image, sigma).reshape(-1, 3)[source]
    return _smooth(shuffled.reshape(image.shape), sigma)


def motion_blur(image: Float, parameters: Parameters, rng: Generator) -> Float:
    """Half a Gaussian along a line at up to 45 degrees; (radius in pixels, standard deviation)."""
    radius, sigma = parameters
    return _streaked(image, radius, sigma, rng.uniform(-45, 45))


def zoom_blur(image: Float, parameters: Parameters, rng: Generator) -> Float:  # noqa: ARG001 - draws nothing
    """The mean of the image and of enlargements of its middle; (where the factors end, their step)."""
    end, step = parameters
    factors = np.arange(1, end, step)
    return (image + sum(_zoomed(image, factor) for factor in factors)) / (len(factors) + 1)


def snow(image: Float, parameters: Parameters, rng: Generator) -> Float:
    """Flakes that fall in both directions over a whitened image.

    (Mean and standard deviation of the noise, its enlargement, threshold, radius and standard deviation of the fall,
    share of the image that is not whitened).
    """
    mean, deviation, factor, threshold, radius, sigma, kept = parameters
    noise = _zoomed(rng.normal(mean, deviation, (*image.shape[:2], 1)), factor)
    flakes = np.where(noise < threshold, 0.0, np.minimum(noise, 1))
    fallen = _streaked(flakes, radius, sigma, rng.uniform(-135, -45))
    white = np.maximum(image, (image @ GREY)[..., None] * 1.5 + 0.5)
    result: Float = kept * image + (1 - kept) * white + fallen + fallen[::-1, ::-1]
    return result


def frost(image: Float, parameters: Parameters, rng: Generator) -> Float:
    """Ice before the image: needles on a slowly changing ground, bluish; (share of the image, of the ice)."""
    shape = (*image.shape[:2], 1)
    needles = _streaked(rng.normal(size=shape) ** 2, 2, 1.0, rng.uniform(-180, 180))
    ground = _plasma(image.shape, 1.7, rng)[..., None]
    texture = needles / needles.std() + ground / ground.std()
    texture = FROST_CONTRAST * (texture - texture.mean()) / texture.std() + rng.uniform(*FROST_LEVEL)
    result: Float = parameters[0] * image + parameters[1] * texture * FROST_TINT
    return result


def fog(image: Float, parameters: Parameters, rng: Generator) -> Float:
    """A cloud added, and all scaled back to the image's maximum; (strength, decay of the cloud's detail)."""
    strength, decay = parameters
    most = image.max()
    result: Float = (image + strength * _plasma(image.shape, decay, rng)[..., None]) * most / (most + strength)
    return result


def spatter(image: Float, parameters: Parameters, rng: Generator) -> Float:
    """Drops of water or mud.

    (Mean and standard deviation of the noise, its blur, threshold, strength of water or blur of mud, 0 water or 1 mud).
    """
    mean, deviation, blur, threshold, strength, mud = parameters
    noise = rng.normal(mean, deviation, image.shape[:2])
    liquid = ndimage.gaussian_filter(noise, blur, mode="nearest")
    wet = liquid >= threshold
    if not wet.any():
        return image
    if mud:
        cover = ndimage.gaussian_filter(wet.astype(np.float64), strength, mode="nearest")[..., None]
        return np.where(cover < 0.8, image, (1 - cover) * image + cover * MUD)
    shine = np.where(wet, liquid, 0.0) * _light(wet)
    result: Float = image + WATER * strength * (shine / max(shine.max(), 1e-9))[..., None]
    return result


def brightness(image: Float, parameters: Parameters, rng: Generator) -> Float:  # noqa: ARG001 - draws nothing
    """Raises the value of HSV; (by what, of full scale)."""
    value = image.max(axis=2, keepdims=True)
    raised = np.minimum(value + parameters[0], 1)
    result: Float = np.where(value > 0, image * raised / np.where(value > 0, value, 1), raised)
    return result


def contrast(image: Float, parameters: Parameters, rng: Generator) -> Float:  # noqa: ARG001 - draws nothing
    """Moves all pixels towards their mean colour; (what is left of their distance)."""
    mean = image.mean(axis=(0, 1))
    result: Float = (image - mean) * parameters[0] + mean
    return result


def saturate(image: Float, parameters: Parameters, rng: Generator) -> Float:  # noqa: ARG001 - draws nothing
    """Changes the saturation of HSV; (factor, summand)."""
    value = image.max(axis=2, keepdims=True)
    chroma = value - image.min(axis=2, keepdims=True)
    saturation = np.clip(chroma / np.where(value > 0, value, 1) * parameters[0] + parameters[1], 0, 1)
    hue = np.where(chroma > 0, (value - image) / np.where(chroma > 0, chroma, 1), (0, 1, 1))  # grey counts as red
    result: Float = value * (1 - saturation * hue)
    return result


def jpeg_compression(image: Float, parameters: Parameters, rng: Generator) -> Float:  # noqa: ARG001 - draws nothing
    """JPEG with the colours at half the resolution; (quality, 1 to 100)."""
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(to_uint8(image * 255)).save(file, "JPEG", quality=round(parameters[0]))
    return np.asarray(Image.open(file).convert("RGB")) / 255


def pixelate(image: Float, parameters: Parameters, rng: Generator) -> Float:  # noqa: ARG001 - draws nothing
    """Made small and large again without smoothing; (factor of the sides)."""
    height, width, _ = image.shape
    small = resize(image, max(1, int(height * parameters[0])), max(1, int(width * parameters[0])), "box")
    return resize(small, height, width, "box")


def elastic_transform(image: Float, parameters: Parameters, rng: Generator) -> Float:
    """Bends and displaces.

    (Displacement, the blur of its field, how far the three corners of a triangle move), shares of the longer side.
    """
    height, width, _ = image.shape
    size, smooth, bend = (max(height, width) * p for p in parameters)
    centre, arm = np.array([height // 2, width // 2]), min(height, width) // 3
    corners = centre + np.array([(1, 1), (-1, 1), (-1, -1)]) * max(arm, 1)
    homogeneous = np.column_stack([corners + rng.uniform(-bend, bend, (3, 2)), np.ones(3)])
    affine = np.linalg.lstsq(homogeneous, corners, rcond=None)[0]
    fields = [rng.uniform(-1, 1, (height, width)) for _ in "xy"]
    across, down = (size * ndimage.gaussian_filter(field, smooth, mode="reflect", truncate=3) for field in fields)
    rows, columns = np.mgrid[:height, :width] + np.stack([down, across])
    places = np.moveaxis(np.stack([rows, columns, np.ones_like(rows)], axis=-1) @ affine, -1, 0)
    return np.stack([ndimage.map_coordinates(c, places, order=1, mode="reflect") for c in image.T.swapaxes(1, 2)], -1)


def filtered(image: Float, kernel: Float) -> Float:
    """An (H, W, C) image under a kernel of odd sides, mirrored beyond its border."""
    result: Float = ndimage.correlate(image, kernel[..., None], mode="mirror")
    return result


def _smooth(image: Float, sigma: float) -> Float:
    result: Float = ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest")
    return result


def _streaked(image: Float, radius: float, sigma: float, degrees: float) -> Float:
    """Each pixel is a weighted mean of those on a line of 2 radius + 1 pixels that begins at it."""
    height, width, _ = image.shape
    taps = np.arange(2 * int(radius) + 1)
    weights = np.exp(-(taps**2) / (2 * sigma**2))
    angle = np.deg2rad(degrees)
    offsets = np.ceil(np.outer(taps, (np.sin(angle), np.cos(angle))) - 0.5).astype(int) + taps[-1]
    padded = np.pad(image, ((taps[-1], taps[-1]), (taps[-1], taps[-1]), (0, 0)), mode="edge")
    moved = (w * padded[y : y + height, x : x + width] for w, (y, x) in zip(weights, offsets, strict=True))
    return np.asarray(sum(moved) / weights.sum())


def _zoomed(image: Float, factor: float) -> Float:
    """The middle of an image, enlarged linearly to the size of the whole."""
    rows, columns = (_enlarging(side, factor) for side in image.shape[:2])
    result: Float = np.einsum("ai,ijc,bj->abc", rows, image, columns, optimize=True)
    return result


def _enlarging(side: int, factor: float) -> Float:
    """The matrix that enlarges the middle of a line of `side` pixels, first on first and last on last, and crops it."""
    part = int(np.ceil(side / factor))
    large = round(part * factor)
    places = (side - part) // 2 + np.linspace(0, part - 1, large)[(large - side) // 2 :][:side]
    weight: Float = np.maximum(0.0, 1 - np.abs(places[:, None] - np.arange(side)))
    return weight


def _plasma(shape: tuple[int, ...], decay: float, rng: Generator) -> Float:
    """A cloud in [0, 1] of the first two sides of `shape`: the diamond-square method, the square's edges joined."""
    side = 2
    while side < max(shape[:2]):
        side *= 2
    heights, swing, step = np.zeros((side, side)), 1.0, side
    while step > 1:
        half = step // 2
        corners, middles = heights[::step, ::step], heights[half::step, half::step]
        beside = corners + np.roll(corners, -1, 0)
        middles[:] = _wobble(beside + np.roll(beside, -1, 1), swing, rng)
        beside = middles + np.roll(middles, 1, 0) + corners + np.roll(corners, -1, 1)
        heights[::step, half::step] = _wobble(beside, swing, rng)
        beside = middles + np.roll(middles, 1, 1) + corners + np.roll(corners, -1, 0)
        heights[half::step, ::step] = _wobble(beside, swing, rng)
        step, swing = half, swing / decay**2
    cloud: Float = (heights - heights.min()) / np.ptp(heights)
    return cloud[: shape[0], : shape[1]]


def _wobble(four: Float, swing: float, rng: Generator) -> Float:
    """The mean of four neighbours, given as their sum, and a uniform deviation."""
    return four / 4 + swing * rng.uniform(-1, 1, four.shape)


def _light(wet: NDArray[np.bool_]) -> Float:
    """How light falls on drops: their distance from the rim, equalised and embossed; 0 to 255."""
    inner = wet & ~ndimage.binary_erosion(wet, border_value=1)
    distance = np.minimum(ndimage.distance_transform_edt(~inner), RIM) if inner.any() else np.zeros(wet.shape)
    levels = ndimage.uniform_filter(distance, 3, mode="mirror").astype(np.uint8)  # few on purpose: they make the facets
    below = np.cumsum(np.bincount(levels.ravel(), minlength=256))
    lowest = below[levels.min()]
    equal = 255.0 * (below[levels] - lowest) / max(levels.size - lowest, 1)
    embossed = np.clip(ndimage.correlate(equal, EMBOSS, mode="mirror"), 0, 255)
    result: Float = ndimage.uniform_filter(embossed, 3, mode="mirror")
    return result


CORRUPTIONS: dict[str, Corruption] = {
    function.__name__: function
    for function in (
        *(gaussian_noise, shot_noise, impulse_noise, defocus_blur, glass_blur, motion_blur, zoom_blur, snow, frost),
        *(fog, brightness, contrast, elastic_transform, pixelate, jpeg_compression),
        *(speckle_noise, gaussian_blur, spatter, saturate),
    )
}
"""The 15 corruptions of ImageNet-C, in its order, and then the 4 extra ones."""
MOVES_PIXELS = frozenset({"glass_blur", "zoom_blur", "elastic_transform"})
"""What shifts edges, so that a comparison with the ground truth pixel by pixel would measure the shift."""
IN_MCE = tuple(name for name in tuple(CORRUPTIONS)[:15] if name not in MOVES_PIXELS)
"""The 12 of the 15 that move no pixels: those of the mean corruption error."""


def _single(*values: float) -> tuple[Parameters, ...]:
    return tuple((value,) for value in values)


SEVERITIES: dict[int, dict[str, tuple[Parameters, ...]]] = {
    32: {
        "gaussian_noise": _single(0.04, 0.06, 0.08, 0.09, 0.10),
        "shot_noise": _single(500, 250, 100, 75, 50),
        "impulse_noise": _single(0.01, 0.02, 0.03, 0.05, 0.07),
        "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
        "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
        "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
        "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        "snow": (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
        ),
        "frost": ((1, 0.2), (1, 0.3), (0.9, 0.4), (0.85, 0.4), (0.75, 0.45)),
        "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
        "brightness": _single(0.05, 0.1, 0.15, 0.2, 0.3),
        "contrast": _single(0.75, 0.5, 0.4, 0.3, 0.15),
        "elastic_transform": (
            (0, 0, 0.08),
            (0.05, 0.2, 0.07),
            (0.08, 0.06, 0.06),
            (0.1, 0.04, 0.05),
            (0.1, 0.03, 0.03),
        ),
        "pixelate": _single(0.95, 0.9, 0.85, 0.75, 0.65),
        "jpeg_compression": _single(80, 65, 58, 50, 40),
        "speckle_noise": _single(0.06, 0.1, 0.12, 0.16, 0.2),
        "gaussian_blur": _single(0.4, 0.6, 0.7, 0.8, 1),
        "spatter": (
            (0.62, 0.1, 0.7, 0.7, 0.5, 0),
            (0.65, 0.1, 0.8, 0.7, 0.5, 0),
            (0.65, 0.3, 1, 0.69, 0.5, 0),
            (0.65, 0.1, 0.7, 0.69, 0.6, 1),
            (0.65, 0.1, 0.5, 0.68, 0.6, 1),
        ),
        "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
    },
    64: {
        "gaussian_noise": _single(0.04, 0.08, 0.12, 0.15, 0.18),
        "shot_noise": _single(250, 100, 50, 30, 15),
        "impulse_noise": _single(0.01, 0.02, 0.05, 0.08, 0.14),
        "defocus_blur": ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
        "glass_blur": ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
        "motion_blur": ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
        "zoom_blur": ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01)),
        "snow": (
            (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
            (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
            (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
            (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
            (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
        ),
        "frost": ((1, 0.3), (0.9, 0.4), (0.8, 0.45), (0.75, 0.5), (0.7, 0.55)),
        "fog": ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
        "brightness": _single(0.1, 0.2, 0.3, 0.4, 0.5),
        "contrast": _single(0.4, 0.3, 0.2, 0.1, 0.05),
        "elastic_transform": (
            (0, 0, 0.08),
            (0.05, 0.3, 0.06),
            (0.1, 0.08, 0.06),
            (0.1, 0.03, 0.03),
            (0.16, 0.03, 0.02),
        ),
        "pixelate": _single(0.9, 0.8, 0.7, 0.6, 0.5),
        "jpeg_compression": _single(65, 58, 50, 40, 25),
        "speckle_noise": _single(0.15, 0.2, 0.25, 0.3, 0.35),
        "gaussian_blur": _single(0.5, 0.75, 1, 1.25, 1.5),
        "spatter": (
            (0.62, 0.1, 0.7, 0.7, 0.6, 0),
            (0.65, 0.1, 0.8, 0.7, 0.6, 0),
            (0.65, 0.3, 1, 0.69, 0.6, 0),
            (0.65, 0.1, 0.7, 0.68, 0.6, 1),
            (0.65, 0.1, 0.5, 0.67, 0.6, 1),
        ),
        "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
    },
    224: {
        "gaussian_noise": _single(0.08, 0.12, 0.18, 0.26, 0.38),
        "shot_noise": _single(60, 25, 12, 5, 3),
        "impulse_noise": _single(0.03, 0.06, 0.09, 0.17, 0.27),
        "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
        "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
        "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
        "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
        "snow": (
            (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
            (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
            (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
            (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
            (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
        ),
        "frost": ((1, 0.4), (0.8, 0.6), (0.7, 0.7), (0.65, 0.7), (0.6, 0.75)),
        "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
        "brightness": _single(0.1, 0.2, 0.3, 0.4, 0.5),
        "contrast": _single(0.4, 0.3, 0.2, 0.1, 0.05),
        "elastic_transform": (
            (2, 0.7, 0.1),
            (2, 0.08, 0.2),
            (0.05, 0.01, 0.02),
            (0.07, 0.01, 0.02),
            (0.12, 0.01, 0.02),
        ),
        "pixelate": _single(0.6, 0.5, 0.4, 0.3, 0.25),
        "jpeg_compression": _single(25, 18, 15, 10, 7),
        "speckle_noise": _single(0.15, 0.2, 0.35, 0.45, 0.6),
        "gaussian_blur": _single(1, 2, 3, 4, 6),
        "spatter": (
            (0.65, 0.3, 4, 0.69, 0.6, 0),
            (0.65, 0.3, 3, 0.68, 0.6, 0),
            (0.65, 0.3, 2, 0.68, 0.5, 0),
            (0.65, 0.3, 1, 0.65, 1.5, 1),
            (0.67, 0.4, 1, 0.65, 1.5, 1),
        ),
        "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
    },
}
"""Column (the side of the images that it is for) -> corruption -> the parameters of severities 1 to 5."""


def column_of(side: int) -> int:
    """The column for an image whose longer side has so many pixels: the first that is not smaller, else the last."""
    return next((column for column in SEVERITIES if side <= column), 224)
