"""Finding the face in a photo: dlib's frontal detector and its five landmarks, and the aligned chip they give.

The detector looks for faces of about 80 pixels and more, so a photo whose shorter side is below `SIDE` is enlarged to
that by the product's bicubic. Of several faces the largest counts. The landmarks' file is dlib's own format, whose
reader is not made for files of strangers: only the pinned one is read.
"""

from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness import weights
from harness.errors import ConfigError
from harness.resize import resize, to_uint8

Image = NDArray[np.uint8]

SIDE = 200
"""Photos with a shorter side are enlarged to this many pixels before a face is looked for."""
LANDMARKS = "shape_predictor_5_face_landmarks.dat"


class Face(NamedTuple):
    """A photo as it was searched, and dlib's five landmarks of the face in it."""

    photo: Image
    landmarks: Any


def find(photo: Image) -> Face | None:
    """The largest face of an (H, W, 3) photo, or None where none is found.

    Raises:
        ConfigError, WeightsError: dlib or the landmarks' weights are not there.
    """
    detector, predictor = _models()
    searched = _enlarged(photo)
    boxes = detector(searched, 0)
    if not boxes:
        return None
    return Face(searched, predictor(searched, max(boxes, key=lambda box: box.area())))


def chip(face: Face, size: int, padding: float) -> Image:
    """The face turned upright and cut out, (size, size, 3); `padding` widens the cut, in parts of its side."""
    dlib = open_dlib()
    cut: Image = dlib.extract_image_chip(face.photo, dlib.get_face_chip_details(face.landmarks, size, padding))
    return np.ascontiguousarray(cut)


def moved(face: Face, photo: Image) -> Face:
    """The same place in another photo of the same size, such as the upscaled output of the one that was searched."""
    return Face(_enlarged(photo), face.landmarks)


def recipe() -> str:
    """All that must agree for two searches to find the same; raises as `find` does."""
    _models()
    return (
        f"faces by dlib {open_dlib().__version__}'s frontal detector, the largest of several, photos enlarged to "
        f"{SIDE} pixels by bicubic where smaller, five landmarks sha256 {weights.WEIGHTS[LANDMARKS].sha256[:12]}"
    )


def open_dlib() -> Any:  # noqa: ANN401 - dlib has no types
    """The module dlib.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import dlib
    except ImportError:
        raise ConfigError(
            "faces are searched by dlib, which is not installed: pip install 'upscaler-harness[fairness]'"
        ) from None
    return dlib


@lru_cache(maxsize=1)
def _models() -> tuple[Any, Any]:
    dlib = open_dlib()
    return dlib.get_frontal_face_detector(), dlib.shape_predictor(str(weights.resolve(LANDMARKS)))


def _enlarged(photo: Image) -> Image:
    height, width = photo.shape[:2]
    scale = max(1.0, SIDE / min(height, width))
    if scale > 1:
        photo = to_uint8(resize(photo.astype(float), round(height * scale), round(width * scale)))
    return np.ascontiguousarray(photo)
