"""Skin tone of a face and its shift from photo to output, always paired: ITA of one uncontrolled photo is no trait.

Colours are CIELAB under D65 of sRGB (IEC 61966-2-1), the median over a fixed patch of the cheeks and the nose. A mask
by colour would leave dark skin out. The patch fits faces that are aligned and cropped as in UTKFace; of a face in
profile, as FairFace has some, part of it is background.

ITA     atan2(L* - 50, b*) in degrees; undefined near grey, b* <= `GREY`
dE      CIE 1976 distance of Lab, for shifts
Monk    the nearest of the ten swatches of the Monk scale by CIEDE2000 (Sharma et al. 2005), with the margin to the next
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import linregress, t

from harness.set_measures import Estimate

Float = NDArray[np.float64]
Images = NDArray[np.uint8]

ROWS, COLUMNS = (0.40, 0.54), (0.27, 0.73)
"""The patch, as fractions of the height and of the width: below the eyes, above the mouth, both cheeks and the nose."""
MONK = "f6ede4 f3e7db f7ead0 eadaba d7bd96 a07e56 825c43 604134 3a312a 292420"
"""sRGB of the Monk scale, tones 1 to 10."""
GREY = 1.0
"""b* up to which ITA is not defined."""

RECIPE = (
    f"median CIELAB (D65) over rows {ROWS[0]:g} to {ROWS[1]:g}, columns {COLUMNS[0]:g} to {COLUMNS[1]:g} of the image; "
    f"ITA where b* > {GREY:g}; Monk tone by CIEDE2000"
)

TO_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
WHITE = TO_XYZ.sum(axis=1)


def lab(images: Images) -> Float:
    """CIELAB (..., 3) under D65 of sRGB (..., 3) uint8: L* in 0..100, a*, b*; greys have a* = b* = 0."""
    v = images / 255
    linear = np.where(v <= 0.04045, v / 12.92, ((v + 0.055) / 1.055) ** 2.4)
    t = linear @ (TO_XYZ / WHITE[:, None]).T
    f = np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29)
    x, y, z = np.moveaxis(f, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


def ciede2000(first: Float, second: Float) -> Float:
    """CIEDE2000 of Lab colours (..., 3), broadcast; equations 2 to 22 of Sharma et al. 2005, weights 1."""
    (l1, a1, b1), (l2, a2, b2) = (np.moveaxis(c, -1, 0) for c in (first, second))
    mean = (np.hypot(a1, b1) + np.hypot(a2, b2)) / 2
    g = 1.5 - 0.5 * np.sqrt(mean**7 / (mean**7 + 25.0**7))
    c1, c2 = np.hypot(g * a1, b1), np.hypot(g * a2, b2)
    h1, h2 = (np.degrees(np.arctan2(b, g * a)) % 360 for a, b in ((a1, b1), (a2, b2)))
    turn = (h2 - h1 + 180) % 360 - 180
    turn = np.where(c1 * c2 == 0, 0, np.where(turn == -180, h2 - h1, turn))
    h = np.where(c1 * c2 == 0, h1 + h2, _mean_hue(h1, h2))
    dh = 2 * np.sqrt(c1 * c2) * np.sin(np.radians(turn / 2))
    return _weighted(l2 - l1, c2 - c1, dh, np.stack([(l1 + l2) / 2, (c1 + c2) / 2, h]))


def _mean_hue(h1: Float, h2: Float) -> Float:
    total: Float = h1 + h2
    return np.where(np.abs(h1 - h2) <= 180, total, np.where(total < 360, total + 360, total - 360)) / 2


def _weighted(dl: Float, dc: Float, dh: Float, means: Float) -> Float:
    """The distance from differences of lightness, chroma and hue, and their means (3, ...); hues in degrees."""
    lightness, c, h = means
    cosines = [np.cos(np.radians(angle)) for angle in (h - 30, 2 * h, 3 * h + 6, 4 * h - 63)]
    hues = 1 + np.tensordot([-0.17, 0.24, 0.32, -0.20], np.stack(cosines), 1)
    sl = dl / (1 + 0.015 * (lightness - 50) ** 2 / np.sqrt(20 + (lightness - 50) ** 2))
    sc, sh = dc / (1 + 0.045 * c), dh / (1 + 0.015 * c * hues)
    rotation = 2 * np.sqrt(c**7 / (c**7 + 25.0**7)) * np.sin(np.radians(60 * np.exp(-(((h - 275) / 25) ** 2))))
    distance: Float = np.sqrt(sl**2 + sc**2 + sh**2 - rotation * sc * sh)
    return distance


def skin_readings(images: Images) -> pd.DataFrame:
    """Skin of faces (N, H, W, 3): L, a, b, ita in degrees, monk in 1..10, monk_margin.

    ita is NaN where b <= `GREY`; monk_margin is how much further, in CIEDE2000, the second-nearest tone is.
    """
    colours = np.array([np.median(lab(_patch(image)).reshape(-1, 3), axis=0) for image in images]).reshape(-1, 3)
    distances = ciede2000(colours[:, None], monk_tones())
    nearest = np.sort(distances, axis=1)
    table = pd.DataFrame(colours, columns=["L", "a", "b"])
    table["ita"] = ita(colours)
    return table.assign(monk=distances.argmin(axis=1) + 1, monk_margin=nearest[:, 1] - nearest[:, 0])


def _patch(image: Images) -> Images:
    height, width = image.shape[:2]
    rows, columns = (slice(*(round(end * side) for end in ends)) for ends, side in ((ROWS, height), (COLUMNS, width)))
    return image[rows, columns]


def ita(colours: Float) -> Float:
    """Individual typology angle, degrees, of Lab colours (..., 3); NaN where b* <= `GREY`."""
    angle = np.degrees(np.arctan2(colours[..., 0] - 50, colours[..., 2]))
    return np.where(colours[..., 2] > GREY, angle, np.nan)


def monk_tones() -> Float:
    """Lab of the ten Monk tones, (10, 3)."""
    return lab(np.array([list(bytes.fromhex(tone)) for tone in MONK.split()], np.uint8))


def skin_shift(photos: pd.DataFrame, outputs: pd.DataFrame) -> pd.DataFrame:
    """From readings of one index: skin_dl, skin_da, skin_db, skin_dita (degrees), skin_de, monk_shift (+ is darker).

    skin_dita is NaN where one of the two has no ITA: count those.
    """
    difference = outputs - photos
    shift = difference[["L", "a", "b", "ita"]].set_axis(["skin_dl", "skin_da", "skin_db", "skin_dita"], axis=1)
    de = np.sqrt(np.square(shift[["skin_dl", "skin_da", "skin_db"]]).sum(axis=1))
    return shift.assign(skin_de=de, monk_shift=difference["monk"])


def regression_to_the_mean(shift: pd.Series, lightness: pd.Series) -> Estimate:
    """Least-squares slope of dL* on the photo's L* with its 95 % interval (normal errors); negative towards the mean.

    NaN for fewer than 3 images, or where all have the same lightness.
    """
    n = len(shift)
    if n < 3 or lightness.nunique() < 2:
        return Estimate(np.nan, np.nan, np.nan, n)
    fit = linregress(lightness, shift)
    half = t.ppf(0.975, n - 2) * fit.stderr
    return Estimate(float(fit.slope), float(fit.slope - half), float(fit.slope + half), n)
