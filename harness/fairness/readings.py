"""What the instruments say of every clean output, stored, and the rows that come of comparing it with the target's.

    readings/INSTRUMENT-VERSION/BACKEND.parquet    condition, image, sample, encoding, found, ATTRIBUTE:LABEL ...
                                                   (for identity 0 ... 127, for skin L, a, b, ita, monk)

The target is read twice: as it is (encoding "png") and coded as JPEG ("jpeg90"). What an instrument says otherwise of
the second is its own noise, and these comparisons are the rows of the control arm.

ATTRIBUTE_flip_INSTRUMENT   1 if the output is called otherwise than the target (all attributes with labels but age)
ATTRIBUTE_hit_INSTRUMENT    1 if the output is called what the data set says
age_shift_INSTRUMENT        years that the output is older than the target
identity_similarity         cosine of the face embeddings of output and target, both cut where the target's face is
skin_dl, skin_dita, ...     shift of the skin tone from target to output (see `harness.fairness.skin`)
face_missing_INSTRUMENT     1 if no face is found in the output, for instruments that search for it
"""

import hashlib
import io
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from PIL import Image
from rich.progress import Progress
from threadpoolctl import threadpool_limits

from harness.degrade import sample_seed
from harness.errors import StoreError
from harness.fairness import identity, skin
from harness.fairness.instruments import (
    FACE_NOT_FOUND,
    NO_PREDICTION,
    Instrument,
    Predictions,
    open_instrument,
    years,
)
from harness.images import load
from harness.networks import BATCH, PIXELS
from harness.plan import CLEAN, uninformative_conditions
from harness.score import CONTROL, image_labels, output_path, scale_of
from harness.score import identity as row_identity
from harness.store import Row, RunFolder, equal_sizes, is_whole, read_table, slug
from harness.suite import IDENTITY, Suite, stored_suite

Images = NDArray[np.uint8]
About = dict[str, Any]
"""What `describe_instruments` says of one instrument."""

KEY = ["condition", "image", "sample", "encoding"]
ROW_KEY = ["backend", "digest", "options", "image", "metric"]
PNG, JPEG = "png", "jpeg90"
SKIN = "skin"
SKIN_MEASURES = {
    "skin_dl": ("Skin lightness shift dL*", "L*"),
    "skin_dita": ("Skin angle shift dITA", "degrees"),
    "skin_de": ("Skin colour shift dE (1976)", "dE"),
    "monk_shift": ("Monk tone shift (+ is darker)", "tones"),
}
NO_LABEL = "label unknown"
MOST_PROCESSES = 8
"""That search for faces: each holds some 300 MB."""
NO_TARGET_FACE = f"{FACE_NOT_FOUND} in the target"
SEARCHES = (FACE_NOT_FOUND, NO_TARGET_FACE)
"""What is missing from the readings of instruments that search for faces with dlib."""


class Shown(NamedTuple):
    """A stored picture, as an instrument is to see it."""

    condition: str
    image: str
    sample: int
    encoding: str
    path: Path


def describe_instruments(suite: Suite) -> dict[str, About]:
    """For the run record, key "instruments": by name their recipe, labels by attribute, and what a missing one means.

    Raises:
        ConfigError, WeightsError: an instrument cannot be used, or age has labels that are no ranges.
    """
    if suite.fairness is None:
        return {}
    tools = [open_instrument(name, suite.networks.get(name, "")) for name in suite.fairness.instruments]
    for tool in tools:
        if labels := tool.labels.get("age"):
            years(pd.DataFrame(columns=list(labels)))
    about = {t.name: {"recipe": t.recipe, "labels": t.labels, "missing": t.missing} for t in tools}
    if suite.fairness.identity:
        about[IDENTITY] = {"recipe": identity.recipe(), "labels": {}, "missing": NO_TARGET_FACE}
    if suite.fairness.skin:
        about[SKIN] = {"recipe": skin.RECIPE, "labels": {}, "missing": ""}
    return about


def describe_measures(instruments: dict[str, About]) -> dict[str, dict[str, Any]]:
    """Title, unit, direction (None: neither is better), recipe and instrument of each metric of the rows."""
    return {
        metric: {**measure, "recipe": f"{measure['recipe']}; {about['recipe']}", "instrument": name}
        for name, about in instruments.items()
        for metric, measure in _measures(name, about)
    }


def _measures(name: str, about: About) -> Iterator[tuple[str, dict[str, Any]]]:
    for attribute in _classified(about):
        flips, hits = f"called another {attribute} than the target", f"called the {attribute} of its label"
        yield f"{attribute}_flip_{name}", _measure(f"{attribute.title()} flips ({name})", "rate", False, flips)
        yield f"{attribute}_hit_{name}", _measure(f"{attribute.title()} hits ({name})", "rate", True, hits)
    if "age" in about["labels"]:
        yield f"age_shift_{name}", _measure(f"Age shift ({name})", "years", None, "age of the output less the target's")
    if name == IDENTITY:
        recipe = "cosine of the embeddings of output and target"
        yield f"{IDENTITY}_similarity", _measure("Identity similarity", "cosine", True, recipe)
    if name == SKIN:
        for metric, (title, unit) in SKIN_MEASURES.items():
            yield metric, _measure(title, unit, None, "output less target")
    if about["missing"] == FACE_NOT_FOUND:
        yield f"face_missing_{name}", _measure(f"Faces not found ({name})", "rate", False, "no face in the output")


def _measure(title: str, unit: str, higher_is_better: bool | None, recipe: str) -> dict[str, Any]:  # noqa: FBT001
    return {"title": title, "unit": unit, "higher_is_better": higher_is_better, "recipe": recipe}


def _classified(about: About) -> list[str]:
    """The attributes that are labels, not ages."""
    return [attribute for attribute, labels in about["labels"].items() if labels and attribute != "age"]


def measure_readings(folder: RunFolder, progress: Progress) -> None:
    """Store what each instrument of the suite says of all clean outputs, and the rows that are not there yet.

    Readings of the same pictures by the same recipe are kept. The record names the instruments (`instruments`).

    Raises:
        ConfigError, WeightsError, StoreError: an instrument is needed and is not there, or is no longer the run's.
    """
    record = folder.read_record() or {}
    instruments = record.get("instruments", {})
    task = progress.add_task("readings", total=len(record.get("backends", [])) * len(instruments))
    images = read_table(folder.path / "images.parquet") if instruments else pd.DataFrame()
    stored = {b["label"]: list(_shown(folder, record, images, b)) for b in record["backends"] if instruments}
    cores = min(MOST_PROCESSES, len(os.sched_getaffinity(0)))
    with ProcessPoolExecutor(cores, get_context("spawn"), _keep_to_itself) as pool:
        for name, about in instruments.items():
            apply = pool.map if about["missing"] in SEARCHES else map  # dlib works on one core, and holds the others up
            for backend in record["backends"]:
                shown = _seen_by(record, images, stored[backend["label"]], name)
                if not _has(_file(folder, backend, name, about), shown):
                    tables = apply(partial(_read, folder, record, name, backend["label"]), _batches(shown))
                    _write(folder, _file(folder, backend, name, about), tables)
                progress.advance(task)
            _append_rows(folder, record, images, name)


def _keep_to_itself() -> None:
    """Use one core, since there is a process for each, and leave Ctrl-C to the one that waits."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threadpool_limits(1)


def load_readings(folder: RunFolder, record: dict[str, Any], instrument: str) -> pd.DataFrame:
    """The stored readings of an instrument of the record, or of "identity", by backend and `KEY`.

    Columns: found, and ATTRIBUTE:LABEL probabilities, `age:value` years, or what identity and skin have.
    """
    about = record.get("instruments", {}).get(instrument)
    if about is None:
        return pd.DataFrame(columns=["backend", *KEY, "found"]).set_index(["backend", *KEY])
    files = {b["label"]: _file(folder, b, instrument, about) for b in record["backends"]}
    frames = [read_table(path).assign(backend=label) for label, path in files.items() if path.exists()]
    if not frames:
        return pd.DataFrame(columns=["backend", *KEY, "found"]).set_index(["backend", *KEY])
    return pd.concat(frames, ignore_index=True).set_index(["backend", *KEY])


def attribute_of(readings: pd.DataFrame, attribute: str) -> pd.DataFrame:
    """The columns of one attribute, called by their labels alone."""
    start = f"{attribute}:"
    names = [name for name in readings.columns if str(name).startswith(start)]
    return readings[names].rename(columns=lambda name: str(name).removeprefix(start))


def said(readings: pd.DataFrame, attribute: str) -> pd.Series:
    """The most probable label of each row, or None where there is no reading."""
    table = attribute_of(readings, attribute)
    sure = table.notna().all(axis=1)
    if table.empty:
        return pd.Series(None, readings.index, dtype=object)
    return table.fillna(0).idxmax(axis=1).astype(object).where(sure, None)


# Storing


def _file(folder: RunFolder, backend: dict[str, Any], name: str, about: About) -> Path:
    version = hashlib.sha256(about["recipe"].encode()).hexdigest()[:8]
    options = slug(str(row_identity(backend, "")))[-16:]
    return folder.path / "readings" / f"{name}-{version}" / f"{slug(backend['label'])}.{options}.parquet"


def _seen_by(record: dict[str, Any], images: pd.DataFrame, shown: list[Shown], name: str) -> list[Shown]:
    """What an instrument is to see of a backend's stored pictures."""
    about = record["instruments"][name]
    file = about["missing"] == NO_PREDICTION  # which knows one picture an image
    if file or name != next(iter(record["instruments"])):  # the first instrument alone reads what has no target
        shown = [picture for picture in shown if picture.condition == CLEAN.name and not picture.sample]
    if file:
        shown = [picture for picture in shown if picture.encoding == PNG]
    if name == IDENTITY:
        faces = _faces(images, record["suite"]["content"]["fairness"]["identity"])
        shown = [picture for picture in shown if picture.image in faces]
    return shown


def _has(path: Path, shown: list[Shown]) -> bool:
    """Whether exactly the readings of these pictures are stored; of none, always."""
    return not shown or (path.exists() and _stored(path) == {picture[:4] for picture in shown})


def _write(folder: RunFolder, path: Path, tables: Iterable[pd.DataFrame]) -> None:
    folder.write_table(str(path.relative_to(folder.path).with_suffix("")), pd.concat(list(tables), ignore_index=True))


def _faces(images: pd.DataFrame, count: int) -> set[str]:
    """The images that identities are compared on: by seed, in equal numbers per race x gender as far as they last."""
    usable = images[images["error"] == ""].sort_values("seed")
    groups = [attribute for attribute in ("race", "gender") if attribute in usable]
    turn = usable.groupby(groups).cumcount() if groups else pd.Series(0, usable.index)
    return set(usable.loc[turn.sort_values(kind="stable").index, "image"].head(count).astype(str))


def _stored(path: Path) -> set[tuple[str, str, int, str]]:
    return set(read_table(path)[KEY].itertuples(index=False, name=None))


def _shown(folder: RunFolder, record: dict[str, Any], images: pd.DataFrame, backend: dict[str, Any]) -> Iterator[Shown]:
    """The stored outputs, further samples included; of the control arm, each target in two encodings."""
    suite, control = stored_suite(record), backend["label"] == CONTROL
    posterior = suite.fairness.posterior if suite.fairness else None
    samples = posterior.samples if posterior and not backend["deterministic"] else 1
    asked = [(CLEAN, sample) for sample in range(samples)] + [(c, 0) for c in uninformative_conditions(suite)]
    encodings = (PNG, JPEG) if control else (PNG,)
    for image, seed in images.loc[images["error"] == "", ["image", "seed"]].itertuples(index=False):
        for condition, sample in asked:
            path = output_path(folder, backend, condition, str(image), sample_seed(int(seed), sample), suite.scale)
            if path is not None and is_whole(path):
                yield from (Shown(condition.name, str(image), sample, code, path) for code in encodings)


def _batches(shown: list[Shown]) -> Iterator[list[Shown]]:
    """Pictures of one size and encoding together."""
    for encoding in (PNG, JPEG):
        names = {str(i): picture for i, picture in enumerate(shown) if picture.encoding == encoding}
        for batch in equal_sizes(((key, picture.path) for key, picture in names.items()), BATCH, PIXELS):
            yield [names[key] for key, _ in batch]


def _read(folder: RunFolder, record: dict[str, Any], name: str, backend: str, shown: list[Shown]) -> pd.DataFrame:
    recipe, read = _reader(folder, record["suite"]["content"], name)
    if recipe != record["instruments"][name]["recipe"]:
        raise StoreError(f"{folder.path}: instrument {name} is no longer that of this run; choose another --output")
    keys, table = pd.DataFrame([picture[:4] for picture in shown], columns=KEY), read(backend, shown)
    return pd.concat([keys, table.notna().all(axis=1).rename("found"), table.astype(np.float32)], axis=1)


def _reader(
    folder: RunFolder, content: dict[str, Any], name: str
) -> tuple[str, Callable[[str, list[Shown]], pd.DataFrame]]:
    """The recipe of an instrument or of the embeddings, and what reads a backend's pictures."""
    if name == IDENTITY:
        return identity.recipe(), lambda _, shown: _embeddings(folder, shown)
    if name == SKIN:
        return skin.RECIPE, lambda _, shown: skin.skin_readings(_pixels(shown))
    chosen = next(text for text in content["fairness"]["instruments"] if text.partition(":")[0] == name)
    tool = open_instrument(chosen, content["networks"].get(name, ""))
    return tool.recipe, partial(_attributes, tool)


def _embeddings(folder: RunFolder, shown: list[Shown]) -> pd.DataFrame:
    targets = np.stack([load(folder.target(picture.image)) for picture in shown])
    return pd.DataFrame(identity.embed(_pixels(shown), targets)).rename(columns=str)


def _attributes(tool: Instrument | Predictions, backend: str, shown: list[Shown]) -> pd.DataFrame:
    if isinstance(tool, Predictions):
        tables = tool.of(backend, [picture.image for picture in shown])
    else:
        tables = tool.read(_pixels(shown))
    return pd.concat([table.add_prefix(f"{attribute}:") for attribute, table in tables.items()], axis=1)


def _pixels(shown: list[Shown]) -> Images:
    return np.stack([_seen(load(picture.path), picture.encoding) for picture in shown])


def _seen(image: Images, encoding: str) -> Images:
    """The pixels as they are, or after coding as JPEG of quality 90 without chroma subsampling."""
    if encoding == PNG:
        return image
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=90, subsampling=0)
    return np.asarray(Image.open(buffer))


# Comparing


def _append_rows(folder: RunFolder, record: dict[str, Any], images: pd.DataFrame, name: str) -> None:
    """The rows of one instrument that are not there yet."""
    readings, about = load_readings(folder, record, name), record["instruments"][name]
    targets = first_outputs(readings, CONTROL, PNG)
    labels, done = image_labels(images), _done(folder)
    common = {"condition": CLEAN.name, "scale": scale_of(record)}
    for backend in record["backends"]:
        outputs = first_outputs(readings, backend["label"], JPEG if backend["label"] == CONTROL else PNG)
        who = row_identity(backend, record["dataset"]["spec"])
        rows = [
            who | common | labels[row["image"]] | row
            for row in _compared(name, about, outputs, targets.reindex(outputs.index), images)
            if (*(who[k] for k in ROW_KEY[:3]), row["image"], row["metric"]) not in done
        ]
        folder.append(rows)


def first_outputs(readings: pd.DataFrame, backend: str, encoding: str) -> pd.DataFrame:
    """The readings of a backend's first outputs, by image."""
    index = readings.index.to_frame()
    chosen = (index["backend"] == backend) & (index["sample"] == 0) & (index["encoding"] == encoding)
    chosen &= index["condition"] == CLEAN.name
    return readings[chosen].droplevel(["backend", "condition", "sample", "encoding"])


def _done(folder: RunFolder) -> set[tuple[Any, ...]]:
    return set(folder.rows("part")[ROW_KEY].itertuples(index=False, name=None))


def _compared(
    name: str, about: About, outputs: pd.DataFrame, targets: pd.DataFrame, images: pd.DataFrame
) -> Iterator[Row]:
    """A row for each output and metric of an instrument; what is missing is NaN with the reason in `error`."""
    missing = about["missing"]
    for attribute in _classified(about):
        now, before = said(outputs, attribute), said(targets, attribute)
        lost, unread = (now.isna(), missing), (before.isna(), f"{missing} in the target")
        yield from _rows(f"{attribute}_flip_{name}", "rate", now != before, lost, unread)
        if attribute in images:
            truth = images.set_index("image")[attribute].reindex(outputs.index)
            unknown = (~truth.isin(about["labels"][attribute]), NO_LABEL)
            yield from _rows(f"{attribute}_hit_{name}", "rate", now == truth, lost, unknown)
    yield from _numbers(name, about, outputs, targets)


def _numbers(name: str, about: About, outputs: pd.DataFrame, targets: pd.DataFrame) -> Iterator[Row]:
    missing = about["missing"]
    if "age" in about["labels"]:
        now, before = (years(attribute_of(readings, "age")) for readings in (outputs, targets))
        unread = (before.isna(), f"{missing} in the target")
        yield from _rows(f"age_shift_{name}", "years", now - before, (now.isna(), missing), unread)
    found, known = (readings["found"].fillna(value=False).astype(bool) for readings in (outputs, targets))
    if name == IDENTITY:
        embeddings = (readings.drop(columns="found").to_numpy(np.float32) for readings in (outputs, targets))
        cosines = pd.Series(identity.similarity(*embeddings), outputs.index)
        yield from _rows(f"{IDENTITY}_similarity", "cosine", cosines, (~(found & known), missing))
    if name == SKIN:
        shift = skin.skin_shift(targets.drop(columns="found"), outputs.drop(columns="found"))
        for metric, (_, unit) in SKIN_MEASURES.items():
            yield from _rows(metric, unit, shift[metric], (shift[metric].isna(), "no ITA of so grey a skin"))
    if missing == FACE_NOT_FOUND:
        yield from _rows(f"face_missing_{name}", "rate", ~found)


def _rows(metric: str, unit: str, values: pd.Series, *reasons: tuple[pd.Series, str]) -> Iterator[Row]:
    """A row a value; NaN with the first reason that holds, if one does."""
    for place, (image, value) in enumerate(values.astype(float).items()):
        error = next((why for holds, why in reasons if holds.iloc[place]), "")
        known = np.nan if error else float(value)
        yield {"image": str(image), "metric": metric, "unit": unit, "value": known, "error": error}
