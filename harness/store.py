"""The run folder: tidy rows as Parquet parts, inputs, targets and outputs as PNG, the run record as JSON.

Everything is written beside its place, synced and renamed: a crash loses at most what was in flight.

    run.json            what was run (`RunRecord`)
    images.parquet      the images: id, file name, labels, seed, why one was left out
    targets/ inputs/    what was degraded, and what the backends received
    outputs/            what they returned, named by image and cache key
    rows/               one row per (backend, options, image, condition, seed, sample, stage, metric)
    tables/             what is derived from the rows
"""

import errno
import fcntl
import hashlib
import json
import os
import re
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.errors import Incompatible, StoreError, one_line
from harness.images import encode_png, load

SCHEMA = 1
"""Version of the row and key format; part of every cache key."""

COLUMNS = {
    "backend": "str",
    "options": "str",
    "digest": "str",
    "device": "str",
    "precision": "str",
    "dataset": "str",
    "image": "str",
    "condition": "str",
    "severity": "int64",
    "scale": "int64",
    "class": "str",
    "seed": "int64",
    "sample": "int64",
    "stage": "str",
    "metric": "str",
    "value": "float64",
    "unit": "str",
    "error": "str",
}
"""Columns of a row and their types; a column for each group attribute (text) follows."""

PNG_END = b"\0\0\0\0IEND\xaeB`\x82"
Row = dict[str, Any]
Kind = Literal["part", "timed", "sets", "failed"]
KINDS: tuple[Kind, ...] = ("part", "timed", "sets", "failed")
"""Scores of images; timed passes; measures of sets; failures. Only the first kind stays whatever happens."""


def slug(name: str) -> str:
    """A safe, short file name for any text: readable, and distinct by a hash."""
    readable = re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._")[:60]
    return f"{readable}-{hashlib.sha256(name.encode(errors='surrogatepass')).hexdigest()[:16]}"


def cache_key(digest: str, image: NDArray[np.uint8], scale: int, seed: int, options: dict[str, Any]) -> str:
    """The key of an output: everything that may change it."""
    pixels = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
    text = json.dumps([SCHEMA, digest, pixels, scale, seed, options], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def read_table(path: Path) -> pd.DataFrame:
    """A stored table.

    Raises:
        StoreError: the file is not one.
    """
    try:
        return pd.read_parquet(path)
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        raise StoreError(
            f"{path}: is damaged ({one_line(str(error), 80)}); delete it and run the command again"
        ) from error


def is_whole(path: Path) -> bool:
    """Whether a PNG file is there to its end: one that a crash of the machine cut short counts as missing."""
    if not path.exists():
        return False
    with path.open("rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - len(PNG_END)))
        return file.read() == PNG_END


def png_size(path: Path) -> tuple[int, int]:
    """Height and width of a PNG file of ours, from its header."""
    with path.open("rb") as file:
        width, height = struct.unpack(">16x2I", file.read(24))
    return height, width


def equal_sizes(files: Iterable[tuple[str, Path]], most: int, pixels: int) -> Iterator[list[tuple[str, Path]]]:
    """Named PNG files in batches of one size: `most` at most, and no more than `pixels` in all unless one has more."""
    by_size: dict[tuple[int, int], list[tuple[str, Path]]] = {}
    for entry in files:
        by_size.setdefault(png_size(entry[1]), []).append(entry)
    for (height, width), same in by_size.items():
        count = max(1, min(most, pixels // (height * width)))
        for start in range(0, len(same), count):
            yield same[start : start + count]


def write_atomic(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all.

    Raises:
        StoreError: it cannot be written.
    """
    partial = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError as error:
        with suppress(OSError):
            partial.unlink()
        if error.errno == errno.ENOSPC:
            raise StoreError(f"{path}: no space left on the disk; free some and run the same command again") from error
        raise StoreError(f"{path}: cannot be written: {one_line(error.strerror or str(error))}") from error


APPENDING = threading.Lock()
"""Held while rows become a part; not of a folder, which is sent to other processes."""


class RunFolder:
    """One run on disk. Open it for writing with `locked()`."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one writer.

        Raises:
            StoreError: another process writes to it, or it cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / ".lock").open("w")
        except OSError as error:
            raise StoreError(f"{self.path}: cannot be written: {one_line(error.strerror or str(error))}") from error
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                raise StoreError(
                    f"{self.path}: another run is writing to it; wait for it or choose --output"
                ) from error
            yield

    def read_record(self) -> dict[str, Any] | None:
        """The run record, or None in a new folder.

        Raises:
            StoreError: it is there but cannot be read.
        """
        path = self.path / "run.json"
        if not path.exists():
            return None
        try:
            record = json.loads(path.read_text())
        except (OSError, ValueError, RecursionError) as error:
            raise StoreError(f"{path}: is not a run record; choose another --output") from error
        if not isinstance(record, dict) or not {"schema", "suite", "dataset", "backends", "metrics"} <= set(record):
            raise StoreError(f"{path}: is not a run record; choose another --output")
        if record["schema"] != SCHEMA:
            raise StoreError(f"{path}: was written by another version of the harness; choose another --output")
        return record

    def write_record(self, record: dict[str, Any]) -> None:
        """Write the run record."""
        write_atomic(self.path / "run.json", json.dumps(record, indent=1, ensure_ascii=False).encode())

    def append(self, rows: list[Row], kind: Kind = "part") -> None:
        """Append rows as a new part, from any thread; kinds other than `part` can be dropped and made again."""
        if not rows:
            return
        defaults: Row = {column: {"str": "", "int64": 0, "float64": np.nan}[kind] for column, kind in COLUMNS.items()}
        frame = pd.DataFrame([defaults | row for row in rows]).astype(COLUMNS)
        attributes = [c for c in frame.columns if c not in COLUMNS]
        with APPENDING:
            number = 1 + max((int(p.stem.rpartition("-")[2]) for p in self.parts(kind)), default=-1)
            self.write_table(f"rows/{kind}-{number:06d}", frame[[*COLUMNS, *attributes]])

    def drop(self, kind: Kind) -> None:
        """Forget all rows of a kind."""
        for part in self.parts(kind):
            part.unlink()

    def rows(self, *kinds: Kind) -> pd.DataFrame:
        """All rows of this run, or those of some kinds."""
        parts = [read_table(p) for kind in kinds or KINDS for p in self.parts(kind)]
        return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS)).astype(COLUMNS)

    def parts(self, kind: Kind) -> list[Path]:
        """The files that hold the rows of a kind, oldest first."""
        return sorted((self.path / "rows").glob(f"{kind}-*.parquet"))

    def fairness(self) -> dict[str, pd.DataFrame]:
        """The tables of the fairness audit by name, made anew from what is stored; see docs/fairness.md."""
        from harness.audit import FAIRNESS, tables

        made = tables(self)
        return {name: made[name] for name in FAIRNESS}

    def write_table(self, name: str, frame: pd.DataFrame) -> None:
        """Write a frame as `NAME.parquet`."""
        write_atomic(self.path / f"{name}.parquet", frame.to_parquet(index=False))

    def write_image(self, path: Path, image: NDArray[np.uint8]) -> None:
        """Write an image as PNG."""
        write_atomic(path, encode_png(image))

    def cached_image(self, path: Path, make: Callable[[], NDArray[np.uint8]]) -> NDArray[np.uint8]:
        """The image at `path`, made and written if it is not there."""
        if is_whole(path):
            return load(path)
        image = make()
        self.write_image(path, image)
        return image

    def target(self, image: str) -> Path:
        """Where an image's ground truth lies."""
        return self.path / "targets" / f"{slug(image)}.png"

    def input(self, condition: str, image: str) -> Path:
        """Where an image's input under a condition (its folder name) lies."""
        return self.path / "inputs" / condition / f"{slug(image)}.png"

    def claim(self, backend: dict[str, Any]) -> None:
        """Keep the outputs of a build (of a backend's entry in the record) to one device and precision.

        Raises:
            Incompatible: those that are here were made on another.
        """
        path = self.path / "outputs" / slug(backend["label"]) / f"{slug(backend['digest'])}.txt"
        place = one_line(f"{backend['device']} in {backend['precision']}")
        if not path.exists():
            write_atomic(path, place.encode())
        before = path.read_text(errors="replace")
        if before != place:
            made = f"its outputs in this folder were made on {one_line(before)}"
            raise Incompatible(f"{made}; it now runs on {place}: choose another --output")

    def output(self, backend: str, condition: str, image: str, key: str) -> Path:
        """Where a backend's output lies."""
        return self.path / "outputs" / slug(backend) / condition / f"{slug(image)}.{key}.png"


def open_run(path: Path) -> RunFolder:
    """The folder of a run that was made before.

    Raises:
        StoreError: it holds none.
    """
    folder = RunFolder(path)
    if folder.read_record() is None or not (path / "images.parquet").exists():
        raise StoreError(f"{path}: holds no run; give the folder that `harness run` wrote")
    return folder
