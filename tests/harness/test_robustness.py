"""Robustness: bicubic is its own unit, planted backends are found out, figures are those of the formulas."""

import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress

from backends.access import OPEN
from backends.base import Batch, Description, Option
from backends.base import Progress as Steps
from backends.server import UpscalerServicer, start
from harness import robustness
from harness.audit import COLUMNS, write_tables
from harness.changes import change, measure_changes, variance
from harness.corruptions import IN_MCE
from harness.plan import Job, plan
from harness.resize import resize
from harness.runner import run
from harness.score import score_run
from harness.scores import Scores
from harness.store import Row, RunFolder
from harness.suite import parse_suite

RNG = np.random.default_rng
GREY = """name: grey
title: noise on grey
photos: {scale: 4, max_pixels: 4096}
metrics: [lr_psnr]
noise: {sigmas: [0.01568627], images: 6, metrics: [lr_psnr]}
"""
FACES = """name: small
title: small
low: 12
high: 48
metrics: [psnr, mse, lr_psnr]
corruptions:
  names: [gaussian_noise, contrast, jpeg_compression, saturate, glass_blur]
  severities: [1, 5]
  images: 20
  metrics: [psnr, mse, lr_psnr]
  seeds: {names: [gaussian_noise], severity: 5, images: 4, samples: 3}
"""
SIGMA = 6.0
"""Of the noise that the stochastic backend adds, in levels of 255."""


class Planted:
    """b + gain (b(x) - b), where b(x) is the float bicubic of the input and b that of mid-grey; with noise of its own.

    With a gain of 0 it ignores its input.
    """

    def __init__(self, *, stochastic: bool = False) -> None:
        gain = Option("gain", 1.0, "how much more than bicubic it answers", minimum=0.0, maximum=9.0)
        self.description = Description(
            name="planted",
            family="other",
            digest="1" * 64 if stochastic else "2" * 64,
            scales=(4,),
            licence="Apache-2.0",
            domain="tests",
            deterministic=not stochastic,
            batch_exact=True,
            options=(gain,),
        )

    def upscale(self, batch: Batch, progress: Steps) -> NDArray[np.floating]:
        """See `Backend.upscale`."""
        _, height, width, _ = batch.images.shape
        away = resize(batch.images - 128.0, 4 * height, 4 * width)
        progress(1, 1)
        own = [RNG(seed).normal(0, SIGMA, away.shape[1:]) for seed in batch.seeds]
        noise = 0.0 if self.description.deterministic else np.stack(own)
        return 128 + float(batch.options["gain"]) * away + noise


@contextmanager
def served(backend: Planted) -> Iterator[str]:
    """The address of a backend over gRPC."""
    server, _, port = start(UpscalerServicer(backend), "127.0.0.1:0", OPEN)
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()


def audited(text: str, photos: Path, out: Path, *backends: str) -> RunFolder:
    """A finished run with its tables."""
    with Progress(disable=True) as progress:
        folder = run(Job(parse_suite(text, "x.yaml"), f"folder:{photos}", backends, out, None, ""), progress)
    write_tables(folder)
    return folder


def table(folder: RunFolder, name: str) -> Any:
    """A stored table (a frame, whose cells may be of any type)."""
    return pd.read_parquet(folder.path / "tables" / f"{name}.parquet")


def only(frame: pd.DataFrame, **wanted: Any) -> Any:
    """The one row that has these values."""
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def test_amplification_is_the_square_of_the_gain(tmp_path: Path) -> None:
    """Photos alone, grey ones under noise of 4 / 255: k squared within 5 % for gains of 1 to 3, bicubic exactly 1."""
    (tmp_path / "photos").mkdir()
    for i in range(6):
        Image.new("RGB", (16, 16), (128, 128, 128)).save(tmp_path / f"photos/grey{i}.png")
    with served(Planted()) as address:
        named = [f"planted@{address},gain={k},name=gain {k}" for k in range(4)]
        folder = audited(GREY, tmp_path / "photos", tmp_path / "run", *named)
    for name in ("amplification", "robustness"):
        found = table(folder, name).set_index("backend")
        assert found.loc["bicubic", ["value", "low", "high"]].tolist() == [1.0, 1.0, 1.0]
        assert found.loc["gain 0", "value"] == 0
        for k in (1, 2, 3):
            value, low, high = found.loc[f"gain {k}", ["value", "low", "high"]]
            assert value == pytest.approx(k**2, rel=0.05)
            assert low <= value <= high


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty smooth pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    for i in range(20):
        coarse = Image.fromarray(RNG(i).integers(40, 216, (6, 6, 3), np.uint8))
        coarse.resize((48, 48), Image.Resampling.BICUBIC).save(folder / f"p{i:02d}.png")
    return folder


@pytest.fixture(scope="module")
def audit(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run of bicubic, of a backend that ignores its input, of a loud one, and of a stochastic one."""
    with ExitStack() as stack:
        plain, noisy = (stack.enter_context(served(Planted(stochastic=s))) for s in (False, True))
        backends = [f"planted@{plain},gain=0,name=blind", f"planted@{plain},gain=2,name=loud", f"noisy@{noisy}"]
        return audited(FACES, pictures, tmp_path_factory.mktemp("runs") / "run", *backends)


def test_bicubic_is_exactly_its_own_unit(audit: RunFolder) -> None:
    """Its mCE, relative mCE, errors and amplification are 1 to the last bit, and what was left out is named."""
    mine = table(audit, "robustness").query("backend == 'bicubic'")
    assert set(mine["measure"]) == {"mce", "relative_mce", "amplification"}
    assert (mine[["value", "low", "high"]] == 1.0).all(axis=None)
    mce = only(mine, measure="mce", metric="mse")
    assert (mce["name"], mce["corruptions"]) == ("mCE over 3 of 12 corruptions", 3)
    assert mce["note"].startswith("severities 1, 5 of 1 to 5; not run: shot_noise, impulse_noise, defocus_blur")
    errors = table(audit, "corruption_errors").query("backend == 'bicubic'")
    assert list(errors["corruption"]) == ["gaussian_noise", "contrast", "jpeg_compression", "saturate"]
    assert (errors[["error", "error_low", "error_high"]] == 1.0).all(axis=None)
    assert (table(audit, "amplification").query("backend == 'bicubic'")["value"] == 1.0).all()


def test_what_ignores_its_input_is_found_out(audit: RunFolder) -> None:
    """It neither degrades nor amplifies, and is worse than bicubic from the clean input on, in consistency too."""
    names = ("amplification", "degradation", "crossings", "corruptions")
    blind = {name: table(audit, name).query("backend == 'blind'") for name in names}
    assert (blind["amplification"]["value"] == 0).all()
    assert (blind["degradation"].query("metric == 'mse'")["area"] == 0).all()
    crossings = blind["crossings"]
    assert (crossings["verdict"] == "worse").all()
    assert (crossings["crossing"] == 0).all()
    assert set(crossings.query("corruption == 'glass_blur'")["metric"]) == {"lr_psnr"}
    assert (blind["corruptions"].query("metric == 'lr_psnr'")["difference_high"] < -3).all()


def test_curves_are_the_means_of_the_stored_scores(audit: RunFolder) -> None:
    """Means, paired differences and the area under a curve are what one computes from the rows by hand."""
    rows = audit.rows().query("metric == 'psnr'")
    means = {
        (label, severity): rows.query(f"backend == '{label}' and condition == '{name}' and severity == {severity}")
        .set_index("image")["value"]
        .sort_index()
        for label in ("bicubic", "loud")
        for name, severity in (("clean", 0), ("contrast", 1), ("contrast", 5))
    }
    level = only(table(audit, "corruptions"), backend="loud", corruption="contrast", metric="psnr", severity=5)
    loud, base = means["loud", 5], means["bicubic", 5]
    assert level["mean"] == pytest.approx(loud.mean())
    assert level["difference"] == pytest.approx((loud - base).mean())
    assert level["added"] == pytest.approx((loud - means["loud", 0]).mean())
    first, last = ((means["loud", s] - means["loud", 0]).mean() for s in (1, 5))
    by_hand = (first / 2 * 1 + (first + last) / 2 * 4) / 5
    row = only(table(audit, "degradation"), backend="loud", corruption="contrast", metric="psnr")
    assert row["area"] == pytest.approx(by_hand)
    assert row["area_low"] <= by_hand <= row["area_high"]


def test_draws_and_seeds_are_told_apart(audit: RunFolder) -> None:
    """A stochastic backend varies by its own noise at one draw, and at one seed as the deterministic one does."""
    found = table(audit, "corruption_seeds").set_index(["backend", "source"])
    draw, seed = "draw of the corruption", "seed of the backend"
    assert found.loc[("noisy", seed), "value"] == pytest.approx(SIGMA**2 / 255**2, rel=0.1)
    assert found.loc[("noisy", draw), "value"] == pytest.approx(found.loc[("bicubic", draw), "value"], rel=0.1)
    assert found.loc[("noisy", draw), ["samples", "n"]].tolist() == [3, 4]
    assert found.loc[("bicubic", seed), "note"] == "deterministic: one output"


def test_tables_come_back_without_a_backend(audit: RunFolder, tmp_path: Path) -> None:
    """With the rows deleted, scoring the stored outputs gives every table of the audit again."""
    folder = RunFolder(shutil.copytree(audit.path, tmp_path / "copy"))
    shutil.rmtree(folder.path / "rows")
    with Progress(disable=True) as progress:
        score_run(folder, progress)
        measure_changes(folder, progress)
        parts = folder.parts("part")
        measure_changes(folder, progress)
    assert folder.parts("part") == parts
    for name, rows in robustness.tables(Scores.of(folder)).items():
        pd.testing.assert_frame_equal(pd.DataFrame(rows, columns=COLUMNS[name].split()), table(audit, name))


def test_variance_and_change_are_those_of_their_names() -> None:
    """Of two images the change is twice the unbiased variance; equal images do not change."""
    images = RNG(1).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
    assert change(images) == pytest.approx(2 * variance(images))
    assert change(images) == pytest.approx(((images[0] / 255 - images[1] / 255) ** 2).mean())
    assert change(images[[0, 0]]) == variance(images[[1, 1, 1]]) == 0


# Tables of planted rows


def scores_of(path: Path, values: dict[tuple[str, str, int], NDArray[np.float64]], **groups: Any) -> Scores:
    """MSE by (backend, corruption or "clean", severity), an array of images each."""
    n = len(next(iter(values.values())))
    ids = [f"i{i:03d}" for i in range(n)]
    names = dict.fromkeys(name for _, name, _ in values if name != "clean")
    part = {"names": list(names), "severities": [1, 3, 5], "images": n, "metrics": ["lpips_alex"]}
    content = {"low": 16, "high": 64, "corruptions": part}
    labels = dict.fromkeys(label for label, _, _ in values)
    backends = [{"label": x, "options": {}, "digest": x, "device": "", "precision": "", "status": "ok"} for x in labels]
    metric = {"title": "LPIPS", "unit": "", "higher_is_better": False, "recipe": ""}
    folder = RunFolder(path)
    folder.write_record(
        {"schema": 1, "suite": {"content": content}, "dataset": {}, "backends": backends}
        | {"metrics": {"lpips_alex": metric}}
    )
    folder.write_table("images", pd.DataFrame({"image": ids, "seed": range(n), **groups, "error": ""}))
    rows: list[Row] = [
        {"backend": label, "options": "{}", "digest": label, "condition": name, "severity": severity}
        | {"metric": "lpips_alex", "image": image, "value": float(value)}
        for (label, name, severity), each in values.items()
        for image, value in zip(ids, each, strict=True)
    ]
    folder.append(rows)
    return Scores.of(folder)


def planted(slope: Any, clean: float = 0.1, n: int = 80, names: tuple[str, ...] = IN_MCE) -> dict[Any, Any]:
    """Bicubic at 0.3 and 0.05 more a severity; "gan" at `clean` and `slope` more; each with noise of 0.01."""
    lines = {"bicubic": (0.3, 0.05), "gan": (clean, slope)}
    cells = [("clean", 0), *((name, severity) for name in names for severity in (1, 3, 5))]
    return {
        (label, name, severity): start + rate * severity + RNG(place).normal(0, 0.01, n)
        for label, (start, rate) in lines.items()
        for place, (name, severity) in enumerate(cells)
    }


def test_mce_over_all_twelve_is_called_so_and_equals_the_formula(tmp_path: Path) -> None:
    """Sums over severities, ratio to bicubic's, mean over the 12; the relative form from what corruption adds."""
    made = robustness.tables(scores_of(tmp_path, planted(0.1)))["robustness"]
    gan = {row["measure"]: row for row in made if row["backend"] == "gan"}
    assert gan["mce"]["name"] == "mCE"
    assert gan["mce"]["value"] == pytest.approx((0.3 + 0.9) / (0.9 + 0.45), abs=0.01)
    assert gan["relative_mce"]["value"] == pytest.approx(2, abs=0.02)
    for row in gan.values():
        assert row["low"] < row["value"] < row["high"]
        assert row["note"] == "severities 1, 3, 5 of 1 to 5"


def test_relative_errors_abstain_where_little_is_added(tmp_path: Path) -> None:
    """A corruption that adds next to nothing to bicubic's error has no relative error, and a reason; the rest has."""
    values = planted(0.1, names=("contrast", "fog"))
    for severity in (1, 3, 5):
        values["bicubic", "fog", severity] = values["bicubic", "clean", 0] + 1e-4
    made = robustness.tables(scores_of(tmp_path, values))
    fog = next(r for r in made["corruption_errors"] if (r["backend"], r["corruption"]) == ("gan", "fog"))
    assert np.isnan(fog["relative"])
    assert fog["note"] == "relative error: corruption adds too little to bicubic's error"
    assert fog["error"] > 0
    row = next(r for r in made["robustness"] if (r["backend"], r["measure"]) == ("gan", "relative_mce"))
    assert (row["name"], row["corruptions"]) == ("relative mCE over 1 of 12 corruptions", 1)
    assert row["value"] == pytest.approx(2, abs=0.02)
    assert "fog" in row["note"]


@pytest.mark.parametrize(
    ("slope", "clean", "crossing", "verdict"),
    [(0.13, 0.1, 3, "worse"), (0.05, 0.1, None, "better"), (0.05, 0.3, None, "not separated"), (0.0, 0.5, 0, "worse")],
)
def test_crossings_are_where_the_paired_interval_says_worse(
    slope: float, clean: float, crossing: float | None, verdict: str, tmp_path: Path
) -> None:
    """The first severity that is worse, clean included; none where it is better throughout, or not separated."""
    values = planted(slope, clean, names=("contrast",))
    if verdict == "not separated":
        values |= {("gan", *k): values["bicubic", *k] + RNG(9).normal(0, 0.01, 80) for _, *k in list(values)}
    (row,) = robustness.tables(scores_of(tmp_path, values))["crossings"]
    assert row["verdict"] == verdict
    assert np.isnan(row["crossing"]) if crossing is None else row["crossing"] == crossing


def test_a_single_image_separates_nothing(tmp_path: Path) -> None:
    """Without an interval nothing was compared: a crossing is not measured, which no gate takes for "nowhere worse"."""
    (row,) = robustness.tables(scores_of(tmp_path, planted(0.0, n=1, names=("contrast",))))["crossings"]
    assert row["verdict"] == "not measured"


def test_a_gap_that_grows_is_named(tmp_path: Path) -> None:
    """Of equal groups when clean, the one that degrades faster is worse, its gap beyond chance; few are no group."""
    race = np.array(["black"] * 40 + ["white"] * 40 + ["indian"] * 8)
    values = planted(np.where(race == "black", 0.06, 0.05), n=88, names=("contrast", "fog"))
    made = robustness.tables(scores_of(tmp_path, values, race=race))
    frame: Any = pd.DataFrame(made["corruption_gaps"]).query("backend == 'gan'")
    for corruption in (robustness.POOLED, "contrast", "fog"):
        mine = frame[frame["corruption"] == corruption].set_index("severity")
        assert mine["verdict"].tolist() == ["inconclusive", "disparity", "disparity", "disparity"]
        assert mine.loc[5, "gap"] == pytest.approx(0.05, abs=0.01)
        assert mine.loc[5, "gap"] > mine.loc[5, "null_p95"]
    everyone: Any = pd.DataFrame(made["group_slopes"])
    slopes = everyone.query("backend == 'gan' and corruption == 'mean'").set_index("group")
    assert slopes["verdict"].to_dict() == {"black": "worse", "indian": "insufficient", "white": "better"}
    assert slopes.loc["black", "slope"] == pytest.approx(0.06, abs=0.002)
    assert np.isnan(slopes.loc["indian", "slope"])
    assert slopes.loc["black", "difference"] == pytest.approx(0.01, abs=0.002)


def test_further_draws_use_some_of_the_corrupted_images(pictures: Path) -> None:
    """Each draw has a folder of its own, so that none is taken for another, and samples go with the first draw."""
    from harness.datasets import open_dataset

    steps = [s for s in plan(parse_suite(FACES, "x"), open_dataset(f"folder:{pictures}")) if not s.metrics]
    assert [(s.condition.draw, s.sample) for s in steps] == [(1, 0), (0, 1), (2, 0), (0, 2)]
    assert {len(s.images) for s in steps} == {4}
    first = steps[1].condition
    assert {s.condition.folder for s in steps} == {
        "gaussian_noise-5",
        "gaussian_noise-5-draw1",
        "gaussian_noise-5-draw2",
    }
    assert replace(steps[0].condition, draw=0) == first
