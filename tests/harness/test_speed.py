"""Which timed passes are made: sizes, batches, random arrivals, what is left out or fails, what a resumption keeps."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness import speed, timing
from harness.client import Item
from harness.plan import BackendSpec
from harness.score import identity
from harness.session import Session
from harness.speed import Bench
from harness.store import RunFolder
from harness.suite import Speed, Suite

Open = Callable[..., Bench]


@pytest.fixture(autouse=True)
def no_longer_than_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes end with their last request."""
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    monkeypatch.setattr(speed, "SECONDS", 0.0)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Open]:
    """Opens a bench on a local `faulty` with options; all benches of a test share a folder."""
    opened: list[Session] = []

    def make(settings: Speed, *, name: str = "faulty", deadline_s: float = 20, **options: str) -> Bench:
        suite = Suite(name="s", title="s", low=8, high=16, metrics=("psnr",), deadline_s=deadline_s, speed=settings)
        session = Session(BackendSpec(name, None, name, options), suite, tmp_path / "log")
        opened.append(session)
        session.open()
        return Bench(session, settings, RunFolder(tmp_path), inputs, identity(session.record, "d"))

    yield make
    for session in opened:
        session.close()


def inputs(side: int) -> list[Item]:
    """Two images of a side."""
    return [Item(f"p{i}", np.full((side, side, 3), i, np.uint8), i) for i in range(2)]


def measured(bench: Bench) -> pd.DataFrame:
    """The rows after every size has been measured."""
    for size in bench.speed.sizes or (16,):
        bench.measure(size)
    return bench.folder.rows("timed", "failed")


def stages(rows: pd.DataFrame, metric: str) -> list[tuple[str, str]]:
    """Condition and stage of the rows of a metric."""
    found = rows.loc[rows["metric"] == metric, ["condition", "stage"]]
    return [(str(condition), str(stage)) for condition, stage in found.to_numpy()]


def test_every_size_has_its_passes(bench: Open) -> None:
    """Single images, batches, rates and all at once at each size; the inputs have the size's side."""
    settings = Speed(images=3, sizes=(16, 32), batch=(2, 4), server_rates=(2, 4), server_p90_s=60, offline=True)
    rows = measured(bench(settings))
    kinds = ["batch-1", "batch-2", "batch-4", "server-2", "server-4", "offline"]
    assert stages(rows, "wall_s") == [(f"size-{size}", kind) for size in (16, 32) for kind in kinds]
    assert rows.loc[rows["metric"] == "output_px", "value"].tolist() == [16] * 6 + [32] * 6
    assert (rows["error"] == "").all()
    server = rows[(rows["stage"] == "server-4") & (rows["condition"] == "size-16")]
    assert (server["metric"] == "latency_s").sum() == 64  # as many as a p90 needs
    alone = rows[(rows["stage"] == "batch-1") & (rows["condition"] == "size-16") & (rows["metric"] == "end_to_end_s")]
    assert server.loc[server["metric"] == "rate", "value"].tolist() == [pytest.approx(4 / alone["value"].mean())]


def test_without_sizes_the_suites_own_is_measured(bench: Open) -> None:
    """A suite that lists no sizes has its output size, and a batch no larger than the backend takes."""
    rows = measured(bench(Speed(images=2, batch=(1000,))))
    assert stages(rows, "wall_s") == [("size-16", "batch-1"), ("size-16", "batch-64")]


def test_a_size_that_is_not_taken_says_why(bench: Open) -> None:
    """A backend that lists a largest input has no figures beyond it but a row with the reason, and no failure."""
    settings = Speed(images=1, sizes=(16, 512), batch=())
    one = bench(settings)
    one.session.description.sizes.maximum = 64
    rows = measured(one)
    assert stages(rows, "wall_s") == [("size-16", "batch-1")]
    assert stages(rows, "not_supported") == [("size-512", "")]
    assert "inputs of 1 to 64 pixels" in rows.loc[rows["metric"] == "not_supported", "error"].item()
    assert not one.folder.parts("failed")


def test_what_would_take_too_long_is_left_out(bench: Open) -> None:
    """With half a second an image, a budget of one second holds no batch of 4 and no 64 arrivals; the rows say so."""
    settings = Speed(images=5, batch=(4,), warm_up=0, budget_s=1, server_rates=(0.5, 0.9), offline=True)
    rows = measured(bench(settings, fault="slow"))
    assert stages(rows, "wall_s") == [("size-16", "batch-1"), ("size-16", "offline")]
    assert [stage for _, stage in stages(rows, "not_tried")] == ["batch-4", "server-0.5", "server-0.9"]
    assert rows.loc[rows["metric"] == "not_tried", "error"].str.contains("a pass has 1 s").all()
    assert (rows.loc[rows["stage"] == "batch-1", "metric"] == "end_to_end_s").sum() < 5


def test_a_rate_too_thin_for_the_budget_hides_no_denser_one(bench: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a small rate 64 arrivals may outlast the budget; a larger one that fits is tried."""
    monkeypatch.setattr(Bench, "_image_seconds", lambda *_: 0.1)
    settings = Speed(images=1, batch=(), budget_s=2, server_rates=(0.5, 20), server_p90_s=60)
    rows = measured(bench(settings))
    assert stages(rows, "not_tried") == [("size-16", "server-0.5")]
    assert ("size-16", "server-20") in stages(rows, "wall_s")


def test_a_bound_below_one_image_is_not_tried(bench: Open) -> None:
    """No rate can hold a bound that a single image misses."""
    settings = Speed(images=1, batch=(), warm_up=0, server_rates=(0.5,), server_p90_s=0.1)
    rows = measured(bench(settings, fault="slow"))
    assert "one image alone takes" in rows.loc[rows["stage"] == "server-0.5", "error"].item()


def test_rates_rise_until_one_misses_the_bound(bench: Open, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a rate whose p90 is over the bound, larger ones are left out."""
    one = bench(Speed(images=1, batch=(), server_rates=(0.2, 0.4, 0.6), server_p90_s=10))
    late = [{"metric": "latency_s", "value": 11.0}, {"metric": "other_load", "value": 0.0}, {"metric": "wall_s"}]
    monkeypatch.setattr(speed, "time_arrivals", lambda *_: late)
    rows = measured(one)
    assert [stage for _, stage in stages(rows, "latency_s")] == ["server-0.2"]
    assert rows.loc[rows["metric"] == "not_tried", "error"].tolist() == [speed.MISSED] * 2


def test_a_resumption_keeps_what_is_there(bench: Open) -> None:
    """Finished passes stay as they are; a missing one alone is made again, by the same backend only."""
    settings = Speed(images=2, sizes=(16, 32), batch=(2,), offline=True)
    first = bench(settings)
    measured(first)
    kept = first.folder.parts("timed")
    kept.pop(4).unlink()  # batch-2 at 32
    before = {part: part.stat().st_mtime_ns for part in kept}
    rows = measured(bench(settings))
    assert {part: part.stat().st_mtime_ns for part in kept} == before
    assert len(first.folder.parts("timed")) == 6
    assert sorted(stages(rows, "wall_s")) == sorted(
        (f"size-{size}", stage) for size in (16, 32) for stage in ("batch-1", "batch-2", "offline")
    )
    assert len(stages(measured(bench(settings, fault="nan", only="none such")), "wall_s")) == 12


@pytest.mark.parametrize(("fault", "kind"), [("crash", "BackendFailed"), ("die", "Unavailable")])
def test_a_failed_pass_costs_itself(fault: str, kind: str, bench: Open) -> None:
    """A batch that fails or kills the backend is one failure; the next size is measured by a working backend."""
    settings = Speed(images=1, sizes=(16, 32), batch=(3,), warm_up=0)
    rows = measured(bench(settings, fault=fault, only="p0#1"))
    assert stages(rows, "wall_s") == [("size-16", "batch-1"), ("size-32", "batch-1")]
    errors = rows.loc[rows["metric"] == "timed", "error"]
    assert len(errors) == 2
    assert errors.str.startswith(f"{kind}: batch-3: ").all()


def test_a_backend_given_up_fails_every_size(bench: Open) -> None:
    """A backend that was given up is not asked again, and each size says so."""
    one = bench(Speed(images=1, sizes=(16, 32)), fault="crash")
    while one.session.given_up is None:
        one.session.upscale(inputs(8)[:1])
    rows = measured(one)
    assert stages(rows, "timed") == [("size-16", "batch-1"), ("size-32", "batch-1")]
    assert rows["error"].str.contains("given up").all()


def test_in_turns_as_both_were_timed_alone(bench: Open) -> None:
    """Passes in turns are of the sizes and batches that both have passes of; a resumption makes the missing one."""
    settings = Speed(images=2, sizes=(16, 32), batch=(2, 4))
    mine, reference = bench(settings), bench(settings, name="nearest")
    for size in settings.sizes:
        mine.measure(size)
    reference.measure(16)
    mine.compare(reference, 16)
    mine.compare(reference, 32)
    rows = mine.folder.rows("timed")
    turns = rows[rows["stage"].str.startswith("turns")]
    assert stages(turns, "wall_s") == [("size-16", f"turns-{batch}-nearest") for batch in (1, 2, 4)]
    assert (turns["backend"] == "faulty").all()
    mine.folder.parts("timed")[-2].unlink()
    again = bench(settings)
    again.compare(reference, 16)
    rows = again.folder.rows("timed")
    made = sorted(stage for _, stage in stages(rows, "wall_s") if stage.startswith("turns"))
    assert made == ["turns-1-nearest", "turns-2-nearest", "turns-4-nearest"]


def test_a_reference_that_dies_in_turns_is_there_for_the_next(bench: Open) -> None:
    """A turn in which the reference dies is one failure of that pass; the reference is started again."""
    settings = Speed(images=1, batch=(3,), warm_up=0)
    mine, reference = bench(settings, name="nearest"), bench(settings)
    mine.measure(16)
    reference.measure(16)
    reference.session.options |= {"fault": "die", "only": "p0#1"}
    mine.compare(reference, 16)
    rows = mine.folder.rows("timed", "failed")
    assert ("size-16", "turns-1-faulty") in stages(rows, "wall_s")
    assert stages(rows, "timed") == [("size-16", "turns-3-faulty")]
    assert rows.loc[rows["metric"] == "timed", "error"].str.startswith("Unavailable: turns-3-faulty: ").all()
    reference.session.options |= {"fault": "none"}
    again = bench(settings, name="nearest")
    again.compare(reference, 16)
    assert ("size-16", "turns-3-faulty") in stages(again.folder.rows("timed"), "wall_s")
