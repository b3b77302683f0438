"""Generation suites from end to end: generators behind real servers, good and bad ones, each called by its name."""

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from numpy.typing import NDArray
from PIL import Image

from backends.base import Description, Progress, SampleBatch
from backends.interpolation import Nearest
from backends.server import UpscalerServicer, start
from harness import weights
from harness.audit import write_tables
from harness.datasets import limit, open_dataset
from harness.degrade import make_target
from harness.errors import ConfigError, DatasetError, WeightsError
from harness.generation_tables import matched
from harness.metrics import BACKBONES
from harness.modes import dropping, missing
from harness.plan import Job
from harness.runner import new_progress, run
from harness.store import RunFolder
from harness.suite import parse_suite
from reports.build import build

Images = NDArray[np.uint8]
Pick = Callable[[int, int], tuple[int, int]]
"""The class and the number of the stored image that is the answer to a class and a seed."""

SUITE = """name: generated
title: Generated images
generation:
  size: 32
  samples: 60
  minimum: 60
  networks: [colours]
  instrument: null
networks:
  colours: NETWORK
"""
COLOURS = {"white male": (230, 60, 60), "white female": (60, 230, 60), "black male": (60, 60, 230)}


@dataclass(frozen=True)
class Replayed:
    """A generator that knows some images of each class, and answers with one that `pick` names."""

    stock: dict[str, Images]
    pick: Pick

    @property
    def description(self) -> Description:
        """See `Generative`."""
        base = Description("replayed", "other", "ab" * 32, (), "none", "tests", deterministic=False)
        side = next(iter(self.stock.values())).shape[1]
        return replace(base, generated_size=side, classes=tuple(self.stock), max_batch=32)

    def generate(self, batch: SampleBatch, progress: Progress) -> Images:
        """See `Generative.generate`."""
        progress(1, 1)
        stock = list(self.stock.values())
        found = [self.pick(place or 0, seed) for seed, place in zip(batch.seeds, batch.classes, strict=True)]
        return np.stack([stock[place][number % len(stock[place])] for place, number in found])


def each(_count: int = 60) -> Pick:
    """Another image for each seed, none twice."""
    seen: dict[tuple[int, int], int] = {}
    return lambda place, seed: (place, seen.setdefault((place, seed), sum(p == place for p, _ in seen)))


def three(place: int, seed: int) -> tuple[int, int]:
    """One of three images of a class, whatever the seed."""
    return place, seed % 3


def without_last() -> Pick:
    """Images of the first class where the third is asked for."""
    pick = each()
    return lambda place, seed: (0 if place == 2 else place, pick(place, seed)[1] + 60 * (place == 2))


@pytest.fixture
def serve_all() -> Iterator[Callable[..., list[str]]]:
    """Serves models in this process, each under its name; gives them as a job names backends."""
    with ExitStack() as stack:

        def serve(**models: object) -> list[str]:
            found = []
            for name, model in models.items():
                server, _, port = start(UpscalerServicer(model), "127.0.0.1:0")  # type: ignore[arg-type]
                stack.callback(lambda s: s.stop(None).wait(), server)
                found.append(f"{name}@127.0.0.1:{port},name={name}")
            return found

        yield serve


def blobs(colour: Sequence[int], count: int, rng: np.random.Generator) -> Images:
    """Images of about one colour, each with its own."""
    means = np.array(colour) + rng.normal(0, 9, (count, 3))
    noisy = means[:, None, None] + rng.normal(0, 4, (count, 32, 32, 3))
    return noisy.clip(0, 255).astype(np.uint8)


def write_split(folder: Path, split: str, images: dict[str, Images]) -> None:
    """One split of a dataset of photos with race and gender."""
    rows = [(kind.split(), image) for kind, stack in images.items() for image in stack]
    table = {
        "image": [{"bytes": _png(image), "path": f"{split}{i}.png"} for i, (_, image) in enumerate(rows)],
        "race": [kind[0] for kind, _ in rows],
        "gender": [kind[1] for kind, _ in rows],
    }
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.table(table), folder / f"{split}-00000-of-00001.parquet")


def _png(image: Images) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module", autouse=True)
def lpips() -> None:
    """The weights of LPIPS, or a reason why there are none."""
    try:
        weights.resolve(BACKBONES["alex"][0])
    except WeightsError as error:
        pytest.skip(str(error))


@pytest.fixture
def colours(tmp_path: Path, write_graph: Callable[..., Path]) -> str:
    """A dataset of two splits of coloured images, and beside it the suite whose features are their mean colours."""
    rng = np.random.default_rng(7)
    for split in ("train", "test"):
        write_split(tmp_path / "data", split, {kind: blobs(c, 60, rng) for kind, c in COLOURS.items()})
    write_graph(tmp_path / "colours.onnx", batch="n")
    about = "path: colours.onnx\nsize: 32\nmean: [0, 0, 0]\nstd: [1, 1, 1]\nfeatures: features\n"
    (tmp_path / "colours.yaml").write_text(about)
    return SUITE.replace("NETWORK", str(tmp_path / "colours.yaml"))


def job(suite: str, tmp_path: Path, backends: list[str], split: str = "#test") -> Job:
    """A run of a suite over the dataset."""
    made = parse_suite(suite, "g.yaml")
    return Job(made, f"parquet:{tmp_path / 'data'}{split}", tuple(backends), tmp_path / "run", None, "test")


def of(tables: dict[str, pd.DataFrame], name: str, **where: object) -> pd.DataFrame:
    """Rows of a table."""
    frame = tables[name]
    for column, value in where.items():
        frame = frame[frame[column] == value]
    return frame


def found_by(tables: dict[str, pd.DataFrame], label: str) -> set[tuple[str, str]]:
    """The signs that are found in a backend, with their classes."""
    return set(
        of(tables, "modes", backend=label, verdict="found")[["sign", "class"]].itertuples(index=False, name=None)
    )


def test_planted_faults_are_named_and_a_real_set_is_not(
    colours: str, tmp_path: Path, serve_all: Callable[..., list[str]]
) -> None:
    """Three images for all seeds are a collapse, a class never made is dropped, real images are neither.

    The classifier that has not seen a class does not find it. An upscaler costs one line. A second run asks nothing.
    """
    stock = {kind: blobs(c, 120, np.random.default_rng(8)) for kind, c in COLOURS.items()}
    models = {"fair": each(), "few": three, "lost": without_last()}
    backends = serve_all(**{name: Replayed(stock, pick) for name, pick in models.items()}, upscaler=Nearest())
    with new_progress() as progress:
        folder = run(job(colours, tmp_path, backends), progress)
    tables = write_tables(folder)
    assert found_by(tables, "fair") == set()
    assert found_by(tables, "few") >= {("collapse", kind) for kind in ("all", *COLOURS)}
    assert found_by(tables, "lost") == {("dropping", "black male")}
    (lost,) = of(tables, "classification", backend="lost", **{"class": "black male"}).to_dict("records")
    assert (lost["n"], lost["trained"], lost["value"] < 0.2, lost["verdict"]) == (60, 180, True, "not judged")
    assert of(tables, "classification", backend="lost", **{"class": "all"})["verdict"].item() == "worse"
    assert of(tables, "classification", backend="fair", **{"class": "all"})["value"].item() > 0.95
    (failed,) = tables["failures"].to_dict("records")
    assert (failed["backend"], failed["kind"]) == ("upscaler", "Incompatible")
    assert "does not generate images" in failed["message"]
    assert set(of(tables, "generated", backend="fair")["measure"]) == set(of(tables, "generated")["measure"])
    _generators_are_compared(tables)
    _report_says(folder)
    files = {path: path.stat().st_mtime_ns for path in sorted(tmp_path.glob("run/[ofc]*/**/*.p*"))}
    with new_progress() as progress:
        run(job(colours, tmp_path, backends), progress)
    assert {path: path.stat().st_mtime_ns for path in sorted(tmp_path.glob("run/[ofc]*/**/*.p*"))} == files


def _generators_are_compared(tables: dict[str, pd.DataFrame]) -> None:
    """The better generator wins each comparison that its rival's fault shows in, by the difference of their figures."""
    assert set(zip(tables["generators"]["first"], tables["generators"]["second"], strict=True)) == {
        *(("fair", "few"), ("fair", "lost"), ("few", "lost"))
    }
    few = of(tables, "generators", first="fair", second="few", **{"class": "all"}).set_index("measure")
    assert few.loc[["recall", "coverage"], "verdict"].tolist() == ["better"] * 2
    kinds = of(tables, "generators", first="fair", second="lost").set_index(["measure", "class"])
    assert kinds.loc[("kid", "black male"), "verdict"] == "better"
    assert kinds.loc[("coverage", "white male"), "verdict"] == "tie"
    assert kinds.loc[("accuracy", "all"), "verdict"] == "better"
    assert kinds.loc[("accuracy", "black male"), "verdict"] == "not judged"
    own = tables["generated"].query("measure == 'kid' and against == 'test'").set_index(["backend", "class"])["value"]
    assert few.loc["kid", "difference"] == pytest.approx(own["fair", "all"] - own["few", "all"])
    costs = of(tables, "generated", measure="seconds").set_index("backend")
    assert costs["n"].to_dict() == dict.fromkeys(("fair", "few", "lost"), 180)
    assert (costs["value"] >= 0).all()


def _report_says(folder: RunFolder) -> None:
    """The report names the faults."""
    build(folder.path)
    text = (folder.path / "report.md").read_text()
    assert "few, the same few images again and again: all, white male, white female" in text
    assert "lost, asked for but not made: black male" in text
    assert "fair: none has collapsed, of 4 classes and groups looked at" in text


def test_a_chain_that_generates_has_its_stages_in_the_report(
    colours: str, tmp_path: Path, serve_all: Callable[..., list[str]]
) -> None:
    """Each stage has a row with the time of every image, and the shares of a chain add up to the whole."""
    stock = {kind: blobs(c, 60, np.random.default_rng(8))[:, :16, :16] for kind, c in COLOURS.items()}
    first, second = serve_all(fair=Replayed(stock, each()), nearest=Nearest())
    chain = f"stack = {first} -> {second},scale=2"
    with new_progress() as progress:
        folder = run(job(colours.replace("minimum", "classification: false\n  minimum"), tmp_path, [chain]), progress)
    tables = write_tables(folder)
    rows = tables["stages"]
    assert rows["name"].tolist() == ["fair", "nearest"]
    assert rows["output_px"].tolist() == [16, 32]
    assert rows["n"].tolist() == [180, 180]
    assert rows["share"].sum() == pytest.approx(1)
    (cost,) = of(tables, "generated", measure="seconds")["value"]
    assert cost >= rows["compute_p50"].max()
    build(folder.path)
    assert "stack is a chain: fair; nearest (× 2)." in (folder.path / "report.md").read_text()


def test_small_classes_are_insufficient(colours: str, tmp_path: Path, serve_all: Callable[..., list[str]]) -> None:
    """With a minimum above what there is, no class has a figure or a finding; all together may have."""
    stock = {kind: blobs(c, 60, np.random.default_rng(8)) for kind, c in COLOURS.items()}
    suite = colours.replace("minimum: 60", "minimum: 100\n  classification: false")
    with new_progress() as progress:
        tables = write_tables(run(job(suite, tmp_path, serve_all(fair=Replayed(stock, each()))), progress))
    kid = of(tables, "generated", measure="kid", against="test", backend="fair").set_index("class")
    assert kid["status"].to_dict() == {"all": "ok"} | dict.fromkeys(COLOURS, "insufficient")
    assert kid["value"].notna().tolist() == [True, False, False, False]
    assert kid["n"].to_dict() == {"all": 180} | dict.fromkeys(COLOURS, 60)
    sets = of(tables, "generated", backend="fair", network="colours")
    keys = [[*zip(rows["against"], rows["measure"], strict=True)] for _, rows in sets.groupby("class")]
    assert all(found == keys[0] for found in keys)
    verdicts = of(tables, "modes", backend="fair").set_index(["sign", "class"])["verdict"]
    assert verdicts["collapse"].to_dict() == {"all": "not found"} | dict.fromkeys(COLOURS, "insufficient")
    assert not len(tables["classification"])


def test_what_cannot_be_compared_is_refused(colours: str, tmp_path: Path) -> None:
    """No generator, a dataset without a split of its own or without the attributes, a split that is not there."""
    with new_progress() as progress, pytest.raises(ConfigError, match="no generator is named"):
        run(job(colours, tmp_path, []), progress)
    for suite, split, words in (
        (colours, "", "several splits"),
        (colours, "#train", "name the split to test on"),
        (colours.replace("minimum", "training: nowhere\n  minimum"), "#test", "nowhere"),
        (colours.replace("minimum", "attributes: [age]\n  minimum"), "#test", "no labels of age"),
    ):
        with new_progress() as progress, pytest.raises((DatasetError, ConfigError), match=words):
            run(replace(job(suite, tmp_path, ["nearest"], split), output=tmp_path / words), progress)


def test_sets_are_matched_class_by_class() -> None:
    """As many of each class as the smaller set has; of a set without classes, of all."""
    first = pd.DataFrame({"image": list("abcde"), "class": list("xxxyy")})
    second = pd.DataFrame({"image": list("ABCDE"), "class": list("xxyyy")})
    assert matched({"f": first, "s": second}, "all") == {"f": ["a", "b", "d", "e"], "s": ["A", "B", "C", "D"]}
    assert matched({"f": first, "s": second}, "y") == {"f": ["d", "e"], "s": ["C", "D"]}
    free = pd.DataFrame({"image": list("pq"), "class": ["all", "all"]})
    assert matched({"g": free, "s": second}, "all") == {"g": ["p", "q"], "s": ["A", "B"]}


@pytest.fixture
def faces(data_root: Path, tmp_path: Path) -> dict[str, Images]:
    """Photos of three groups: 60 of each in both splits of a dataset, and 120 others that generators may know."""
    return photos_of(("white male", "black female", "asian male"), data_root, tmp_path)


def photos_of(kinds: Sequence[str], data_root: Path, tmp_path: Path) -> dict[str, Images]:
    """As `faces`, of any three groups."""
    dataset = open_dataset(f"utkface:{data_root / 'utkface'}#train")
    known: dict[str, list[Images]] = {kind: [] for kind in kinds}
    for record in limit(dataset, 6000).records:
        kind = f"{record.labels['race']} {record.labels['gender']}"
        if len(known.get(kind, range(240))) < 240:
            known[kind].append(make_target(dataset.image(record), 64))
    stock = {kind: np.stack(images) for kind, images in known.items()}
    for i, split in enumerate(("train", "test")):
        write_split(tmp_path / "data", split, {kind: images[60 * i : 60 * i + 60] for kind, images in stock.items()})
    return {kind: images[120:] for kind, images in stock.items()}


def test_planted_faults_are_named_among_faces(
    faces: dict[str, Images], tmp_path: Path, serve_all: Callable[..., list[str]]
) -> None:
    """With real photos, the shipped features and instrument too; the group that is lost is named as well."""
    text = "size: 64\n  samples: 60\n  minimum: 60\n  classification: false\n"
    suite = f"name: faces\ntitle: Faces\ngeneration:\n  {text}"
    models = {"fair": each(), "few": three, "lost": without_last()}
    backends = serve_all(**{name: Replayed(faces, pick) for name, pick in models.items()})
    with new_progress() as progress:
        tables = write_tables(run(job(suite, tmp_path, backends), progress))
    assert found_by(tables, "fair") == set()
    assert ("collapse", "all") in found_by(tables, "few")
    assert found_by(tables, "lost") >= {("dropping", "asian male"), ("dropping", "race = asian")}
    assert "collapse" not in {sign for sign, _ in found_by(tables, "lost")}


def test_a_class_that_cannot_be_read_is_never_cleared(
    data_root: Path, tmp_path: Path, serve_all: Callable[..., list[str]]
) -> None:
    """Where real photos of the lost class are seldom read as it, its loss is found or not judged, and told as such."""
    stock = photos_of(("white male", "black female", "other female"), data_root, tmp_path)
    text = "size: 64\n  samples: 60\n  minimum: 60\n  classification: false\n"
    suite = f"name: faces\ntitle: Faces\ngeneration:\n  {text}"
    with new_progress() as progress:
        folder = run(job(suite, tmp_path, serve_all(lost=Replayed(stock, without_last()))), progress)
    tables = write_tables(folder)
    verdicts = of(tables, "modes", backend="lost", sign="dropping").set_index("class")["verdict"]
    assert verdicts["other female"] != "not found"
    assert set(verdicts[verdicts.index.str.startswith("race = other")]) <= {"found", "not judged"}
    assert verdicts["white male"] == "not found"
    build(folder.path)
    assert "lost: not judged for dropping" in (folder.path / "report.md").read_text()


def test_coverage_alone_finds_a_missing_group_and_clears_none() -> None:
    """A group that photos of it are not read as has no verdict, whatever is read; one that is read has."""
    none, some = (0.0, 0.0, 0.01), (0.3, 0.25, 0.35)
    assert [missing(own, some, 0.9)["verdict"] for own in (none, some)] == ["found", "not found"]
    assert [missing(none, some, share)["verdict"] for share in (0.4, float("nan"))] == ["not judged"] * 2
    rows = {
        name: {"coverage": {"n": 60, "value": v[0], "low": v[1], "high": v[2]}}
        for name, v in (("no", none), ("so", some))
    }
    assert [dropping(rows[own], rows["so"], None)["verdict"] for own in ("no", "so")] == ["found", "not judged"]
    assert dropping(rows["so"], rows["so"], (none, (0.4, 0.3, 0.5)))["verdict"] == "not judged"
    assert dropping(rows["no"], rows["so"], (some, (0.8, 0.7, 0.9)))["verdict"] == "not found"
