"""Skin tone of a face and its shift from photo to output, always paired: ITA of one uncontrolled photo is no trait.

Colours are CIELAB (see `harness.cielab`), the median over a fixed patch of the cheeks and the nose. A mask
by colour would leave dark skin out. The patch fits faces that are aligned and cropped as in UTKFace; of a face in
profile, as FairFace has some, part of it is background.

ITA     atan2(L* - 50, b*) in degrees; undefined near grey, b* <= `GREY`
dE      CIE 1976 distance of Lab, for shifts
Monk    the nearest of the ten swatches of the Monk scale by CIEDE2000, with the margin to the next
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import linregress, t

from harness.cielab import delta_e, monk_lab, to_lab
from harness.set_measures import Estimate

Float = NDArray[np.float64]
Images = NDArray[np.uint8]

ROWS, COLUMNS = (0.40, 0.54), (0.27, 0.73)
"""The patch, as fractions of the height and of the width: below the eyes, above the mouth, both cheeks and the nose."""
GREY = 1.0
"""b* up to which ITA is not defined."""

RECIPE = (
    f"median CIELAB (D65) over rows {ROWS[0]:g} to {ROWS[1]:g}, columns {COLUMNS[0]:g} to {COLUMNS[1]:g} of the image; "
    f"ITA where b* > {GREY:g}; Monk tone by CIEDE2000"
)


def skin_readings(images: Images) -> pd.DataFrame:
    """Skin of faces (N, H, W, 3): L, a, b, ita in degrees, monk in 1..10, monk_margin.

    ita is NaN where b <= `GREY`; monk_margin is how much further, in CIEDE2000, the second-nearest tone is.
    """
    colours = np.array([np.median(to_lab(_patch(image)).reshape(-1, 3), axis=0) for image in images]).reshape(-1, 3)
    distances = delta_e(colours[:, None], monk_lab())
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
