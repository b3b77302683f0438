"""Chains of backends over real servers: what stages are sent, what is refused, and whole runs."""

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from backends.base import Batch, Description, Progress, SampleBatch
from backends.server import UpscalerServicer, start
from harness.chain import Chain, stage_seed
from harness.client import Client, Draw, Item
from harness.errors import BackendFailed, ConfigError, HarnessError
from harness.images import load
from harness.plan import CLEAN, Job, parse_entry
from harness.replicas import Replicas
from harness.runner import new_progress, run
from harness.sampling import Sampler
from harness.score import stored_outputs
from harness.store import RunFolder, slug
from harness.suite import Suite, load_suite

ITEMS = [Item(f"p{i}", np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8), i) for i in range(3)]


class Enlarger:
    """Repeats pixels and adds the seed, so that another one shows; keeps what it was told of images."""

    def __init__(self, **says: Any) -> None:
        base = Description("enlarger", "diffusion", "ab" * 32, (2,), "none", "tests", classes=("a", "b"))
        self.description = replace(base, **({"deterministic": False} | says))
        self.told: list[tuple[int, int | None, float | None]] = []

    def upscale(self, batch: Batch, progress: Progress) -> NDArray[np.uint8]:
        """See `Backend.upscale`."""
        progress(1, 1)
        self.told += zip(batch.seeds, batch.classes, batch.levels, strict=True)
        large = batch.images.repeat(batch.scale, axis=1).repeat(batch.scale, axis=2)
        return large + np.array(batch.seeds, np.uint64).astype(np.uint8)[:, None, None, None]


class Base:
    """A generator of flat images of the seed's colour, 4 x 4 unless it says otherwise."""

    def __init__(self, **says: Any) -> None:
        base = Description("base", "diffusion", "cd" * 32, (), "none", "tests", classes=("a", "b"), generated_size=4)
        self.description = replace(base, **({"deterministic": False} | says))

    def generate(self, batch: SampleBatch, progress: Progress) -> NDArray[np.uint8]:
        """See `Generative.generate`."""
        progress(1, 1)
        return np.stack([np.full((batch.size, batch.size, 3), seed % 256, np.uint8) for seed in batch.seeds])


@pytest.fixture
def attach() -> Iterator[Callable[[Any], str]]:
    """Serves models in this process; gives `NAME@ADDRESS` of each."""
    with ExitStack() as stack:

        def serve(model: Any) -> str:
            server, _, port = start(UpscalerServicer(model), "127.0.0.1:0")
            stack.callback(lambda: server.stop(None).wait())
            return f"{model.description.name}@127.0.0.1:{port}"

        yield serve


@contextmanager
def opened(text: str, log: Path = Path("unused"), high: int = 32, deadline_s: float = 20) -> Iterator[Replicas]:
    """A chain in use, under a suite from 8 pixels."""
    settings = {"name": "s", "title": "s", "low": 8, "high": high, "metrics": ("psnr",), "deadline_s": deadline_s}
    chain = Replicas(parse_entry(text), Suite.model_validate(settings), log, {})
    try:
        chain.open()
        yield chain
    finally:
        chain.close()


def test_chains_are_read() -> None:
    """A name may come first, each stage has settings, options, a scale and a level; one backend is no chain."""
    chain = parse_entry("my stack = sr3,steps=4 -> cdm@h:1,scale=4,conditioning_level=0.25,name=up")
    first, second = chain.stages
    assert (chain.label, first.options, first.level) == ("my stack", {"steps": "4"}, None)
    assert (second.label, second.address, second.scale, second.level, second.options) == ("up", "h:1", 4, 0.25, {})
    assert parse_entry("sr3,steps=4->sr3").label == "sr3 to sr3"
    assert parse_entry("sr3,steps=4").stages == ()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("sr3 ->", "a name is"),
        ("sr3 -> sr3@h:1+h:2", "has no replicas"),
        ("sr3,scale=x -> sr3", "scale=x: a whole number"),
        ("sr3 -> sr3,conditioning_level=2", "from 0 to 1"),
        (f"{'a' * 30} -> {'b' * 30}", "put NAME = in front"),
    ],
)
def test_wrong_chains_are_refused(text: str, words: str) -> None:
    """What is no chain is a ConfigError that says why."""
    with pytest.raises(ConfigError, match=words):
        parse_entry(text)


def test_stages_are_told_what_is_theirs(attach: Callable[[Any], str]) -> None:
    """The second stage has the first's output, a seed of its own, the class, and its level; the first no class here."""
    first, second = Enlarger(classes=()), Enlarger()
    with opened(f"{attach(first)} -> {attach(second)},conditioning_level=0.5") as chain:
        (passages,) = chain.staged([replace(ITEMS[2], class_index=1)])
    seed = stage_seed(2, 1)
    assert (first.told, second.told) == ([(2, None, None)], [(seed, 1, 0.5)])
    assert not isinstance(passages, HarnessError)
    middle, last = passages
    np.testing.assert_array_equal(middle.image, ITEMS[2].image.repeat(2, axis=0).repeat(2, axis=1) + 2)
    np.testing.assert_array_equal(last.image, middle.image.repeat(2, axis=0).repeat(2, axis=1) + np.uint8(seed % 256))
    assert chain.record["options"] == {"2.conditioning_level": 0.5}
    assert (chain.record["family"], chain.record["deterministic"]) == ("diffusion", False)


def test_a_chain_generates_what_its_first_stage_begins(attach: Callable[[Any], str]) -> None:
    """Images have the size of the last stage, and are the same for the same seeds."""
    text = f"{attach(Base())} -> {attach(Enlarger())}"
    settings = {"name": "s", "title": "s", "photos": {"scale": 2, "max_pixels": 4096}, "metrics": ("sharpness",)}
    chain = Replicas(parse_entry(text), Suite.model_validate(settings), Path("unused"), {})
    chain.open()
    (session,) = chain.sessions
    assert (session.generative, session.description.generated_size) == (True, 8)
    assert list(session.description.classes) == ["a", "b"]
    (passages,) = chain.staged([Draw("x", 7, 1)])
    assert isinstance(passages, list)
    np.testing.assert_array_equal(passages[-1].image, np.full((8, 8, 3), (7 + stage_seed(7, 1)) % 256))
    chain.close()


@pytest.mark.parametrize(
    ("first", "second", "options", "words"),
    [
        (Enlarger(), Enlarger(), "", "has no scale 8; it has .4."),
        (
            Enlarger(),
            Enlarger(scales=(2, 4)),
            "",
            r"stage 2, enlarger: has the scales \[2, 4\]; choose one",
        ),
        (Enlarger(), Enlarger(), ",scale=4", r"stage 2, enlarger: has no scale 4; it has \[2\]"),
        (Enlarger(), Enlarger(), ",steps=4", "stage 2, enlarger: enlarger has no option 'steps'"),
        (Enlarger(), Base(), "", "stage 2, base: only generates images"),
        (Base(), Enlarger(), "", "stage 1, base, only generates images, it does not upscale"),
        (Base(), Enlarger(minimum=16), "", "stage 2, enlarger, takes inputs of at least 16 pixels, not 4 x 4"),
        (
            Enlarger(),
            Enlarger(scales=(4,), maximum=12),
            "",
            "stage 2, enlarger, takes inputs of 1 to 12 pixels",
        ),
        (Enlarger(), Enlarger(scales=(4,), multiple_of=32), "", "in steps of 32, not 16 x 16"),
        (Enlarger(), Enlarger(classes=("c",)), "", "stage 2, enlarger: its classes are not those"),
        (Enlarger(family="replay"), Enlarger(), "", "stage 1, enlarger: stored outputs are no stage"),
    ],
)
def test_stages_that_do_not_fit_are_refused(
    first: Any, second: Any, options: str, words: str, attach: Callable[[Any], str]
) -> None:
    """Scales, sizes, options and classes that do not meet are one line before anything is computed."""
    with pytest.raises(HarnessError, match=words), opened(f"{attach(first)} -> {attach(second)}{options}", high=64):
        pass
    assert not getattr(first, "told", [])


def test_a_stage_that_fails_names_itself_and_comes_back(tmp_path: Path) -> None:
    """An error of the second stage says so and costs its image; a stage that was killed is started again."""
    with opened("nearest,scale=2 -> faulty,scale=2,fault=crash,only=p1", tmp_path / "log") as chain:
        first, failed, last = chain.upscale(ITEMS)
        assert isinstance(failed, BackendFailed)
        assert str(failed).startswith("stage 2, faulty: ")
        servers = chain.sessions[0].servers
        assert servers[1].process is not None
        servers[1].kill()
        again = chain.upscale([ITEMS[0], ITEMS[2]])
        np.testing.assert_array_equal([first, last], again)
        assert len(list(tmp_path.iterdir())) == 2  # a log each


def test_a_chain_that_is_given_up_is_ended(attach: Callable[[Any], str], tmp_path: Path) -> None:
    """Its local stage, which hangs, does not compute on until the run ends, though the other one runs elsewhere."""
    text = f"faulty,scale=2,fault=hang -> {attach(Enlarger())}"
    with opened(text, tmp_path / "log", deadline_s=0.3) as chain:
        (session,) = chain.sessions
        assert isinstance(session, Chain)
        server = session.stages[0].server
        assert server is not None
        assert server.alive()
        chain.upscale(ITEMS)
        assert "given up after" in str(session.given_up)
        assert not server.alive()


def harness(*arguments: object) -> subprocess.CompletedProcess[str]:
    """Run the command line in a process of its own."""
    command = [sys.executable, "-m", "harness", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=240)


def test_a_chain_in_a_run(
    suite_file: Callable[..., Path], photos: Path, tmp_path: Path, serve: Callable[[str], Client]
) -> None:
    """Outputs are those of the stages called by hand, rows and report name the stages, nothing is called twice."""
    out, suite = tmp_path / "run", suite_file(backends='["two = bicubic,scale=2 -> nearest,scale=2"]')
    arguments = ("run", suite, "--dataset", f"folder:{photos}", "--limit", 6, "--output", out)
    done = harness(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = RunFolder(out)
    record = folder.read_record() or {}
    backend = next(b for b in record["backends"] if b["label"] == "two")
    images = pd.read_parquet(out / "images.parquet")
    outputs = stored_outputs(folder, images, backend, CLEAN, 4)
    assert len(outputs) == 6
    for image, path in outputs.items():
        middle = serve("bicubic").upscale([Item("a", load(folder.input("clean", image)), 0)], 2, {}, 20).images[0]
        last = serve("nearest").upscale([Item("a", middle, 0)], 2, {}, 20).images[0]
        np.testing.assert_array_equal(load(path), last)
    rows = folder.rows()
    timed = rows[rows["metric"] == "stage_compute_s"]
    assert timed.groupby(["stage", "scale"]).size().to_dict() == {("1 bicubic", 2): 6, ("2 nearest", 2): 6}
    seeds = timed.pivot_table(index="image", columns="stage", values="seed", aggfunc="first")
    assert [stage_seed(int(s), 1) for s in seeds["1 bicubic"]] == [int(s) for s in seeds["2 nearest"]]
    table = pd.read_parquet(out / "tables/stages.parquet")
    assert table[["name", "output_px", "n"]].to_numpy().tolist() == [["bicubic", 24, 6], ["nearest", 48, 6]]
    assert table["share"].sum() == pytest.approx(1)
    assert table["psnr"].notna().all()
    assert "Chains, stage by stage" in (out / "report.html").read_text()
    before = {p: p.stat().st_mtime_ns for part in ("rows", "outputs") for p in (out / part).rglob("*.p*")}
    assert harness(*arguments).returncode == 0
    assert before == {p: p.stat().st_mtime_ns for part in ("rows", "outputs") for p in (out / part).rglob("*.p*")}
    assert json.loads((out / "run.json").read_text())["backends"][-1]["stages"][1]["stage"] == "2 nearest"


@pytest.fixture
def crashing(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The harness ends after the first output of the chain `two` that it writes."""
    write = RunFolder.write_image

    def last(folder: RunFolder, path: Path, image: NDArray[np.uint8]) -> None:
        write(folder, path, image)
        if slug("two") in path.parts and not path.parent.name.startswith("stage-"):
            raise KeyboardInterrupt

    monkeypatch.setattr(RunFolder, "write_image", last)
    return monkeypatch


def timed_images(folder: RunFolder) -> set[str]:
    """The images of which each stage has a time."""
    rows = folder.rows("part").query("metric == 'stage_compute_s'")
    return {str(image) for image, stages in rows.groupby("image")["stage"] if stages.nunique() == 2}


def test_a_crash_loses_no_time_of_a_stored_output(
    attach: Callable[[Any], str],
    suite_file: Callable[..., Path],
    photos: Path,
    tmp_path: Path,
    crashing: pytest.MonkeyPatch,
) -> None:
    """An output that is there is not made again, so the times of its stages are written before it."""
    chain = f"two = {attach(Enlarger())} -> {attach(Enlarger())}"
    job = Job(load_suite(str(suite_file())), f"folder:{photos}", (chain,), tmp_path / "run", 6, "")
    with new_progress() as progress, pytest.raises(KeyboardInterrupt):
        run(job, progress)
    crashing.undo()
    with new_progress() as progress:
        folder = run(job, progress)
    assert len(timed_images(folder)) == 6


def test_a_crash_loses_no_time_of_a_generated_image(
    attach: Callable[[Any], str], tmp_path: Path, crashing: pytest.MonkeyPatch
) -> None:
    """As of an output."""
    settings = {"name": "s", "title": "s", "metrics": (), "generation": {"size": 32, "samples": 4}}
    suite = Suite.model_validate(settings)
    folder = RunFolder(tmp_path)
    chain = Replicas(
        parse_entry(f"two = {attach(Base(generated_size=16))} -> {attach(Enlarger())}"), suite, Path("unused"), {}
    )
    chain.open()
    sampler = Sampler(folder, suite, chain, {"backend": "two"})
    with new_progress() as progress, pytest.raises(KeyboardInterrupt):
        list(sampler.run(progress))
    crashing.undo()
    with new_progress() as progress:
        assert list(sampler.run(progress)) == []
    chain.close()
    assert len(timed_images(folder)) == 8
