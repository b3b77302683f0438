"""CIELAB of sRGB images under D65, the colour difference CIEDE2000, and the ten tones of the Monk scale.

sRGB is IEC 61966-2-1; CIELAB is CIE 15 with the white point of D65 and the 2 degree observer; CIEDE2000 is Sharma,
Wu and Dalal 2005 with kL = kC = kH = 1.
"""

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.float64]

MONK = ("f6ede4", "f3e7db", "f7ead0", "eadaba", "d7bd96", "a07e56", "825c43", "604134", "3a312a", "292420")
"""The Monk skin tone scale from tone 1 to tone 10, as sRGB in hexadecimal."""

_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
_XYZ_INVERSE = np.linalg.inv(_XYZ)
_WHITE = _XYZ.sum(axis=1)
_DELTA = 6 / 29


def to_lab(image: NDArray[np.uint8]) -> Float:
    """(..., 3) sRGB of 8 bit to L* (0..100), a* and b*."""
    encoded = image / 255
    linear = np.where(encoded <= 0.04045, encoded / 12.92, ((encoded + 0.055) / 1.055) ** 2.4)
    t = linear @ _XYZ.T / _WHITE
    f = np.where(t > _DELTA**3, np.cbrt(t), t / (3 * _DELTA**2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def from_lab(lab: Float) -> Float:
    """(..., 3) CIELAB to sRGB on the 0..255 scale, neither rounded nor clipped: outside 0..255 is out of gamut."""
    y = (lab[..., 0] + 16) / 116
    f = np.stack([y + lab[..., 1] / 500, y, y - lab[..., 2] / 200], axis=-1)
    t = np.where(f > _DELTA, f**3, 3 * _DELTA**2 * (f - 4 / 29))
    linear = t * _WHITE @ _XYZ_INVERSE.T
    curve = 1.055 * np.maximum(linear, 0.0031308) ** (1 / 2.4) - 0.055
    encoded: Float = 255 * np.where(linear <= 0.0031308, 12.92 * linear, curve)
    return encoded


def monk_lab() -> Float:
    """(10, 3) CIELAB of the Monk scale's swatches."""
    return to_lab(np.array([list(bytes.fromhex(swatch)) for swatch in MONK], np.uint8))


def delta_e(first: Float, second: Float) -> Float:
    """CIEDE2000 between (..., 3) CIELAB colours that broadcast; about 1 is just noticeable."""
    (l1, a1, b1), (l2, a2, b2) = np.moveaxis(first, -1, 0), np.moveaxis(second, -1, 0)
    stretch = 1.5 - 0.5 * _seventh((np.hypot(a1, b1) + np.hypot(a2, b2)) / 2)
    c1, c2 = np.hypot(stretch * a1, b1), np.hypot(stretch * a2, b2)
    h1, h2 = np.arctan2(b1, stretch * a1), np.arctan2(b2, stretch * a2)
    turn = np.where(c1 * c2 == 0, 0.0, (h2 - h1 + np.pi) % (2 * np.pi) - np.pi)
    hue = np.where(c1 * c2 == 0, h1 + h2, h1 + turn / 2)
    lightness, chroma = (l1 + l2) / 2 - 50, (c1 + c2) / 2
    t = 1 - 0.17 * np.cos(hue - np.pi / 6) + 0.24 * np.cos(2 * hue) + 0.32 * np.cos(3 * hue + np.pi / 30)
    t = t - 0.20 * np.cos(4 * hue - np.radians(63))
    dl = (l2 - l1) / (1 + 0.015 * lightness**2 / np.sqrt(20 + lightness**2))
    dc = (c2 - c1) / (1 + 0.045 * chroma)
    dh = 2 * np.sqrt(c1 * c2) * np.sin(turn / 2) / (1 + 0.015 * chroma * t)
    angle = np.radians(60) * np.exp(-(((np.degrees(hue) % 360 - 275) / 25) ** 2))
    difference: Float = np.sqrt(dl**2 + dc**2 + dh**2 - 2 * _seventh(chroma) * np.sin(angle) * dc * dh)
    return difference


def _seventh(chroma: Float) -> Float:
    """The root of C^7 / (C^7 + 25^7), which appears twice in the formula."""
    root: Float = np.sqrt(chroma**7 / (chroma**7 + 25.0**7))
    return root
