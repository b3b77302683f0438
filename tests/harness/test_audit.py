"""Tables from rows with planted values: means, paired differences, groups, gaps, noise, speed, worst, failures."""

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from harness import audit, speed_tables
from harness.audit import COLUMNS
from harness.fairness import groups as fairness
from harness.plan import CLEAN
from harness.score import output_path
from harness.scores import Scores
from harness.speed import in_turns_with
from harness.store import Row, RunFolder
from harness.timing import OTHER_LOAD_LIMIT

RNG = np.random.default_rng
METRICS = {
    "psnr": {"title": "PSNR", "unit": "dB", "higher_is_better": True, "recipe": ""},
    "lpips_alex": {"title": "LPIPS", "unit": "", "higher_is_better": False, "recipe": ""},
}
PHOTOS = {
    "lr_psnr": {"title": "Consistency", "unit": "dB", "higher_is_better": True, "recipe": ""},
    "sharpness": {"title": "Sharpness", "unit": "", "higher_is_better": None, "recipe": ""},
}
CONTENT = {"low": 4, "high": 16, "seed": 0, "noise": None}
PIXELS = np.zeros((4, 4, 3), np.uint8)

Values = Sequence[float] | NDArray[np.float64] | float


def names(n: int) -> list[str]:
    """The ids of n images."""
    return [f"i{i:04d}" for i in range(n)]


def image_table(n: int, **labels: Sequence[str]) -> pd.DataFrame:
    """The table of n usable images with their labels."""
    base = {"image": names(n), "seed": range(n), "age_years": np.nan, **labels, "error": "", "prepared": "x"}
    return pd.DataFrame(base)


def backend(label: str, **changes: Any) -> dict[str, Any]:
    """A backend's entry in the run record."""
    about = {"label": label, "options": {}, "digest": f"digest of {label}", "device": "cpu", "precision": "float32"}
    return about | {"status": "ok", "family": "other", "deterministic": True} | changes


def scored(label: str, metric: str, values: Values, images: Iterable[str], **changes: Any) -> list[Row]:
    """One row per image; a single value goes to all of them."""
    ids = list(images)
    common = {"backend": label, "options": "{}", "digest": f"digest of {label}", "condition": "clean", "metric": metric}
    each = np.broadcast_to(np.asarray(values, float), len(ids))
    return [common | {"image": i, "value": float(v)} | changes for i, v in zip(ids, each, strict=True)]


def scores_of(path: Path, images: pd.DataFrame, rows: list[Row], **changes: Any) -> Scores:
    """A run folder with these rows, read as the audit reads it."""
    folder = RunFolder(path)
    labels = ["passthrough", "bicubic", "gan", "sr3"]
    record: dict[str, Any] = {"schema": 1, "suite": {"content": CONTENT}, "metrics": METRICS, "dataset": {}}
    folder.write_record(record | {"backends": [backend(label) for label in labels]} | changes)
    folder.write_table("images", images)
    folder.append(rows)
    return Scores.of(folder)


def only(frame: pd.DataFrame, **wanted: Any) -> pd.Series:
    """The one row that has these values."""
    for column, value in wanted.items():
        frame = frame[frame[column] == value]
    assert len(frame) == 1
    return frame.iloc[0]


def test_the_summary_is_the_plain_mean(tmp_path: Path) -> None:
    """Mean, deviation and n are those of the clean scores, and images without a clean output count as failed."""
    values = RNG(0).normal(0.1, 0.02, 50)
    failure = {"backend": "gan", "options": "{}", "digest": "digest of gan", "metric": "output", "error": "X: y"}
    failures = [failure | {"image": f"lost{i}", "condition": "clean"} for i in range(3)]
    failures.append(failure | {"image": "other", "condition": "gaussian_noise"})
    rows = [*scored("gan", "lpips_alex", values, names(50)), *failures]
    row = only(audit.summary(scores_of(tmp_path, image_table(50), rows)), backend="gan", metric="lpips_alex")
    assert (row["n"], row["failed"], row["identical"]) == (50, 3, 0)
    assert row["mean"] == pytest.approx(values.mean())
    assert row["sd"] == pytest.approx(values.std(ddof=1))
    assert values.mean() - 0.02 < row["low"] < row["mean"] < row["high"] < values.mean() + 0.02


def test_infinite_psnr_counts_as_identical(tmp_path: Path) -> None:
    """Identical images only: the mean is infinite; some of them: the mean is over the others, and they are counted."""
    rows = [
        *scored("passthrough", "psnr", np.inf, names(20)),
        *scored("gan", "psnr", [np.inf, np.inf, *range(20, 38)], names(20)),
    ]
    summary = audit.summary(scores_of(tmp_path, image_table(20), rows))
    assert only(summary, backend="passthrough", metric="psnr")[["identical", "mean"]].tolist() == [20, np.inf]
    gan = only(summary, backend="gan", metric="psnr")
    assert (gan["n"], gan["identical"], gan["mean"]) == (20, 2, 28.5)


@pytest.mark.parametrize(
    ("metric", "shift", "word"),
    [("psnr", 2.0, "better"), ("psnr", -2.0, "worse"), ("lpips_alex", -0.1, "better"), ("lpips_alex", 0.1, "worse")],
)
def test_a_difference_is_judged_by_the_direction_of_its_metric(
    metric: str, shift: float, word: str, tmp_path: Path
) -> None:
    """Backend minus bicubic keeps its sign, and the verdict turns with what the metric calls better."""
    base = RNG(1).normal(10, 3, 60)
    noise = RNG(2).normal(0, abs(shift) / 4, 60)
    rows = [*scored("bicubic", metric, base, names(60)), *scored("gan", metric, base + shift + noise, names(60))]
    row = only(audit.differences(scores_of(tmp_path, image_table(60), rows)), backend="gan", metric=metric)
    assert row["mean"] == pytest.approx((shift + noise).mean())
    assert np.sign(row["low"]) == np.sign(row["high"]) == np.sign(shift)
    assert (row["baseline"], row["verdict"]) == ("bicubic", word)


def test_differences_are_paired_by_image(tmp_path: Path) -> None:
    """Rows in another order and images that one side lacks: each image is compared with itself, the rest left out."""
    base = RNG(3).normal(25, 5, 50)
    order = RNG(4).permutation(50)
    ids = np.array(names(50))
    rows = [
        *scored("bicubic", "psnr", base[order], ids[order]),
        *scored("gan", "psnr", base[5:] + 1, ids[5:]),
    ]
    row = only(audit.differences(scores_of(tmp_path, image_table(50), rows)), backend="gan", metric="psnr")
    assert row["n"] == 45
    assert [row["low"], row["mean"], row["high"]] == pytest.approx([1, 1, 1])


def test_noise_larger_than_the_difference_is_a_tie(tmp_path: Path) -> None:
    """A mean difference of a hundredth of its spread is not called better or worse."""
    swing = np.tile([1.0, -0.98], 40)
    rows = [*scored("bicubic", "psnr", 25.0, names(80)), *scored("gan", "psnr", 25.0 + swing, names(80))]
    row = only(audit.differences(scores_of(tmp_path, image_table(80), rows)), backend="gan", metric="psnr")
    assert row["mean"] == pytest.approx(0.01)
    assert row["low"] < 0 < row["high"]
    assert row["verdict"] == "tie"


def test_pairs_leave_the_control_arms_out(tmp_path: Path) -> None:
    """Only compared backends meet each other, in the order of the record, first minus second."""
    rows = [
        row
        for label, value in (("passthrough", 0.0), ("bicubic", 0.3), ("sr3", 0.05), ("gan", 0.06))
        for row in scored(label, "lpips_alex", value, names(40))
    ]
    pairs = audit.pairs(scores_of(tmp_path, image_table(40), rows))
    assert pairs[["first", "second", "verdict"]].to_numpy().tolist() == [["gan", "sr3", "worse"]]
    assert pairs["mean"].iloc[0] == pytest.approx(0.01)


def grouped(path: Path) -> Scores:
    """172 images in races of 120, 40 and 12; the GAN's PSNR is 2 dB under bicubic's, its LPIPS 0.1 better."""
    base = RNG(5).normal(25, 2, 172)
    rows = [
        *scored("bicubic", "psnr", base, names(172)),
        *scored("gan", "psnr", base - 2, names(172)),
        *scored("bicubic", "lpips_alex", base / 100, names(172)),
        *scored("gan", "lpips_alex", base / 100 - 0.1, names(172)),
    ]
    race = ["a"] * 120 + ["b"] * 40 + ["c"] * 12
    return scores_of(path, image_table(172, race=race, gender=["f", "m"] * 86), rows)


def test_small_groups_are_marked_or_not_judged(tmp_path: Path) -> None:
    """120 images are ok, 40 of low precision, 12 insufficient: no figure is given for those."""
    groups = audit.groups(grouped(tmp_path)).query("backend == 'gan' and metric == 'psnr' and attribute == 'race'")
    assert groups[["group", "n", "status"]].to_numpy().tolist() == [
        ["a", 120, "ok"],
        ["b", 40, "low precision"],
        ["c", 12, "insufficient"],
    ]
    figures = groups[["mean", "low", "high", "gain", "gain_low", "gain_high"]]
    assert figures.iloc[:2].notna().all(axis=None)
    assert figures.iloc[2].isna().all()


@pytest.mark.parametrize(("metric", "gain"), [("psnr", -2.0), ("lpips_alex", 0.1)])
def test_a_gain_is_positive_where_the_backend_beats_bicubic(metric: str, gain: float, tmp_path: Path) -> None:
    """Whatever the metric's direction, a better score than bicubic's is a positive gain in every group."""
    groups = audit.groups(grouped(tmp_path))
    mine = groups[(groups["backend"] == "gan") & (groups["metric"] == metric) & (groups["status"] != "insufficient")]
    assert len(mine) == 6
    assert np.allclose(mine[["gain", "gain_low", "gain_high"]], gain)


def test_crossed_groups_are_those_of_pandas(tmp_path: Path) -> None:
    """Race x gender has one group per pair, with the means of a plain groupby; unknown parts make one unknown group."""
    rng = RNG(6)
    race, gender = rng.choice(["x", "y", "unknown"], 400), rng.choice(["f", "m"], 400)
    values = rng.normal(0.1, 0.02, 400)
    images = image_table(400, race=race.tolist(), gender=gender.tolist())
    groups = audit.groups(scores_of(tmp_path, images, scored("gan", "lpips_alex", values, names(400))))
    crossed = groups[groups["attribute"] == "race x gender"].set_index("group")
    assert set(crossed.index) == {"x x f", "x x m", "y x f", "y x m", "unknown"}
    joined = [f"{r} x {g}" if r != "unknown" else r for r, g in zip(race, gender, strict=True)]
    expected = pd.Series(values).groupby(joined)
    assert crossed["mean"].to_dict() == pytest.approx(expected.mean().to_dict())
    assert crossed["n"].to_dict() == expected.size().to_dict()


def test_fairlearn_gives_the_means_of_pandas() -> None:
    """The MetricFrame behind gaps agrees with groupby, and its difference is max minus min."""
    rng = RNG(7)
    values, groups = rng.normal(0.1, 0.02, 300), pd.Series(rng.choice(list("abcd"), 300))
    frame = fairness._metric_frame(values, groups.to_numpy(str))
    expected = pd.Series(values).groupby(groups).mean()
    assert frame.by_group.to_dict() == pytest.approx(expected.to_dict())
    assert frame.difference() == pytest.approx(expected.max() - expected.min())


@pytest.mark.parametrize(("metric", "sign"), [("lpips_alex", 1), ("psnr", -1)])
def test_a_planted_gap_is_named_and_the_unjudged_are_not(metric: str, sign: int, tmp_path: Path) -> None:
    """The worse of two large groups is named; unlabelled images and a cell of 12 are far worse, and not ranked."""
    race = ["good"] * 60 + ["poor"] * 60 + ["unknown"] * 60 + ["tiny"] * 12
    level = np.repeat([10.0, 11.0, 30.0, 40.0], [60, 60, 60, 12]) * sign
    values = level + RNG(8).normal(0, 0.5, 192)
    scores = scores_of(tmp_path, image_table(192, race=race), scored("gan", metric, values, names(192)))
    row = only(audit.gaps(scores), backend="gan", metric=metric)
    assert (row["best"], row["worst"], row["groups"], row["verdict"]) == ("good", "poor", 2, "disparity")
    assert row["gap"] == pytest.approx(abs(values[60:120].mean() - values[:60].mean()))
    assert row["p_value"] < 0.001
    assert row["null_mean"] < row["null_p95"] < row["gap"]


def test_half_known_images_are_not_ranked_in_crossed_groups(tmp_path: Path) -> None:
    """An image with a gender but no race belongs to no crossed group, however many of them there are."""
    race = ["x"] * 80 + ["unknown"] * 80
    values = np.repeat([10.0, 50.0], 80)
    images = image_table(160, race=race, gender=["f", "m"] * 80)
    gaps = audit.gaps(scores_of(tmp_path, images, scored("gan", "lpips_alex", values, names(160))))
    row = only(gaps, backend="gan", attribute="race x gender")
    assert {row["best"], row["worst"]} == {"x x f", "x x m"}
    assert row["groups"] == 2


def test_shuffled_labels_are_not_separated_from_chance(tmp_path: Path) -> None:
    """Labels that say nothing of the scores give a gap that chance explains."""
    rng = RNG(9)
    race = rng.choice(["a", "b", "c", "d"], 400).tolist()
    rows = scored("gan", "lpips_alex", rng.normal(0.1, 0.02, 400), names(400))
    row = only(audit.gaps(scores_of(tmp_path, image_table(400, race=race), rows)), backend="gan")
    assert row["verdict"] == "inconclusive"
    assert row["gap"] < row["null_p95"]


def test_one_judged_group_is_no_gap(tmp_path: Path) -> None:
    """With fewer than two groups of 30 there is nothing to compare, and the table says so."""
    images = image_table(60, race=["a"] * 40 + ["b"] * 20)
    row = only(audit.gaps(scores_of(tmp_path, images, scored("gan", "psnr", 20.0, names(60)))), backend="gan")
    assert (row["verdict"], row["groups"], row["best"]) == ("insufficient", 1, "")
    assert np.isnan(row["gap"])


def test_rows_of_other_digests_or_options_are_ignored(tmp_path: Path) -> None:
    """What an earlier build or another setting of the same name scored does not enter the tables."""
    rows = [
        *scored("sr3", "psnr", 99.0, names(40), digest="an earlier build"),
        *scored("sr3", "psnr", 98.0, names(40), options=json.dumps({"steps": 1})),
        *scored("sr3", "psnr", 26.0, names(40), options=json.dumps({"steps": 8})),
        *scored("gone", "psnr", 97.0, names(40)),
    ]
    backends = [backend("bicubic"), backend("sr3", options={"steps": 8})]
    summary = audit.summary(scores_of(tmp_path, image_table(40), rows, backends=backends))
    assert set(summary["backend"]) == {"bicubic", "sr3"}
    row = only(summary, backend="sr3", metric="psnr")
    assert (row["n"], row["mean"]) == (40, 26.0)


def test_noise_is_compared_on_the_same_noisy_input(tmp_path: Path) -> None:
    """`difference` is to bicubic at the same severity, `added` to the backend's own clean score on the same images."""
    clean = RNG(10).normal(0.1, 0.02, 40)
    noisy = {"condition": "gaussian_noise", "severity": 2}
    rows = [
        *scored("bicubic", "lpips_alex", clean + 0.2, names(40)),
        *scored("gan", "lpips_alex", clean, names(40)),
        *scored("bicubic", "lpips_alex", clean[:20] + 0.25, names(20), **noisy),
        *scored("gan", "lpips_alex", clean[:20] + 0.3, names(20), **noisy),
        *scored("bicubic", "lpips_alex", clean[:20] + 0.21, names(20), **noisy | {"severity": 1}),
    ]
    content = CONTENT | {"noise": {"sigmas": [0.05, 0.1], "images": 20, "metrics": ["lpips_alex"]}}
    scores = scores_of(tmp_path, image_table(40), rows, suite={"content": content})
    noise = audit.noise(scores)
    row = only(noise, backend="gan", severity=2)
    assert (row["sigma"], row["n"]) == (0.1, 20)
    assert row["mean"] == pytest.approx(clean[:20].mean() + 0.3)
    assert [row[c] for c in ("difference", "difference_low", "difference_high")] == pytest.approx([0.05] * 3)
    assert row["added"] == pytest.approx(0.3)
    base = only(noise, backend="gan", severity=0)
    assert (base["n"], base["sigma"], base["added"]) == (20, 0.0, 0.0)
    assert base["mean"] == pytest.approx(clean[:20].mean())
    assert len(noise[noise["severity"] == 1]) == 1


def timed(label: str, n: int, seconds: float, load: float = 0.0) -> list[Row]:
    """The rows of timed passes of n single requests and n / 4 batches of 4, all alike but for one slow request."""
    return timed_pass(label, "batch-1", n, seconds, load=load) + timed_pass(
        label, "batch-4", n // 4, seconds, load=load, batch_size=4
    )


def timed_pass(label: str, stage: str, n: int, seconds: float, **once: float) -> list[Row]:
    """The rows of a timed pass of n requests, the first of them 100 times as slow; `load` and others once."""
    who = {"backend": label, "options": "{}", "digest": f"digest of {label}", "condition": "size-16", "stage": stage}
    rows = []
    for i in range(n):
        total = seconds * (100 if i == 0 else 1)
        times = {"end_to_end_s": total, "compute_s": total * 0.8, "transport_s": total * 0.2}
        rows += [who | {"metric": k, "value": v, "image": f"{i}"} for k, v in times.items()]
    whole = {"cold_start_s": 2.5, "peak_memory_mb": 300.0, "batch_size": 1, "output_px": 16, "cpu_s": n * seconds}
    whole |= {
        "warm_up_s": 0.5,
        "peak_device_memory_mb": 700.0,
        "package_j": math.nan,
        "wall_s": n * seconds,
        "other_load": once.pop("load", 0.0),
    } | once
    return rows + [who | {"metric": k, "value": v} for k, v in whole.items()]


def test_percentiles_need_their_samples(tmp_path: Path) -> None:
    """130 requests allow p50, p90 and p95 but no p99; their 32 batches allow p50 alone; 8 allow none."""
    rows = [*timed("gan", 130, 0.01), *timed("sr3", 8, 0.01)]
    speed = audit.speed(scores_of(tmp_path, image_table(4), rows))
    columns = [f"end_to_end_p{q}" for q in (50, 90, 95, 99)]
    assert only(speed, backend="gan", batch=1)[columns].notna().tolist() == [True, True, True, False]
    assert only(speed, backend="gan", batch=4)[columns].notna().tolist() == [True, False, False, False]
    assert speed.loc[speed["backend"] == "sr3", [*columns, "compute_p50", "transport_p50"]].isna().all(axis=None)
    assert only(speed, backend="gan", batch=1)["end_to_end_p50"] == pytest.approx(0.01)


def test_speed_is_told_against_bicubic_of_the_same_batch(tmp_path: Path) -> None:
    """Ratios are of compute time at equal request sizes; images per second count all images and the slow request."""
    rows = [*timed("bicubic", 64, 0.002), *timed("gan", 64, 0.01)]
    speed = audit.speed(scores_of(tmp_path, image_table(4), rows))
    assert speed[["warm_up_s", "peak_device_memory_mb"]].to_numpy().tolist() == [[0.5, 700.0]] * 4
    assert speed[speed["backend"] == "gan"]["ratio_compute_bicubic"].to_numpy() == pytest.approx([5, 5])
    assert speed[speed["backend"] == "bicubic"]["ratio_compute_bicubic"].to_numpy() == pytest.approx([1, 1])
    assert only(speed, backend="gan", batch=1)["images_per_s"] == pytest.approx(64 / (163 * 0.01))
    batch = only(speed, backend="gan", batch=4)
    assert batch["n"] == 16
    assert batch["images_per_s"] == pytest.approx(64 / (115 * 0.01))
    assert (batch["cold_start_s"], batch["peak_memory_mb"]) == (2.5, 300.0)


def test_a_disturbed_pass_is_invalid(tmp_path: Path) -> None:
    """Figures taken while others used more processor time than the limit are marked, and the note says how much."""
    limit = OTHER_LOAD_LIMIT
    rows = [*timed("gan", 64, 0.01, load=limit), *timed("sr3", 64, 0.01, load=1.3)]
    speed = audit.speed(scores_of(tmp_path, image_table(4), rows))
    quiet, disturbed = (speed[speed["backend"] == label] for label in ("gan", "sr3"))
    assert quiet["valid"].all()
    assert (quiet["note"] == "").all()
    assert not disturbed["valid"].any()
    assert disturbed["note"].str.contains("1.30 cores").all()


def in_turns(label: str, batch: int, n: int, seconds: tuple[float, float], load: float = 0.0) -> list[Row]:
    """The rows of a pass of n requests in turns: the compute seconds of a backend and of `gan`."""
    who = {"backend": label, "options": "{}", "digest": f"digest of {label}", "condition": "size-16"}
    who |= {"stage": in_turns_with("gan", batch)}
    values = {"compute_s": [seconds[0]] * n, "reference_compute_s": [seconds[1]] * n}
    values |= {"batch_size": [batch], "output_px": [16], "wall_s": [n * sum(seconds)], "other_load": [load]}
    return [who | {"metric": metric, "value": value} for metric, found in values.items() for value in found]


def test_times_are_multiples_of_the_reference(tmp_path: Path) -> None:
    """The ratio is to the first GAN or the backend that the suite names: of their pass in turns, not of their own."""
    rows = [*timed("bicubic", 64, 0.002), *timed("gan", 64, 0.01), *timed("sr3", 40, 0.05)]
    rows += [*in_turns("bicubic", 1, 64, (0.003, 0.015)), *in_turns("bicubic", 4, 16, (0.003, 0.015))]
    rows += [*in_turns("sr3", 1, 40, (0.06, 0.02), load=1.0), *in_turns("sr3", 4, 10, (0.08, 0.02))]
    families = {"gan": "gan", "sr3": "diffusion"}
    about = [backend(label, family=families.get(label, "other")) for label in ("passthrough", "bicubic", "gan", "sr3")]
    speed = audit.speed(scores_of(tmp_path / "default", image_table(4), rows, backends=about))
    one = only(speed, backend="sr3", batch=1)
    assert (one["reference"], one["ratio_valid"]) == ("gan", False)
    assert (one["ratio"], one["ratio_low"], one["ratio_high"]) == pytest.approx((3, 3, 3))
    assert one["reference_s"] == pytest.approx(0.008)
    four = only(speed, backend="sr3", batch=4)
    assert (four["ratio"], four["ratio_valid"]) == (pytest.approx(4), True)
    assert np.isnan([four["ratio_low"], four["ratio_high"]]).all()  # of 10 batches
    itself, control = (only(speed, backend=label, batch=1) for label in ("gan", "bicubic"))
    assert (itself["ratio"], itself["ratio_valid"], control["ratio"]) == (1, True, pytest.approx(0.2))
    suite = {"content": CONTENT | {"speed": {"reference": "bicubic"}}}
    named = audit.speed(scores_of(tmp_path / "named", image_table(4), rows, backends=about, suite=suite))
    assert named.loc[named["backend"] == "bicubic", "ratio"].tolist() == [1, 1]
    assert named.loc[named["backend"] != "bicubic", "ratio"].isna().all()  # none was timed in turns with bicubic
    assert not named.loc[named["backend"] != "bicubic", "ratio_valid"].any()
    suite = {"content": CONTENT | {"speed": {"reference": "none such"}}}
    absent = audit.speed(scores_of(tmp_path / "absent", image_table(4), rows, backends=about, suite=suite))
    assert absent["ratio"].isna().all()


def test_energy_is_measured_or_estimated_or_unknown(tmp_path: Path) -> None:
    """Counters are divided by the images, else processor seconds count the stated watts, and a GPU is not guessed."""
    rows = [*timed_pass("bicubic", "batch-4", 16, 0.5, batch_size=4), *timed_pass("gan", "batch-1", 16, 0.5)]
    rows += timed_pass("sr3", "batch-1", 16, 0.5, package_j=48.0)
    suite = {"content": CONTENT | {"speed": {"watts_per_core": 5.0}}}
    devices = {"bicubic": "cpu", "gan": "cuda:0", "sr3": "cpu"}
    about = [backend(label, device=device) for label, device in devices.items()]
    speed = audit.speed(scores_of(tmp_path, image_table(4), rows, backends=about, suite=suite)).set_index("backend")
    assert speed["energy_j"].to_dict() == pytest.approx({"bicubic": 5 * 0.5 / 4, "gan": np.nan, "sr3": 3}, nan_ok=True)
    assert speed["energy_method"].str.partition(":")[0].to_list() == ["estimate", "not known", "measured"]


def test_the_fastest_batch_is_marked(tmp_path: Path) -> None:
    """The best batch of a size is the one with the most images a second, whatever its size."""
    rows = [*timed_pass("gan", "batch-1", 20, 0.1), *timed_pass("gan", "batch-4", 20, 0.2, batch_size=4)]
    rows += [*timed_pass("gan", "batch-16", 20, 4.0, batch_size=16), *timed_pass("sr3", "batch-1", 1, 1.0)]
    speed = audit.speed(scores_of(tmp_path, image_table(4), rows))
    assert speed.loc[speed["best"], ["backend", "batch"]].to_numpy().tolist() == [["gan", 4], ["sr3", 1]]


@pytest.mark.parametrize(
    ("options", "family", "steps"),
    [
        ({"steps": 16}, "diffusion", 16),
        ({}, "diffusion", np.nan),
        ({"steps": "many"}, "gan", 1),
        ({}, "interpolation", 0),
        ({}, "other", np.nan),
    ],
)
def test_steps_are_stated_or_unknown(options: dict[str, Any], family: str, steps: float) -> None:
    """Network evaluations come from the option `steps` or from the family; a diffusion model without it is unknown."""
    assert speed_tables.steps({"options": options, "family": family}) == pytest.approx(steps, nan_ok=True)


def test_scenarios_are_judged_by_their_bound(tmp_path: Path) -> None:
    """A rate holds if its p90 latency is within the bound, none is judged without 64; offline counts wall time."""
    rows = timed_pass("gan", "batch-1", 64, 0.01)
    for stage, n, latency in (("server-0.5", 64, 0.9), ("server-0.9", 64, 1.1), ("server-0.95", 63, 0.1)):
        sent = timed_pass("gan", stage, n, 0.01, rate=n)
        rows += sent + [sent[0] | {"metric": "latency_s", "value": latency, "sample": i} for i in range(n)]
    rows += timed_pass("gan", "offline", 8, 0.01, batch_size=4)
    suite = {"content": CONTENT | {"speed": {"server_p90_s": 1.0}}}
    made = audit.scenarios(scores_of(tmp_path, image_table(4), rows, suite=suite))
    server = made[made["scenario"] == "server"]
    assert server["holds"].to_list() == ["yes", "no", ""]
    assert server["latency_p90"].to_numpy() == pytest.approx([0.9, 1.1, np.nan], nan_ok=True)
    assert only(made, scenario="single stream")["latency_p90"] == pytest.approx(0.01)
    offline = only(made, scenario="offline")
    assert (offline["n"], offline["images_per_s"]) == (8, pytest.approx(32 / 0.08))


def test_what_was_not_timed_is_listed(tmp_path: Path) -> None:
    """Sizes not taken, passes left out and passes that failed have a row each with the reason."""
    who = {"backend": "gan", "options": "{}", "digest": "digest of gan", "condition": "size-1024"}
    rows = [
        who | {"metric": "not_supported", "error": "takes inputs of 16 to 64 pixels"},
        who | {"metric": "not_tried", "stage": "batch-16", "error": "too long"},
        who | {"metric": "timed", "stage": "batch-4", "error": "BackendFailed: batch-4: no"},
    ]
    scores = scores_of(tmp_path, image_table(4), rows)
    left = audit.untimed(scores)
    assert left["stage"].to_list() == ["all", "batch-16", "batch-4"]
    assert left["status"].to_list() == ["not supported", "not tried", "failed"]
    assert (left["output_px"] == 1024).all()
    assert audit.failures(scores)["n"].to_list() == [1]  # what was left out on purpose has not failed
    assert audit.speed(scores).empty


def test_the_worst_images_come_first_with_their_pictures(tmp_path: Path) -> None:
    """The eight largest LPIPS in falling order, with labels, and paths of those pictures that exist."""
    values = RNG(11).permutation(40) / 100
    ids = names(40)
    scores = scores_of(tmp_path, image_table(40, race=["a"] * 40), scored("gan", "lpips_alex", values, ids))
    top = ids[int(values.argmax())]
    scores.folder.write_image(scores.folder.input("clean", top), PIXELS)
    output = output_path(scores.folder, backend("gan"), CLEAN, top, int(top[1:]), 4)
    assert output is not None
    scores.folder.write_image(output, PIXELS)
    worst = audit.worst(scores)
    assert worst["rank"].tolist() == list(range(1, 9))
    assert worst["value"].tolist() == sorted(values, reverse=True)[:8]
    first = worst.iloc[0]
    assert (first["image"], first["race"], first["target"]) == (top, "a", "")
    assert (tmp_path / first["input"]).is_file()
    assert tmp_path / first["output"] == output
    assert (worst["output"].iloc[1:] == "").all()


def test_without_ground_truth_consistency_comes_first(tmp_path: Path) -> None:
    """Among photos as they are, the worst are the least consistent; more sharpness is higher, not better."""
    values = np.asarray(RNG(13).permutation(40) + 20.0, float)
    suite = {"content": {"photos": {"scale": 4, "max_pixels": 900}}}
    rows = [
        *scored("gan", "lr_psnr", values, names(40)),
        *scored("bicubic", "sharpness", 0.1, names(40)),
        *scored("gan", "sharpness", 0.1 + values / 100, names(40)),
    ]
    images = image_table(40, race=["a", "b"] * 20)
    scores = scores_of(tmp_path, images, rows, suite=suite, metrics=PHOTOS)
    worst = audit.worst(scores)
    assert worst["value"].tolist() == sorted(values)[:8]
    assert set(worst["metric"]) == {"lr_psnr"}
    assert only(audit.differences(scores), backend="gan", metric="sharpness")["verdict"] == "higher"
    groups = audit.groups(scores)
    assert (groups[(groups["backend"] == "gan") & (groups["metric"] == "sharpness")]["n"] == 20).all()


def test_diversity_is_of_stochastic_backends(tmp_path: Path) -> None:
    """The mean over images with its interval; deterministic backends have one output, failed ones no row."""
    values = RNG(14).normal(0.05, 0.01, 30)
    backends = [
        backend("passthrough"),
        backend("bicubic"),
        backend("sr3", deterministic=False),
        backend("gone", status="failed", deterministic=False),
    ]
    content = CONTENT | {"diversity": {"images": 30, "samples": 4}}
    rows = scored("sr3", "diversity", values, names(30))
    scores = scores_of(tmp_path, image_table(30), rows, backends=backends, suite={"content": content})
    diversity = audit.diversity(scores)
    assert diversity["backend"].tolist() == ["bicubic", "sr3"]
    row = only(diversity, backend="sr3")
    assert (row["samples"], row["n"], row["note"]) == (4, 30, "")
    assert row["mean"] == pytest.approx(values.mean())
    assert row["low"] < row["mean"] < row["high"]
    assert np.isnan(only(diversity, backend="bicubic", note="deterministic: one output", samples=1)["mean"])


def test_a_further_sample_that_fails_is_no_failed_image(tmp_path: Path) -> None:
    """The summary counts images without an output; further samples of an image stand among the failures alone."""
    who = {"backend": "sr3", "options": "{}", "digest": "digest of sr3", "condition": "clean", "metric": "output"}
    rows = [{**who, "image": "i0001", "sample": sample, "error": "BackendFailed: no"} for sample in (1, 2)]
    scores = scores_of(tmp_path, image_table(4), rows)
    assert only(audit.summary(scores), backend="sr3", metric="psnr")["failed"] == 0
    assert only(audit.failures(scores), backend="sr3")["n"] == 2


def test_failures_are_counted_by_kind(tmp_path: Path) -> None:
    """Failed cases count by backend, condition and kind; images that could not be used stand under no backend."""
    who = {"backend": "gan", "options": "{}", "digest": "digest of gan"}
    slow, broken = "DeadlineExceeded: no answer", "ContractBroken: size: 3 x 3"
    rows = [
        *({**who, "metric": "output", "condition": "clean", "image": i, "error": slow} for i in names(5)),
        {**who, "metric": "output", "condition": "gaussian_noise", "image": "i0000", "error": slow},
        {**who, "metric": "output", "condition": "clean", "image": "i0007", "error": broken},
        {**who, "metric": "timed", "condition": "clean", "error": broken},
    ]
    images = image_table(8).assign(error=["", "a.png: truncated", *[""] * 6])
    failures = audit.failures(scores_of(tmp_path, images, rows))
    counted = {tuple(row[:3]): row[4] for row in failures.itertuples(index=False, name=None)}
    assert counted == {
        ("gan", "clean", "DeadlineExceeded"): 5,
        ("gan", "gaussian_noise", "DeadlineExceeded"): 1,
        ("gan", "clean", "ContractBroken"): 2,
        ("", "dataset", "ImageError"): 1,
    }
    assert only(failures, kind="ContractBroken")["message"] == "size: 3 x 3"


def test_samples_are_not_picked_by_score(tmp_path: Path) -> None:
    """The images of the smallest seeds, for every backend that runs, whatever they score; unusable ones never."""
    images = image_table(10).assign(error=["a.png: truncated", *[""] * 9])
    backends = [backend("bicubic"), backend("gan", status="failed", error="gone")]
    samples = audit.samples(scores_of(tmp_path, images, [], backends=backends))
    assert samples["image"].tolist() == names(10)[1 : 1 + audit.SAMPLES]
    assert set(samples["backend"]) == {"bicubic"}


@pytest.mark.parametrize("backends", [[], [backend("gan")]])
def test_a_run_without_rows_has_every_table_and_column(backends: list[dict[str, Any]], tmp_path: Path) -> None:
    """An interrupted run can be reported: all tables are there, with the columns that the reports rely on."""
    scores = scores_of(tmp_path, image_table(4, race=["a"] * 4), [], backends=backends)
    made = audit.write_tables(scores.folder)
    assert set(made) == set(COLUMNS)
    for name, frame in made.items():
        assert set(COLUMNS[name].split()) <= set(frame.columns), name
        assert list(pd.read_parquet(tmp_path / "tables" / f"{name}.parquet").columns) == list(frame.columns)
    assert {"race"} <= set(made["worst"].columns) & set(made["samples"].columns)


FROM_READINGS = {
    *(
        "sets",
        "set_pairs",
        "flips",
        "excess_flips",
        "parity",
        "posterior",
        "reliability",
        "perceptual",
        "verification",
        "indices",
    ),
    *("seeds", "probes", "instruments", "disagreement", "unread"),
    *("hallucination", "hallucinated", "preservation", "uncertainty", "explanations", "diffusion_index", "maps"),
    *("attacks", "best_of", "generated", "modes", "classification", "drawn", "generators", "stages"),
}
"""Tables of stored features, readings, maps, attacks, generated images and stages: made by their own modules' tests."""


def test_full_tables_leave_no_column_empty(tmp_path: Path) -> None:
    """On a run with everything, each column of each table holds a value somewhere: none is misnamed."""
    rows: list[Row] = []
    for label, value in (("bicubic", 0.3), ("gan", 0.06), ("sr3", 0.05)):
        rows += timed(label, 662, 0.01) + timed_pass(label, "server-0.5", 64, 0.01, rate=50.0)
        rows += in_turns(label, 1, 64, (0.01, 0.02)) if label != "gan" else []
        for metric, noisy in (("lpips_alex", {}), ("lpips_alex", {"condition": "gaussian_noise", "severity": 1})):
            rows += scored(label, metric, value + RNG(12).normal(0, 0.01, 80), names(80), **noisy)
        for severity, more in ((1, 0.1), (5, 0.2 if label == "bicubic" else 0.9)):
            foggy = {"condition": "fog", "severity": severity}
            rows += scored(label, "lpips_alex", value + more + RNG(13).normal(0, 0.01, 80), names(80), **foggy)
            rows += scored(label, "change_mse", more, names(80), **foggy)
            rows += scored(label, "draw_variance", more, names(4), **foggy)
    who = {"backend": "gan", "options": "{}", "digest": "digest of gan", "metric": "output", "image": "i0000"}
    rows.append(who | {"condition": "clean", "error": "BackendFailed: no"})
    rows.append(who | {"condition": "size-99", "metric": "not_tried", "error": "too long"})
    rows += scored("sr3", "diversity", 0.05 + RNG(15).normal(0, 0.01, 80), names(80))
    content = CONTENT | {
        "speed": {"watts_per_core": 5, "server_p90_s": 2},
        "noise": {"sigmas": [0.05], "images": 80, "metrics": ["lpips_alex"]},
        "corruptions": {"names": ["fog"], "severities": [1, 5], "images": 80, "metrics": ["lpips_alex"]}
        | {"seeds": {"names": ["fog"], "severity": 5, "images": 4}},
        "diversity": {"images": 80, "samples": 4},
        "fairness": {"claims": [{"measure": "lpips_alex", "attribute": "race", "of": "value", "margin": 0.02}]},
    }
    images = image_table(80, race=["a", "b"] * 40)
    about = [
        *map(backend, ("passthrough", "bicubic")),
        backend("gan", family="gan"),
        backend("sr3", deterministic=False),
    ]
    made = audit.tables(scores_of(tmp_path, images, rows, suite={"content": content}, backends=about).folder)
    for name, frame in made.items():
        if name in FROM_READINGS:
            continue
        empty = frame.columns[frame.isna().all()].tolist()
        assert not empty, (name, empty)
