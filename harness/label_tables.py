"""Label tables that lie beside photos: metadata.csv, FairFace's CSV files, CelebA's attribute and partition lists.

Each is read as raw text by attribute; `harness.datasets` matches it with the photos and makes labels of it.

table                                              file names in                           attributes from
metadata.csv                                       column file_name, image, file or path   `LABEL_COLUMNS`
fairface_label_train.csv, fairface_label_val.csv   column file                             `LABEL_COLUMNS`
list_attr_celeba.txt or .csv                       the first column                        `CELEBA_COLUMNS`
identity_CelebA.txt                                the first column                        (the person's number)
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from harness.errors import DatasetError, one_line

LABEL_COLUMNS = {
    "race": "race",
    "ethnicity": "race",
    "gender": "gender",
    "sex": "gender",
    "age": "age",
    "skin_tone": "skin_tone",
}
FILE_COLUMNS = ("file_name", "image", "file", "path")
CELEBA_COLUMNS = {
    "Male": ("gender", {"1": "male", "-1": "female"}),
    "Young": ("age", {"1": "young", "-1": "not young"}),
}
CELEBA_SPLITS = {"0": "train", "1": "val", "2": "test"}
FAIRFACE_SPLITS = ("train", "val")


class Labels(NamedTuple):
    """What a table says: its name, raw values by attribute for each file it lists, and notes."""

    table: str
    rows: dict[str, dict[str, str]]
    attributes: tuple[str, ...]
    notes: list[str]


def read_labels(table: Path) -> Labels:
    """The label columns of a CSV file that has a column of file names.

    Raises:
        DatasetError: It cannot be read, or has no such column.
    """
    lines = _lines(table)
    header = next(lines, [])
    key = _file_column(header, table)
    folded = [name.strip().lower() for name in header]
    if twice := {name for name in folded if folded.count(name) > 1}:
        raise DatasetError(f"{table}: has the column {listing(sorted(twice))} twice; keep one")
    columns, notes = label_columns(name for name in header if name != key)
    listed: list[tuple[str, dict[str, str]]] = []
    for fields in lines:
        row = dict(zip(header, fields, strict=False))
        listed.append((row.get(key, ""), {a: row.get(column, "") for column, a in columns.items()}))
    rows, more = _by_file(table, listed)
    return Labels(table.name, rows, tuple(columns.values()), notes + more)


def fairface_table(folder: Path, split: str) -> Path | None:
    """The label table of a split of FairFace as it was published; None where the folder has no such table.

    Raises:
        DatasetError: There are tables, but none of this split, or two and no split is chosen.
    """
    tables = {name: folder / f"fairface_label_{name}.csv" for name in FAIRFACE_SPLITS}
    present = {name: table for name, table in tables.items() if table.is_file()}
    return present[choose_split(folder, present, split)] if present else None


def read_celeba(folder: Path) -> Labels:
    """Gender and age group of CelebA's attribute list: 1 is yes, -1 is no, anything else is no label.

    Raises:
        DatasetError: There is no attribute list, or it has neither attribute.
    """
    table = _celeba_list(folder, "list_attr_celeba")
    lines = _lines(table)
    header = next(lines, [])
    if table.suffix == ".txt":  # the number of images; then the names of all columns but the first
        header = ["image_id", *next(lines, [])]
    places = {header.index(column): meaning for column, meaning in CELEBA_COLUMNS.items() if column in header}
    if not places:
        raise DatasetError(f"{table}: no attribute Male or Young; give CelebA's own list (columns: {listing(header)})")
    listed: list[tuple[str, dict[str, str]]] = []
    for fields in lines:
        whole = len(fields) == len(header)  # in a torn line the columns cannot be told
        values = {a: names.get(fields[i].strip(), "") for i, (a, names) in places.items()} if whole else {}
        listed.append((fields[0], values))
    rows, notes = _by_file(table, listed)
    _, unused = label_columns(name for name in header[1:] if name not in CELEBA_COLUMNS)
    return Labels(table.name, rows, tuple(attribute for attribute, _ in places.values()), unused + notes)


def read_celeba_split(folder: Path, split: str) -> tuple[set[str], set[str]]:
    """The file names of one split of CelebA, and those of all splits.

    Raises:
        DatasetError: There is no such split, or no partition list.
    """
    choose_split(folder, CELEBA_SPLITS.values(), split)
    pairs = [fields for fields in _lines(_celeba_list(folder, "list_eval_partition")) if len(fields) == 2]
    splits = {name.strip(): CELEBA_SPLITS[number.strip()] for name, number in pairs if number.strip() in CELEBA_SPLITS}
    return {name for name, its in splits.items() if its == split}, set(splits)


def read_celeba_people(folder: Path) -> dict[str, str]:
    """The number of the person on each photo, by file name; none where the list, which comes on request, is not."""
    table = _find_celeba_list(folder, "identity_CelebA")
    pairs = [fields for fields in _lines(table) if len(fields) == 2] if table else []
    return {name.strip(): person.strip() for name, person in pairs}


def choose_split(path: Path, splits: Iterable[str], split: str) -> str:
    """The split to read; without a name, there must be only one.

    Raises:
        DatasetError: There is no such split, or a choice to make.
    """
    names = sorted(set(splits))
    if not split and len(names) > 1:
        raise DatasetError(f"{path}: several splits ({listing(names)}); choose one, as in #{one_line(names[0], 40)}")
    if split and split not in names:
        raise DatasetError(f"{path}: no split #{one_line(split, 60)}; there is {listing(names)}")
    return split or names[0]


def label_columns(header: Iterable[str]) -> tuple[dict[str, str], list[str]]:
    """The attribute of each label column, by `LABEL_COLUMNS`; a note on the columns that are not used."""
    lower = {name.strip().lower(): name for name in header}
    columns: dict[str, str] = {}
    for name, attribute in LABEL_COLUMNS.items():
        if name in lower and attribute not in columns.values():
            columns[lower[name]] = attribute
    ignored = [name for name in lower.values() if name not in columns]
    note = f"columns that are no known label, ignored: {listing(ignored)}"
    return columns, [note] if ignored else []


def listing(names: Sequence[str]) -> str:
    """A few names as a bounded line."""
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(one_line(name, 40) for name in names[:8]) + more


def _lines(table: Path) -> Iterator[list[str]]:
    """The fields of each line that has any: of a CSV file, or of a text file with blanks between the fields."""
    kind = "CSV" if table.suffix == ".csv" else "text"
    try:
        with table.open(encoding="utf-8-sig", newline="") as lines:
            yield from filter(None, csv.reader(lines) if kind == "CSV" else map(str.split, lines))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        reason = one_line(str(error), 100)
        raise DatasetError(f"{table}: not a readable {kind} file in UTF-8 ({reason}); repair or remove it") from error


def _file_column(header: Sequence[str], table: Path) -> str:
    lower = {name.strip().lower(): name for name in header}
    for name in FILE_COLUMNS:
        if name in lower:
            return lower[name]
    raise DatasetError(f"{table}: no column of file names; name it file_name (columns: {listing(header)})")


def _by_file(table: Path, listed: Sequence[tuple[str, dict[str, str]]]) -> tuple[dict[str, dict[str, str]], list[str]]:
    """Rows by file name, in POSIX form; a note on names that come again."""
    rows: dict[str, dict[str, str]] = {}
    for name, values in listed:
        rows.setdefault(PurePosixPath(name.strip().replace("\\", "/")).as_posix(), values)
    repeated = len(listed) - len(rows)
    return rows, [f"{repeated} rows of {table.name} repeat an image: the first row counts"] if repeated else []


def _celeba_list(folder: Path, stem: str) -> Path:
    found = _find_celeba_list(folder, stem)
    if found is None:
        raise DatasetError(f"{folder}: no {stem}.txt or {stem}.csv in this folder; put CelebA's list there")
    return found


def _find_celeba_list(folder: Path, stem: str) -> Path | None:
    """A list in the folder or in one of its folders, such as CelebA's Anno and Eval."""
    patterns = (f"{stem}.txt", f"{stem}.csv", f"*/{stem}.txt", f"*/{stem}.csv")
    return next((found for pattern in patterns for found in sorted(folder.glob(pattern))), None)
