"""Counterfactual portraits: one face with only its skin tone moved, or only its light.

The edits are made in CIELAB under a soft mask. They are for portraits aligned as the embedded ones are, where the face
fills the picture with the eyes at 28 % and the mouth at 69 % of the height. What an edit changed besides its cue is
measured by `check_edit`, and for whole series by `series_check`.
"""

from collections.abc import Mapping
from functools import partial

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from harness.cielab import delta_e, from_lab, monk_lab, to_lab
from harness.networks import VALUE, Network
from harness.resize import to_uint8

Float = NDArray[np.float64]
Uint8 = NDArray[np.uint8]
Bools = NDArray[np.bool_]
Ellipse = tuple[float, float, float, float]
"""Centre x and y, half-width and half-height, as fractions of the picture's width and height."""

FACE: Ellipse = (0.50, 0.52, 0.44, 0.58)
PATCHES: tuple[Ellipse, ...] = ((0.27, 0.48, 0.10, 0.09), (0.74, 0.48, 0.10, 0.09), (0.50, 0.42, 0.06, 0.10))
"""Both cheeks and the bridge of the nose."""
LEVELS = {"tone": 10, "light": 5}
"""The cues, and how many levels each has, from 1 on: Monk tones, and light that falls ever more from the left."""
STEP = 5.0
"""L* that a level of light adds at the left side of a face of middle grey, and takes at the right."""
BLACK = 12.0
"""L* up to which a pixel is hair, a pupil or a nostril; for dark skin a third of its own L*."""
MARGIN = 8.0
"""L* above that at which a pixel of light skin counts half."""


def skin_patch(shape: tuple[int, ...]) -> Bools:
    """Where the tone of an aligned face is read, (H, W): cheeks and nose."""
    nearest: Float = np.stack([_distance(shape, patch) for patch in PATCHES]).min(axis=0)
    return nearest < 1


def face_region(shape: tuple[int, ...]) -> Float:
    """The face of an aligned portrait and what is in it, (H, W) in 0..1 with a soft edge."""
    return _fade(_distance(shape, FACE), 0.85, 1.15)


def skin_mask(image: Uint8) -> Float:
    """How much of each pixel of an aligned portrait is skin, (H, W) in 0..1.

    Skin lies in the face or beside it (ears, neck), has about the hue of cheeks and nose, and is lighter than black
    and not much lighter than the cheeks. Darker pixels count by how far they are from black, as mixtures of skin and
    hair do, so that an edit leaves no rim. The limits move with the cheeks' own L*: dark skin is as much skin as light.
    """
    lab = gaussian_filter(to_lab(image), (image.shape[0] / 90, image.shape[1] / 90, 0))
    tone = np.median(lab[skin_patch(image.shape)], axis=0)
    over = lab - tone
    hue = _fade(np.hypot(over[..., 1], over[..., 2]), 14, 34)
    glare = _fade(over[..., 0], 20, 45)
    near = _fade(_distance(image.shape, FACE), 1.0, 1.45)
    mask = near * hue * glare * _shade(lab[..., 0], tone[0])
    return np.where(mask < 0.02, 0.0, mask)


def _shade(lightness: Float, skin: float) -> Float:
    """From 0 at black to 1 at the skin's L*; beside the face, where hair is likelier, only near the skin's."""
    black = min(BLACK, skin / 3)
    room = max(skin - black, 1.0)
    above = np.maximum(lightness - black, 0)
    shade = np.minimum(1, above / (above + MARGIN) * (room + MARGIN) / room)
    beside = 1 - _fade(_distance(lightness.shape, FACE), 0.7, 1.1)
    shaded: Float = shade ** (1 + 2 * beside)
    return shaded


def skin_tone(image: Uint8, mask: Float) -> Float:
    """Median L*, a*, b* of the skin on cheeks and nose; `mask` says what is skin."""
    patch = skin_patch(image.shape)
    core = patch & (mask > 0.5)
    median: Float = np.median(to_lab(image)[core if core.any() else patch], axis=0)
    return median


def unevenness(image: Uint8) -> float:
    """How unevenly cheeks and nose are lit: median absolute deviation of L* over its median + 16 (about contrast)."""
    lightness = to_lab(image)[skin_patch(image.shape)][:, 0]
    middle = np.median(lightness)
    return float(np.median(abs(lightness - middle)) / (middle + 16))


def move(image: Uint8, cue: str, level: int) -> Uint8:
    """An (H, W, 3) portrait with its `cue` at `level`, see `LEVELS`."""
    return {"tone": move_tone, "light": move_light}[cue](image, level)


def move_tone(image: Uint8, monk: int) -> Uint8:
    """An (H, W, 3) portrait whose skin has the Monk tone `monk`, 1..10, at its median.

    Small differences in L* from the median are kept, larger ones bent so that they end at white and black;
    differences in hue shrink with the chroma of the tone, and shadows have less chroma, as on real skin.
    """
    lab, mask = to_lab(image), skin_mask(image)
    tone, target = skin_tone(image, mask), monk_lab()[monk - 1]
    over = lab - tone
    room = np.where(over[..., :1] > 0, 100 - target[0], target[0])
    lightness = target[0] + over[..., :1] / (1 + abs(over[..., :1]) / room)
    saturation = np.clip(np.hypot(*target[1:]) / max(np.hypot(*tone[1:]), 1.0), 0.3, 1)
    hue = target[1:] * np.minimum(1, lightness / target[0]) + saturation * over[..., 1:]
    return _blend(image, np.concatenate([lightness, hue], axis=-1), mask)


def move_light(image: Uint8, level: int) -> Uint8:
    """An (H, W, 3) portrait lit from the left: as it is at level 1, with a smooth gradient of L* up to level 5."""
    lab = to_lab(image)
    columns = (np.arange(image.shape[1]) + 0.5) / image.shape[1]
    side = np.sin(np.pi / 2 * np.clip((FACE[0] - columns) / FACE[2], -1, 1))
    headroom = lab[..., 0] * (100 - lab[..., 0]) / 2500  # 1 for middle grey, 0 for black and white: no clipping
    lab[..., 0] += STEP * (level - 1) * side * headroom
    return _blend(image, lab, face_region(image.shape) if level > 1 else np.zeros(image.shape[:2]))


def check_edit(original: Uint8, edited: Uint8, mask: Float, monk: int | None = None) -> dict[str, float]:
    """What an edit under `mask` did.

    outside    largest change where the mask is 0, in levels of 255
    structure  correlation of the gradients of L* before and after, where the mask is above a half: 1 is the same face
    contrast   standard deviation of L* there, after over before
    delta_e    CIEDE2000 from the skin's tone to the swatch of the Monk tone `monk`; NaN without it
    clipped    share of the pixels there that have a channel at 0 or 255, and had none before
    """
    skin = mask > 0.5
    before, after = to_lab(original)[..., 0], to_lab(edited)[..., 0]
    change = abs(edited.astype(int) - original).max(axis=-1)
    gradients = [np.stack(list(np.gradient(lightness)))[:, skin].ravel() for lightness in (before, after)]
    tone = delta_e(skin_tone(edited, mask), monk_lab()[monk - 1]) if monk else np.nan
    return {
        "outside": float(change[mask == 0].max(initial=0)),
        "structure": _correlation(*gradients),
        "contrast": float(after[skin].std() / before[skin].std()),
        "delta_e": float(tone),
        "clipped": float((_clipped(edited) & ~_clipped(original))[skin].mean()),
    }


def series_check(portraits: Mapping[str, Uint8], cue: str, network: Network) -> pd.DataFrame:
    """The check of each edit of some portraits, by their names: one row per base and level.

    Beside `check_edit`: what `network` says of the edit and of the portrait itself, as race_flip and gender_flip
    (True or False) and age_shift in years. A flip of race under a moved tone is a finding about the network.
    """
    frames = [_one_series(image, cue, network).assign(base=name) for name, image in portraits.items()]
    return pd.concat(frames, ignore_index=True)


def _one_series(image: Uint8, cue: str, network: Network) -> pd.DataFrame:
    levels = range(1, LEVELS[cue] + 1)
    edits = [move(image, cue, level) for level in levels]
    mask = skin_mask(image) if cue == "tone" else face_region(image.shape)
    check = partial(check_edit, image, mask=mask)
    rows = [check(edit, monk=level if cue == "tone" else None) for edit, level in zip(edits, levels, strict=True)]
    said = network.predictions(np.stack([image, *edits]))
    frame = pd.DataFrame(rows).assign(level=levels)
    for attribute in ("race", "gender"):
        labels = said[attribute].idxmax(axis=1)
        frame[f"{attribute}_flip"] = (labels[1:] != labels[0]).to_numpy()
    years = said["age"][VALUE]
    return frame.assign(age_shift=(years[1:] - years[0]).to_numpy())


def _correlation(first: Float, second: Float) -> float:
    """Pearson's; 0 where one of them does not vary."""
    first, second = first - first.mean(), second - second.mean()
    norm = np.linalg.norm(first) * np.linalg.norm(second)
    return float(first @ second / norm) if norm else 0.0


def _distance(shape: tuple[int, ...], ellipse: Ellipse) -> Float:
    """How far each pixel is from the centre of an ellipse, (H, W): 1 on its edge."""
    x, y, width, height = ellipse
    rows, columns = ((np.arange(n) + 0.5) / n for n in shape[:2])
    distance: Float = np.hypot((columns[None] - x) / width, (rows[:, None] - y) / height)
    return distance


def _fade(values: Float, start: float, end: float) -> Float:
    """1 up to `start`, 0 from `end` on, smooth between (3t^2 - 2t^3)."""
    t = np.clip((end - values) / (end - start), 0, 1)
    smooth: Float = t * t * (3 - 2 * t)
    return smooth


def _blend(image: Uint8, lab: Float, mask: Float) -> Uint8:
    """The image with as much of the colours `lab` as the mask says; the very same bytes where it is 0."""
    before, weight = to_lab(image), mask[..., None]
    return np.where(weight > 0, to_uint8(from_lab(before + weight * (lab - before))), image)


def _clipped(image: Uint8) -> Bools:
    clipped: Bools = ((image == 0) | (image == 255)).any(axis=-1)
    return clipped
