"""Labelled photos: UTKFace, FairFace, CelebA, LFW, parquet files, plain folders, the portraits of the harness.

`open_dataset("KIND:PATH[#SPLIT]")` lists the photos and their labels, and decodes nothing; `Dataset.image` decodes one.

KIND        PATH                                                  labels from
utkface     a folder of [age]_[gender]_[race]_[time].jpg,         the file names
            or UTKFace as parquet files                           the columns
fairface    a folder of fairface_label_[SPLIT].csv and [SPLIT]/   that table (SPLIT train or val)
            (or [any folder]/[SPLIT]/),
            or FairFace as parquet files                          the columns
celeba      a folder of list_attr_celeba.txt (or .csv) and        Male 1 or -1: gender male or female,
            img_align_celeba/ (or the images themselves)          Young 1 or -1: age young or not young;
                                                                  identity_CelebA.txt: `Record.identity`
lfw         a folder of [person]/[person]_[number].jpg            the folder, as `Record.identity`
parquet     a parquet file, or a folder of them (#SPLIT picks)    the columns
folder      a folder of images, searched in depth                 metadata.csv in it, if there is one
synthetic   (none)                                                the columns of the embedded file
counterfactual  tone or light                                     the edits of `harness.counterfactual`

Columns that become labels, in any case: race or ethnicity (as "race"), gender or sex (as "gender"), age, skin_tone.
Labels are lower-case lines of at most 40 characters, otherwise as the dataset writes them (latino_hispanic); a missing
or unusable one is "unknown" and counted in the notes. A counterfactual dataset shows each of 60 embedded portraits with
only its skin tone moved (tone: monk 01 to monk 10) or only its light (light: light 01, as it was, to light 05);
`Record.identity` is the portrait. CelebA has no race; its splits train, val and test are those of
list_eval_partition.txt (or .csv), and without #SPLIT all its images are taken. LFW's people are no attribute: groups
of one or two photos compare nothing.
"""

import hashlib
import json
import os
import re
import threading
import unicodedata
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import partial
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from harness import images
from harness.errors import DatasetError, ImageError, one_line
from harness.label_tables import (
    FAIRFACE_SPLITS,
    Labels,
    choose_split,
    fairface_table,
    label_columns,
    listing,
    read_celeba,
    read_celeba_people,
    read_celeba_split,
    read_labels,
)

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

KINDS = ("utkface", "fairface", "celeba", "lfw", "folder", "parquet", "synthetic", "counterfactual")
UNKNOWN = "unknown"
_PORTRAITS = "research only: synthetic portraits of a generator trained on UTKFace (non-commercial)"
LICENCES = {
    "utkface": "UTKFace: non-commercial research only",
    "fairface": "FairFace: CC BY 4.0",
    "celeba": "CelebA: non-commercial research only",
    "lfw": "LFW: research use; see its site",
    "synthetic": _PORTRAITS,
    "counterfactual": _PORTRAITS,
}
AGE_RULE = (
    "years in bins of ten (0-9, 10-19, ... 60-69, 70+); under 0, over 116 or unreadable is unknown; "
    "a dataset's own age ranges are kept, and so are young and not young"
)
MAX_AGE = 116
IMAGE_COLUMNS = ("image", "img", "photo", "picture")
CUES = {"tone": "monk", "light": "light"}
"""The cues of counterfactual datasets, and how their levels are called."""
FACES = 6  # base portraits of each race and gender
CACHE_BYTES = 256 * 2**20  # compressed images of parquet files kept in memory, per dataset

_GENDERS = {"0": "male", "1": "female"}
_RACES = {"0": "white", "1": "black", "2": "asian", "3": "indian", "4": "other"}
_MISSING = {"", "nan", "none", "null", "n/a", "na", "?", "-", UNKNOWN}
_AGE_RANGE = re.compile(
    r"\d{1,3} ?(-|–|to) ?\d{1,3}|(more than|over|under|less than|>|<) ?\d{1,3}|\d{1,3} ?\+|(not )?young"
)
_UTKFACE_NAME = re.compile(r"\d*_(\d*_){0,2}\d{8}")
_TABLE = re.compile(r"metadata\.csv|(list_\w+_celeba|list_eval_partition|identity_CelebA)\.(txt|csv)")
_LFW_NAME = re.compile(r"(.+)_\d{4}")
_ID_BYTES = 120
_LABEL_LENGTH = 40


@dataclass(frozen=True)
class Record:
    """One photo: its id (unique in the dataset, safe as a file name), labels by attribute, and where it comes from.

    `read` returns the file's bytes or raises ImageError; `age_years` is there when the dataset tells years, `identity`
    when it tells who this is.
    """

    id: str
    labels: dict[str, str]
    read: Callable[[], bytes]
    source: str
    age_years: float | None = None
    identity: str | None = None


@dataclass(frozen=True)
class Dataset:
    """Photos sorted by id, with the attributes that all records have labels for (maybe "unknown").

    `notes` are one-line warnings for the report; `demonstration` is true for data too synthetic to audit with. In
    `series`, records of one identity are edits of one picture: they are drawn together and share a seed.
    """

    name: str
    spec: str
    licence: str
    demonstration: bool
    attributes: tuple[str, ...]
    records: tuple[Record, ...]
    notes: list[str]
    series: bool = False

    def unit(self, record: Record) -> str:
        """What is drawn and seeded as one: the record, or in series the picture that it is an edit of."""
        return record.identity or record.id if self.series else record.id

    def image(self, record: Record) -> NDArray[np.uint8]:
        """Decode one photo as (H, W, 3) sRGB; raises ImageError if it cannot be read."""
        return images.decode(record.read(), name=record.source)


class _Photo(NamedTuple):
    """A photo as found: a name to make the id from, raw label values by attribute, and how to read it."""

    name: str
    source: str
    values: Mapping[str, object]
    read: Callable[[], bytes]


class _Found(NamedTuple):
    """What a loader found, in a fixed order."""

    photos: list[_Photo]
    attributes: Sequence[str]
    notes: list[str]


def open_dataset(spec: str) -> Dataset:
    """Open `KIND:PATH[#SPLIT]`; see the module docstring.

    Raises:
        DatasetError: The kind, the path or the split does not exist, or nothing in it is usable.
    """
    kind, path, split = _parse(spec)
    if kind == "synthetic":
        found = _read_parquet({"portraits": _embedded_portraits()})
        name = kind
    elif kind == "counterfactual":
        found = _read_counterfactual(path.name)
        name = f"{kind}-{path.name}"
    else:
        found = _find(kind, path, split)
        name = _safe_id(kind if kind in LICENCES else path.resolve().name) + (f"-{_safe_id(split)}" if split else "")
    records, notes = _records(found)
    licence = LICENCES.get(kind, UNKNOWN)
    series, attributes = kind == "counterfactual", tuple(found.attributes)
    return Dataset(name, spec, licence, series or kind == "synthetic", attributes, records, found.notes + notes, series)


def open_split(dataset: Dataset, split: str) -> Dataset:
    """Another split of the same data.

    Raises:
        DatasetError: there is none, or the dataset is not confined to a split of its own.
    """
    kind, path, own = _parse(dataset.spec)
    if own in ("", split):
        raise DatasetError(
            f"{one_line(dataset.spec)}: name the split to test on, another one than {split}, as in {kind}:PATH#test"
        )
    return open_dataset(f"{kind}:{path}#{split}")


def limit(dataset: Dataset, n: int, seed: int = 0) -> Dataset:
    """A subset of `n` photos, in equal numbers from each race x gender (or other attribute) as far as they last.

    Photos of unknown group come last. The same seed nests: the subset of 100 is part of the subset of 200. Series stay
    whole: as many as fit into `n`, but at least one.

    Raises:
        DatasetError: `n` is less than 1.
    """
    if n < 1:
        raise DatasetError(f"a limit of {n} images leaves nothing to evaluate; give 1 or more")
    if n >= len(dataset.records):
        return dataset
    strata = tuple(a for a in dataset.attributes if a in {"race", "gender"}) or dataset.attributes
    units: dict[str, list[Record]] = {}
    for record in dataset.records:
        units.setdefault(dataset.unit(record), []).append(record)
    drawn = _round_robin([first for first, *_ in units.values()], strata, seed)
    count = max(1, n * len(units) // len(dataset.records))
    chosen = [record for first in drawn[:count] for record in units[dataset.unit(first)]]
    how = f"drawn in equal numbers per {' x '.join(strata)} as far as they last" if strata else "drawn at random"
    note = f"{len(chosen)} of {len(dataset.records)} images, {how}, seed {seed}"
    return replace(dataset, records=tuple(sorted(chosen, key=_by_id)), notes=[*dataset.notes, note])


def dataset_hash(dataset: Dataset) -> str:
    """SHA-256 (hex) over ids, labels and file contents, in the order of the records; reads every photo."""
    total = hashlib.sha256()
    for record in dataset.records:
        try:
            content = hashlib.sha256(record.read()).hexdigest()
        except ImageError:
            content = "unreadable"
        line = [record.id, sorted(record.labels.items()), record.age_years, content]
        total.update(json.dumps(line).encode() + b"\n")
    return total.hexdigest()


def age_group(value: object) -> tuple[str, float | None]:
    """The label of an age by `AGE_RULE`, and the years where they are known."""
    text = tidy_label(value)
    if _AGE_RANGE.fullmatch(text):
        return text, None
    try:
        years = float(text)
    except ValueError:
        return UNKNOWN, None
    if not 0 <= years <= MAX_AGE:
        return UNKNOWN, None
    decade = int(years // 10) * 10
    return ("70+" if decade >= 70 else f"{decade}-{decade + 9}"), years


# ---- what to open ----


def _parse(spec: str) -> tuple[str, Path, str]:
    """Kind, path and split of a spec; a path that exists with its "#" is taken whole."""
    kind, _, rest = spec.partition(":")
    if kind not in KINDS:
        raise DatasetError(_unknown_kind(spec, kind))
    if kind == "synthetic":
        if rest:
            raise DatasetError(f"{one_line(spec)}: synthetic is embedded and takes no path; write just synthetic")
        return kind, Path(), ""
    if kind == "counterfactual":
        if rest not in CUES:
            raise DatasetError(
                f"{one_line(spec)}: unknown cue; write counterfactual:{' or counterfactual:'.join(CUES)}"
            )
        return kind, Path(rest), ""
    path, _, split = rest.rpartition("#") if "#" in rest and not _place(rest) else (rest, "", "")
    if not path:
        raise DatasetError(f"{one_line(spec)}: no path given; write {kind}:PATH")
    where = _place(path)
    if where is None:
        raise DatasetError(f"{one_line(path)}: no such file or folder; check the path after {kind}:")
    return kind, where, split


def _place(text: str) -> Path | None:
    """The file or folder that a text names, if it exists."""
    try:
        path = Path(text).expanduser()
        return path if text and path.exists() else None
    except (OSError, RuntimeError, ValueError):  # too long, no such home, a zero byte
        return None


def _unknown_kind(spec: str, kind: str) -> str:
    if _place(spec):
        guess = f"; did you mean folder:{one_line(spec, 100)}?"
    else:
        near = get_close_matches(kind.lower(), KINDS, n=1)
        guess = f"; did you mean {near[0]}?" if near else ""
    return f"{one_line(spec, 100)}: unknown kind of dataset{guess} (KIND:PATH, with KIND one of {', '.join(KINDS)})"


def _find(kind: str, path: Path, split: str) -> _Found:
    """Choose the loader: parquet files win where UTKFace comes as parquet, FairFace's own tables win over them."""
    if kind == "celeba":
        return _read_celeba(path, split)
    table = fairface_table(path, split) if kind == "fairface" else None
    if table:
        photos = _fairface_photos(path, table.stem.rpartition("_")[2])
        return _read_table(photos.parent, table, *_image_files(photos))
    shards = _parquet_files(path) if kind in {"parquet", "utkface", "fairface"} else []
    if kind == "fairface" and not shards:
        tables = " or ".join(f"fairface_label_{name}.csv" for name in FAIRFACE_SPLITS)
        raise DatasetError(f"{path}: no {tables} and no parquet files in this folder; check the path")
    if kind == "parquet" or shards:
        return _read_parquet({str(file): file for file in _pick_split(path, shards, split)})
    if split:
        raise DatasetError(f"{path}: #{one_line(split, 60)} selects a split and these files have none; leave it out")
    load = {"utkface": _read_utkface, "lfw": _read_lfw, "folder": _read_folder}[kind]
    return load(path, *_image_files(path))


def _fairface_photos(path: Path, split: str) -> Path:
    """The folder of a split's photos, beside the tables or in a folder of its archive's name."""
    return next(filter(Path.is_dir, (path / split, *sorted(path.glob(f"*/{split}")))), path / split)


# ---- from photos as found to records ----


def _records(found: _Found) -> tuple[tuple[Record, ...], list[str]]:
    """Records sorted by id, and notes on renamed and unlabelled photos."""
    ids, notes = _unique_ids([photo.name for photo in found.photos])
    records = [_record(key, photo, found.attributes) for key, photo in zip(ids, found.photos, strict=True)]
    for attribute in found.attributes:
        count = sum(record.labels[attribute] == UNKNOWN for record in records)
        if count:
            notes.append(f"{count} of {len(records)} images have no usable {attribute} label: counted as unknown")
    return tuple(sorted(records, key=_by_id)), notes


def _record(key: str, photo: _Photo, attributes: Iterable[str]) -> Record:
    labels = {attribute: tidy_label(photo.values.get(attribute)) for attribute in attributes}
    years = None
    if "age" in labels:
        labels["age"], years = age_group(photo.values.get("age"))
    person = photo.values.get("identity")
    identity = one_line(str(person), 120) if person else None
    return Record(key, labels, photo.read, one_line(photo.source, 160), years, identity)


def _by_id(record: Record) -> str:
    return record.id


def tidy_label(value: object) -> str:
    """A raw value as a lower-case, bounded line."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    text = one_line(str(value), _LABEL_LENGTH).strip().lower()
    return UNKNOWN if text in _MISSING else text


def _unique_ids(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Safe ids in the order of the names; later ones of a kind (in any case) get -2, -3 and so on."""
    ids: list[str] = []
    taken: set[str] = set()
    last: Counter[str] = Counter()
    renamed = 0
    for base in map(_safe_id, names):
        key, folded = base, base.casefold()
        while key.casefold() in taken:
            last[folded] += 1
            key = f"{base}-{last[folded] + 1}"
        renamed += key != base
        taken.add(key.casefold())
        ids.append(key)
    note = f"{renamed} of {len(ids)} images share their name with another: their ids end in -2, -3, ..."
    return ids, [note] if renamed else []


def _safe_id(name: str) -> str:
    """Letters, digits, dot, dash and underscore of a name, without a leading dot or dash, bounded."""
    text = re.sub(r"[^\w.-]", "_", unicodedata.normalize("NFC", name)).lstrip(".-")
    return text.encode("utf-8", "ignore")[:_ID_BYTES].decode("utf-8", "ignore") or "image"


def _round_robin(records: Iterable[Record], strata: Sequence[str], seed: int) -> list[Record]:
    """All records: the first drawn of each group, then the second of each, and so on."""
    seen: Counter[tuple[str, ...]] = Counter()
    order: list[tuple[bool, int, str, Record]] = []
    for draw, record in sorted(((_draw(record, seed), record) for record in records), key=lambda pair: pair[0]):
        group = tuple(record.labels[attribute] for attribute in strata)
        order.append((UNKNOWN in group, seen[group], draw, record))
        seen[group] += 1
    return [record for *_, record in sorted(order, key=lambda entry: entry[:3])]


def _draw(record: Record, seed: int) -> str:
    return hashlib.sha256(f"{seed}:{record.id}".encode()).hexdigest()


# ---- image files in folders ----


def _walk(folder: Path) -> Iterator[Path]:
    """All files below `folder` that are not hidden, sorted by their path in it; linked folders are not entered."""

    def stop(error: OSError) -> None:
        where = one_line(str(error.filename), 160)
        raise DatasetError(f"{where}: cannot be listed ({error.strerror}); check its permissions") from error

    found = []
    for parent, folders, names in os.walk(folder, onerror=stop):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        found += [Path(parent, name) for name in names if not name.startswith(".")]
    yield from sorted(found)


def _image_files(folder: Path) -> tuple[list[Path], list[str]]:
    """Files with an image's suffix, and a note on the others that are no label tables."""
    if not folder.is_dir():
        raise DatasetError(f"{folder}: not a folder; give the folder that holds the images")
    files = [file for file in _walk(folder) if not _TABLE.fullmatch(file.name)]
    chosen = [file for file in files if file.suffix.lower() in images.SUFFIXES]
    others = [file for file in files if file.suffix.lower() not in images.SUFFIXES]
    if not chosen:
        parquet = any(file.suffix == ".parquet" for file in others)
        advice = f"it holds parquet files: use parquet:{folder}" if parquet else "check the path"
        raise DatasetError(f"{folder}: no images ({', '.join(sorted(images.SUFFIXES))}) in this folder; {advice}")
    first = f", {one_line(others[0].name, 60)} for one" if others else ""
    note = f"{len(others)} of {len(files)} files have no image suffix{first}: left out"
    return chosen, [note] if others else []


def _read_utkface(folder: Path, files: Iterable[Path], notes: list[str]) -> _Found:
    """Photos labelled by their file names."""
    photos = [_file_photo(folder, file, utkface_labels(file.name)) for file in files]
    if not any(value for photo in photos for value in photo.values.values()):
        raise DatasetError(f"{folder}: no file is named [age]_[gender]_[race]_[time]; for other photos use folder:")
    return _Found(photos, ("race", "gender", "age"), notes)


def utkface_labels(name: str) -> dict[str, str | None]:
    """Raw race, gender and age in a UTKFace file name; None where the field is missing or has no meaning.

    Fields are taken by position: age, gender (0 male, 1 female), race (0 white, 1 black, 2 asian, 3 indian, 4 other).
    A name of three fields, as in 61_1_20170109142408075.jpg, is therefore one without race; a name that does not
    end in a time of at least eight digits tells nothing.
    """
    fields = name.split("_") if _UTKFACE_NAME.match(name) else []
    age, gender, race = [*fields[:-1], "", "", ""][:3]
    return {"race": _RACES.get(race), "gender": _GENDERS.get(gender), "age": age or None}


def _file_photo(folder: Path, file: Path, values: Mapping[str, object]) -> _Photo:
    return _Photo(file.stem, file.relative_to(folder).as_posix(), values, partial(images.read, file))


def _read_folder(folder: Path, files: Sequence[Path], notes: list[str]) -> _Found:
    """Photos labelled by metadata.csv, if there is one."""
    table = folder / "metadata.csv"
    if table.exists():
        return _read_table(folder, table, files, notes)
    return _Found([_file_photo(folder, file, {}) for file in files], (), notes)


def _read_table(folder: Path, table: Path, files: Sequence[Path], notes: list[str]) -> _Found:
    """Photos labelled by a CSV file that names them by their path in the folder."""
    named = [(file.relative_to(folder).as_posix(), file) for file in files]
    return _labelled(folder, named, read_labels(table), notes)


def _labelled(folder: Path, named: Sequence[tuple[str, Path]], labels: Labels, notes: list[str]) -> _Found:
    """Photos with what a table lists under their names; all files stay in."""
    photos = [_file_photo(folder, file, labels.rows.get(name, {})) for name, file in named]
    more = _mismatch_notes({name for name, _ in named}, labels)
    return _Found(photos, labels.attributes, notes + labels.notes + more)


def _mismatch_notes(present: set[str], labels: Labels) -> list[str]:
    """Notes on images that are listed and not there, or there and not listed."""
    listed, table = set(labels.rows), labels.table
    absent, unlisted = sorted(listed - present), sorted(present - listed)
    notes = []
    if absent:
        first = one_line(absent[0], 60)
        notes.append(f"{len(absent)} of {len(listed)} images in {table} are not there, {first} for one: left out")
    if unlisted:
        first = one_line(unlisted[0], 60)
        notes.append(f"{len(unlisted)} of {len(present)} images are not in {table}, {first} for one: no labels")
    return notes


def _read_celeba(folder: Path, split: str) -> _Found:
    """Photos of CelebA, found by file name in any depth and labelled by the attribute list."""
    places = (folder / "img_align_celeba", folder / "Img" / "img_align_celeba")
    files, notes = _image_files(next((place for place in places if place.is_dir()), folder))
    labels, people = read_celeba(folder), read_celeba_people(folder)
    labels = labels._replace(rows={name: row | {"identity": people.get(name, "")} for name, row in labels.rows.items()})
    if split:
        members, assigned = read_celeba_split(folder, split)
        stray = sum(file.name not in assigned for file in files)
        if stray:
            notes.append(f"{stray} of {len(files)} images are in no split of CelebA's partition list: left out")
        files = [file for file in files if file.name in members]
        labels = labels._replace(rows={name: row for name, row in labels.rows.items() if name in members})
    if not files:
        raise DatasetError(f"{folder}: none of its images is in split #{split}; check list_eval_partition")
    return _labelled(folder, [(file.name, file) for file in files], labels, notes)


def _read_lfw(folder: Path, files: Sequence[Path], notes: list[str]) -> _Found:
    """Photos of people told by their folder; people are no groups to audit, so there are no attributes."""
    photos = [_file_photo(folder, file, {"identity": _lfw_person(file)}) for file in files]
    strangers = sum(photo.values["identity"] is None for photo in photos)
    if strangers == len(photos):
        raise DatasetError(f"{folder}: no file is named [person]/[person]_[number]; for other photos use folder:")
    note = f"{strangers} of {len(photos)} images do not carry the name of their folder: their identity is not known"
    return _Found(photos, (), [*notes, note] if strangers else notes)


def _lfw_person(file: Path) -> str | None:
    """The person of Name_Surname/Name_Surname_0001.jpg: Name_Surname."""
    match = _LFW_NAME.fullmatch(file.stem)
    return match[1] if match and match[1] == file.parent.name else None


# ---- parquet files ----


def _embedded_portraits() -> "pa.BufferReader":
    """The portraits inside the package, as something pyarrow reads."""
    import pyarrow as pa

    try:
        return pa.BufferReader(resources.files("harness").joinpath("data", "portraits.parquet").read_bytes())
    except OSError as error:
        raise DatasetError(
            "synthetic: the embedded portraits are missing from this installation; install the package again"
        ) from error


def _read_counterfactual(cue: str) -> _Found:
    """Edited portraits: the `FACES` of each race and gender whose cheeks are lit most evenly, at each level."""
    from harness.counterfactual import LEVELS, unevenness

    cells: dict[tuple[object, object], list[_Photo]] = {}
    for photo in _read_parquet({"portraits": _embedded_portraits()}).photos:
        cells.setdefault((photo.values["race"], photo.values["gender"]), []).append(photo)
    chosen = [p for cell in cells.values() for p in sorted(cell, key=lambda p: unevenness(_portrait(p)))[:FACES]]
    levels = range(1, LEVELS[cue] + 1)
    note = (
        f"{len(chosen)} synthetic portraits with only the {cue} edited, {len(levels)} levels each: a demonstration. "
        "Images of one portrait are not independent: compare levels within portraits (harness.fairness.probes)"
    )
    photos = [_edited(photo, cue, level) for photo in chosen for level in levels]
    return _Found(photos, ("race", "gender", cue), [note])


def _portrait(photo: _Photo) -> NDArray[np.uint8]:
    return images.decode(photo.read(), name=photo.source)


def _edited(photo: _Photo, cue: str, level: int) -> _Photo:
    """A portrait with its cue at one level; the edit is made when it is read."""

    def read() -> bytes:
        from harness.counterfactual import move

        return images.encode_png(move(_portrait(photo), cue, level))

    values = {"race": photo.values["race"], "gender": photo.values["gender"], "identity": photo.name}
    name = f"{photo.name}.{cue}-{level:02d}"
    return _Photo(name, f"{photo.source}, {cue} {level}", values | {cue: f"{CUES[cue]} {level:02d}"}, read)


def _parquet_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    return [file for file in _walk(path) if file.suffix == ".parquet"]


def _pick_split(path: Path, shards: Sequence[Path], split: str) -> list[Path]:
    """The shards of one split; without a name, there must be only one split."""
    if not shards:
        raise DatasetError(f"{path}: no parquet files in this folder; check the path")
    chosen = choose_split(path, map(_split_name, shards), split)
    files = [shard for shard in shards if _split_name(shard) == chosen]
    folders = sorted({str(file.parent) for file in files})
    if len(folders) > 1:
        raise DatasetError(
            f"{path}: the split {one_line(chosen, 60)} lies in several folders ({listing(folders)}); give one of them"
        )
    return files


def _split_name(shard: Path) -> str:
    """The split of test-00000-of-00001.parquet, test.parquet or test/0000.parquet: test."""
    stem = shard.stem
    return shard.parent.name if stem.isdecimal() else re.sub(r"-\d+(-of-\d+.*)?$", "", stem)


def _read_parquet(shards: "Mapping[str, Path | pa.BufferReader]") -> _Found:
    """Photos of parquet files (by name: a path or a pyarrow buffer), labelled by their columns."""
    store = _RowGroups()
    photos: list[_Photo] = []
    attributes: dict[str, None] = {}
    notes: dict[str, None] = {}
    for name, source in shards.items():
        found = _read_shard(name, source, store)
        photos += found.photos
        attributes |= dict.fromkeys(found.attributes)
        notes |= dict.fromkeys(found.notes)
    if not photos:
        raise DatasetError(f"{next(iter(shards))}: no rows; check the file")
    return _Found(photos, tuple(attributes), list(notes))


def _read_shard(name: str, source: "Path | pa.BufferReader", store: "_RowGroups") -> _Found:
    """Names and labels of all rows of one parquet file; the images stay in the file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(source)
        image, has_path = _image_column(file.schema_arrow, name)
        columns, notes = label_columns([column for column in file.schema_arrow.names if column != image])
        table = file.read(columns=[*columns, *([f"{image}.path"] if has_path else [])])
    except (OSError, pa.ArrowException) as error:
        reason = one_line(str(error), 100)
        raise DatasetError(f"{one_line(name)}: not a readable parquet file ({reason}); download it again") from error
    classes = _class_names(file.schema_arrow)
    values = {a: _named(table.column(c).to_pylist(), classes.get(c)) for c, a in columns.items()}
    paths = table.column(image).to_pylist() if has_path else []
    photos: list[_Photo] = []
    for row, read in enumerate(store.readers(file, image, Path(name).name)):
        path = str((paths[row] or {}).get("path") or "") if has_path else ""
        stem = PurePosixPath(path.replace("\\", "/")).stem or f"{Path(name).stem}-{row:06d}"
        labels = {attribute: column[row] for attribute, column in values.items()}
        photos.append(_Photo(stem, f"{Path(name).name} row {row} ({path})", labels, read))
    return _Found(photos, tuple(columns.values()), notes)


def _image_column(schema: "pa.Schema", name: str) -> tuple[str, bool]:
    """The column that holds image files, found by type, and whether it holds their paths too."""
    import pyarrow as pa

    def binary(kind: "pa.DataType") -> bool:
        return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))

    found: dict[str, bool] = {}
    for field in schema:
        parts = {part.name: part.type for part in field.type} if pa.types.is_struct(field.type) else {}
        if binary(field.type) or ("bytes" in parts and binary(parts["bytes"])):
            found[field.name] = "path" in parts
    chosen = next((column for column in IMAGE_COLUMNS if column in found), None) or next(iter(found), None)
    if chosen is None:
        has = listing(schema.names)
        raise DatasetError(f"{one_line(name)}: no column with image bytes; store the files themselves (columns: {has})")
    return chosen, found[chosen]


def _class_names(schema: "pa.Schema") -> dict[str, list[str]]:
    """What the integers of Hugging Face ClassLabel columns stand for, from the schema's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        named = {column: feature["names"] for column, feature in features.items() if "names" in feature}
    except (KeyError, TypeError, ValueError):
        return {}
    return {column: [str(name) for name in names] for column, names in named.items() if isinstance(names, list)}


def _named(values: list[object], names: list[str] | None) -> list[object]:
    """Class names for class numbers; a number without a name is no label."""
    if names is None:
        return values
    return [names[v] if isinstance(v, int) and 0 <= v < len(names) else None for v in values]


class _RowGroups:
    """Reads parquet images a row group at a time; keeps the last used groups, up to `CACHE_BYTES` or one group."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, int], pa.ChunkedArray] = OrderedDict()

    def readers(self, file: "pq.ParquetFile", column: str, name: str) -> Iterator[Callable[[], bytes]]:
        """For each row of the file, the function that returns its image bytes."""
        row = 0
        for group in range(file.num_row_groups):
            for inside in range(file.metadata.row_group(group).num_rows):
                yield partial(self._read, partial(self._group, file, group, column), inside, f"{name} row {row}")
                row += 1

    def _read(self, group: "Callable[[], pa.ChunkedArray]", inside: int, where: str) -> bytes:
        import pyarrow as pa

        try:
            value = group()[inside].as_py()
        except (OSError, pa.ArrowException) as error:
            reason = one_line(str(error), 100)
            raise ImageError(f"{one_line(where, 160)}: cannot be read ({reason}); download the file again") from error
        content = value.get("bytes") if isinstance(value, dict) else value
        if not content:
            raise ImageError(f"{one_line(where, 160)}: no image bytes in this row; store the file itself, not its path")
        return bytes(content)

    def _group(self, file: "pq.ParquetFile", group: int, column: str) -> "pa.ChunkedArray":
        key = (id(file), group)
        with self._lock:
            if key not in self._kept:
                self._kept[key] = file.read_row_group(group, columns=[column]).column(0)
                while len(self._kept) > 1 and sum(kept.nbytes for kept in self._kept.values()) > CACHE_BYTES:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(key)
            return self._kept[key]
