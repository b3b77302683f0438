"""Whose face it is: embeddings by dlib's face recognition network (a ResNet, 128 numbers; King 2017, CC0).

It was trained on aligned chips of 150 x 150 pixels. An output is cut where the face is in its target, because a search
fails on blurred ones and would leave out the worst. Two photos of one person lie close together; how close is close
enough has to be measured on pairs of different people of the same data set and size, for it depends on both.
"""

from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from harness import weights
from harness.fairness import faces

WEIGHTS = "dlib_face_recognition_resnet_model_v1.dat"
SIZE = 150
PADDING = 0.25
WIDTH = 128


def embed(images: NDArray[np.uint8], targets: NDArray[np.uint8] | None = None) -> NDArray[np.float32]:
    """(N, 128) embeddings of (N, H, W, 3) photos; rows of NaN where no face is found.

    Faces are looked for in `targets`, if given: photos of the same size that show the same at the same place.

    Raises:
        ConfigError, WeightsError: dlib or the weights are not there.
    """
    searched = images if targets is None else targets
    return np.stack([_embedding(*pair) for pair in zip(images, searched, strict=True)])


def similarity(first: NDArray[np.float32], second: NDArray[np.float32]) -> NDArray[np.float64]:
    """Cosines (N,) of (N, 128) embeddings, row by row; NaN where either is."""
    a, b = first.astype(float), second.astype(float)
    cosines: NDArray[np.float64] = (a * b).sum(axis=1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
    return cosines


def recipe() -> str:
    """All that must agree for two embeddings to be comparable; raises as `embed` does."""
    _network()  # what cannot be used is told before a run, not after
    sha256 = weights.WEIGHTS[WEIGHTS].sha256[:12]
    chips = f"chips of {SIZE} pixels, padding {PADDING}, cut where the target's face is"
    return f"dlib face recognition ResNet sha256 {sha256}, {chips}; {faces.recipe()}"


def _embedding(image: NDArray[np.uint8], searched: NDArray[np.uint8]) -> NDArray[np.float32]:
    face = faces.find(searched)
    if face is None:
        return np.full(WIDTH, np.nan, np.float32)
    chip = faces.chip(faces.moved(face, image), SIZE, PADDING)
    return np.array(_network().compute_face_descriptor(chip), np.float32)


@lru_cache(maxsize=1)
def _network() -> Any:  # noqa: ANN401 - dlib has no types
    return faces.open_dlib().face_recognition_model_v1(str(weights.resolve(WEIGHTS)))
