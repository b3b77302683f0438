"""Datasets: labels, ids, notes and errors of every kind, on real photos where they are at hand."""

import json
import os
import subprocess
import sys
import threading
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from harness import datasets, images
from harness.datasets import Dataset, age_group, dataset_hash, limit, open_dataset, utkface_labels
from harness.errors import DatasetError, ImageError

DATA = Path(os.environ.get("HARNESS_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
UTKFACE, FAIRFACE = DATA / "utkface", DATA / "fairface_test"
needs_utkface = pytest.mark.skipif(not UTKFACE.exists(), reason="UTKFace is not in HARNESS_DATA")
needs_fairface = pytest.mark.skipif(not FAIRFACE.exists(), reason="FairFace is not in HARNESS_DATA")


def photo(value: int = 7) -> bytes:
    """The file contents of a small image of one colour."""
    return images.encode_png(np.full((4, 4, 3), value, np.uint8))


def write_photos(folder: Path, *names: str) -> Path:
    """A folder with an image of its own colour under each name."""
    for value, name in enumerate(names):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(photo(value))
    return folder


def write_parquet(file: Path, columns: dict[str, list[object]], paths: list[str | None] | None = None) -> Path:
    """A parquet file in Hugging Face layout: an image struct and label columns, two rows to a row group."""
    count = len(paths) if paths else len(next(iter(columns.values())))
    names = paths or [f"{row}.png" for row in range(count)]
    rows = [{"bytes": photo(row), "path": name} for row, name in enumerate(names)]
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image": rows} | columns), file, row_group_size=2)
    return file


def labels(dataset: Dataset, attribute: str) -> dict[str, str]:
    """One attribute's labels by record id."""
    return {record.id: record.labels[attribute] for record in dataset.records}


def refusal(spec: str) -> str:
    """The message with which a spec is refused; checked to be one line."""
    with pytest.raises(DatasetError) as caught:
        open_dataset(spec)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# ---- UTKFace ----


@needs_utkface
def test_utkface_parquet_has_labels_and_licence() -> None:
    """The UTKFace test split opens with its 2,308 photos, all labelled, and its licence."""
    dataset = open_dataset(f"utkface:{UTKFACE}#test")
    assert len(dataset.records) == 2308
    assert dataset.name == "utkface-test"
    assert "non-commercial" in dataset.licence
    assert not dataset.demonstration
    assert set(dataset.attributes) == {"race", "gender", "age"}
    assert set(labels(dataset, "race").values()) == {"white", "black", "asian", "indian", "other"}
    assert dataset.notes == []
    assert [r.id for r in dataset.records] == sorted({r.id for r in dataset.records})
    assert dataset.image(dataset.records[1000]).shape == (200, 200, 3)


@needs_utkface
def test_utkface_folder_equals_parquet(tmp_path: Path) -> None:
    """The original folder layout, rebuilt from the parquet's names, gives the same ids, labels, years and pixels."""
    packed = open_dataset(f"utkface:{UTKFACE}#test")
    for record in packed.records[::8]:
        part = tmp_path / f"part{record.labels['gender']}"
        part.mkdir(exist_ok=True)
        (part / f"{record.id}.jpg").write_bytes(record.read())
    loose = open_dataset(f"utkface:{tmp_path}")
    assert [(r.id, r.labels, r.age_years) for r in loose.records] == [
        (r.id, r.labels, r.age_years) for r in packed.records[::8]
    ]
    assert np.array_equal(loose.image(loose.records[5]), packed.image(packed.records[40]))
    assert loose.notes == []


@pytest.mark.parametrize(
    ("name", "race", "gender", "age"),
    [
        ("26_1_3_20170117154736182.jpg.chip.jpg", "indian", "female", "26"),
        ("100_0_0_20170112213500903.jpg", "white", "male", "100"),
        ("61_1_20170109142408075.jpg", None, "female", "61"),
        ("39_20170109142408075.jpg", None, None, "39"),
        ("53__0_20170116184028385.jpg", "white", None, "53"),
        ("20_3_9_20170116184028385.jpg", None, None, "20"),
        ("55_0_1_20170116232725357jpg.chip.jpg", "black", "male", "55"),
        ("24_0_4_20170116220224657 .jpg", "other", "male", "24"),
        ("IMG_1_2_20170116.jpg", None, None, None),
        ("12_1_2_3.jpg", None, None, None),
        ("portrait.jpg", None, None, None),
    ],
)
def test_utkface_names(name: str, race: str | None, gender: str | None, age: str | None) -> None:
    """A field of a UTKFace name is read by position, and one that is missing or out of range is no label."""
    assert utkface_labels(name) == {"race": race, "gender": gender, "age": age}


def test_utkface_traps_are_counted_not_dropped(tmp_path: Path) -> None:
    """Names without a field or with an impossible age stay in as unknown, with a count in the notes."""
    names = ["61_1_20170109142408075.jpg", "130_0_2_20170116184028385.jpg", "5_0_0_20170116184028386.jpg"]
    dataset = open_dataset(f"utkface:{write_photos(tmp_path, *names)}")
    assert sorted(labels(dataset, "race").values()) == ["asian", "unknown", "white"]
    assert sorted(labels(dataset, "age").values()) == ["0-9", "60-69", "unknown"]
    assert dataset.notes == [
        "1 of 3 images have no usable race label: counted as unknown",
        "1 of 3 images have no usable age label: counted as unknown",
    ]


def test_utkface_of_other_names_is_refused(tmp_path: Path) -> None:
    """A folder in which no name follows the pattern is not UTKFace."""
    assert "use folder:" in refusal(f"utkface:{write_photos(tmp_path, 'a.png', 'b.png')}")


# ---- ages ----


@pytest.mark.parametrize(
    ("value", "label", "years"),
    [
        (0, "0-9", 0),
        (9.5, "0-9", 9.5),
        (10, "10-19", 10),
        ("69", "60-69", 69),
        (70, "70+", 70),
        (116, "70+", 116),
        (117, "unknown", None),
        (-1, "unknown", None),
        (float("nan"), "unknown", None),
        (float("inf"), "unknown", None),
        (None, "unknown", None),
        ("", "unknown", None),
        ("old", "unknown", None),
        ("3-9", "3-9", None),
        ("More than 70", "more than 70", None),
        ("70+", "70+", None),
        ("Not young", "not young", None),
    ],
)
def test_age_group(value: object, label: str, years: float | None) -> None:
    """Years fall into bins of ten up to 70+, ranges and young or not are kept, anything else is unknown."""
    assert age_group(value) == (label, years)


# ---- FairFace ----


@needs_fairface
def test_fairface_keeps_its_races_and_age_ranges() -> None:
    """The FairFace parquet has 200 photos for each of seven races, its own age ranges, its licence, and no note."""
    dataset = open_dataset(f"fairface:{FAIRFACE}#test")
    races = list(labels(dataset, "race").values())
    assert {race: races.count(race) for race in races} == dict.fromkeys(
        ["white", "black", "east asian", "southeast asian", "indian", "latino_hispanic", "middle eastern"], 200
    )
    assert {"0-2", "3-9", "20-29", "more than 70"} >= set(labels(dataset, "age").values()) - {
        f"{a}0-{a}9" for a in range(1, 7)
    }
    assert dataset.attributes == ("race", "gender", "age")
    assert (dataset.name, dataset.licence) == ("fairface-test", "FairFace: CC BY 4.0")
    assert dataset.notes == []
    assert all(record.age_years is None for record in dataset.records)


@needs_fairface
def test_fairface_folder_equals_parquet(tmp_path: Path) -> None:
    """FairFace's original layout, rebuilt from the parquet, gives the same ids, labels and photos, and its hash."""
    packed = open_dataset(f"fairface:{FAIRFACE}")
    some = packed.records[::50]
    (tmp_path / "val").mkdir()
    rows = ["file,age,gender,race,service_test"]
    for record in some:
        (tmp_path / "val" / f"{record.id}.jpg").write_bytes(record.read())
        group = record.labels
        rows.append(f"val/{record.id}.jpg,{group['age']},{group['gender'].title()},{group['race'].title()},True")
    (tmp_path / "fairface_label_val.csv").write_text("\n".join(rows))
    loose = open_dataset(f"fairface:{tmp_path}#val")
    assert [(r.id, r.labels) for r in loose.records] == [(r.id, r.labels) for r in some]
    assert dataset_hash(loose) == dataset_hash(replace(packed, records=some))
    assert (loose.name, loose.licence) == ("fairface-val", packed.licence)
    assert loose.notes == ["columns that are no known label, ignored: service_test"]


def write_fairface(folder: Path) -> Path:
    """FairFace as published: two photos and a table for train; for val an unlisted, an absent and an odd one too."""
    write_photos(folder, "train/1.jpg", "train/2.jpg", "val/1.jpg", "val/2.jpg", "val/3.jpg")
    head = "file,age,gender,race\n"
    train = "train/1.jpg,3-9,Male,East Asian\ntrain/2.jpg,more than 70,Female,Latino_Hispanic\n"
    (folder / "fairface_label_train.csv").write_text(head + train)
    val = "val/1.jpg,3-Sep,Male,\nval/2.jpg,0-2,,White\nval/9.jpg,0-2,Male,White\n"
    (folder / "fairface_label_val.csv").write_text(head + val)
    return folder


def test_fairface_splits_have_tables_of_their_own(tmp_path: Path) -> None:
    """A split of the original layout holds its own photos only; among two, one has to be chosen."""
    write_fairface(tmp_path)
    train = open_dataset(f"fairface:{tmp_path}#train")
    assert train.notes == []
    assert [record.source for record in train.records] == ["train/1.jpg", "train/2.jpg"]
    assert labels(train, "race") == {"1": "east asian", "2": "latino_hispanic"}
    assert labels(train, "age") == {"1": "3-9", "2": "more than 70"}
    assert "several splits (train, val)" in refusal(f"fairface:{tmp_path}")
    assert "no split #test; there is train, val" in refusal(f"fairface:{tmp_path}#test")
    (tmp_path / "fairface_label_train.csv").unlink()
    assert open_dataset(f"fairface:{tmp_path}").records[0].source == "val/1.jpg"


def test_fairface_mismatches_are_counted(tmp_path: Path) -> None:
    """Photos without a row stay in as unknown, rows without a photo and unusable labels are counted."""
    dataset = open_dataset(f"fairface:{write_fairface(tmp_path)}#val")
    assert labels(dataset, "race") == {"1": "unknown", "2": "white", "3": "unknown"}
    assert labels(dataset, "age") == {"1": "unknown", "2": "0-2", "3": "unknown"}
    assert dataset.notes == [
        "1 of 3 images in fairface_label_val.csv are not there, val/9.jpg for one: left out",
        "1 of 3 images are not in fairface_label_val.csv, val/3.jpg for one: no labels",
        "2 of 3 images have no usable race label: counted as unknown",
        "2 of 3 images have no usable gender label: counted as unknown",
        "2 of 3 images have no usable age label: counted as unknown",
    ]


def test_fairface_photos_may_lie_in_the_folder_of_their_archive(tmp_path: Path) -> None:
    """Tables at the top and photos one folder down, as the archive unpacks, are the same dataset."""
    flat, deep = write_fairface(tmp_path / "flat"), write_fairface(tmp_path / "deep")
    (deep / "fairface-img-margin025-trainval").mkdir()
    for split in ("train", "val"):
        (deep / split).rename(deep / "fairface-img-margin025-trainval" / split)
    one, other = (open_dataset(f"fairface:{folder}#val") for folder in (flat, deep))
    assert dataset_hash(one) == dataset_hash(other)
    assert one.notes == other.notes


def test_fairface_without_a_table_or_photos_is_refused(tmp_path: Path) -> None:
    """No table, a table without file names and a table without its folder each get one line."""
    write_photos(tmp_path, "a.jpg")
    assert "no fairface_label_train.csv or fairface_label_val.csv and no parquet" in refusal(f"fairface:{tmp_path}")
    (tmp_path / "fairface_label_val.csv").write_text("file,race\nval/1.jpg,White\n")
    assert "val: not a folder" in refusal(f"fairface:{tmp_path}")
    write_photos(tmp_path, "val/1.jpg")
    (tmp_path / "fairface_label_val.csv").write_text("name,race\nval/1.jpg,White\n")
    assert "no column of file names" in refusal(f"fairface:{tmp_path}")


# ---- CelebA ----

CELEBA_LIST = """6
5_o_Clock_Shadow Male Smiling Young \r
000001.jpg -1  1  1 -1
000002.jpg  1 -1  1  1
000003.jpg  1 -1  1
000004.jpg  1  0  1  1
000006.jpg  1  1  1  1

000001.jpg  1 -1  1  1
"""


def write_celeba(folder: Path, images: str = "img_align_celeba") -> Path:
    """CelebA with five photos: one not listed, one of a torn line, one without a gender; one listed is absent."""
    write_photos(folder / images, *(f"00000{i}.jpg" for i in range(1, 6)))
    (folder / "list_attr_celeba.txt").write_text(CELEBA_LIST)
    return folder


def test_celeba_labels_and_mismatches(tmp_path: Path) -> None:
    """Male tells the gender and Young the age group; whatever a list lacks is unknown and counted."""
    dataset = open_dataset(f"celeba:{write_celeba(tmp_path)}")
    assert (dataset.name, dataset.licence) == ("celeba", "CelebA: non-commercial research only")
    assert dataset.attributes == ("gender", "age")
    assert [(r.id, r.labels["gender"], r.labels["age"]) for r in dataset.records] == [
        ("000001", "male", "not young"),
        ("000002", "female", "young"),
        ("000003", "unknown", "unknown"),
        ("000004", "unknown", "young"),
        ("000005", "unknown", "unknown"),
    ]
    assert dataset.notes == [
        "columns that are no known label, ignored: 5_o_Clock_Shadow, Smiling",
        "1 rows of list_attr_celeba.txt repeat an image: the first row counts",
        "1 of 5 images in list_attr_celeba.txt are not there, 000006.jpg for one: left out",
        "1 of 5 images are not in list_attr_celeba.txt, 000005.jpg for one: no labels",
        "3 of 5 images have no usable gender label: counted as unknown",
        "2 of 5 images have no usable age label: counted as unknown",
    ]


@pytest.mark.parametrize("images", [".", "img_align_celeba/img_align_celeba", "Img/img_align_celeba"])
def test_celeba_csv_and_layouts_equal_text(tmp_path: Path, images: str) -> None:
    """Lists as CSV, in folders of their own, and images in other places give the same dataset."""
    text, other = write_celeba(tmp_path / "text"), write_celeba(tmp_path / "csv", images)
    (other / "list_attr_celeba.txt").unlink()
    (other / "Anno").mkdir()
    rows = [",".join(line.split()) for line in CELEBA_LIST.splitlines()[1:]]
    (other / "Anno" / "list_attr_celeba.csv").write_text("image_id," + "\n".join(rows))
    loose, packed = open_dataset(f"celeba:{text}"), open_dataset(f"celeba:{other}")
    assert dataset_hash(loose) == dataset_hash(packed)
    assert [note.replace(".csv", ".txt") for note in packed.notes] == loose.notes


def test_celeba_people_are_identities(tmp_path: Path) -> None:
    """The identity list, where it is there, tells who is on a photo; a photo that it lacks has no identity."""
    write_celeba(tmp_path, ".")
    assert {record.identity for record in open_dataset(f"celeba:{tmp_path}").records} == {None}
    (tmp_path / "identity_CelebA.txt").write_text("000001.jpg 2880\n000002.jpg 2937\n000004.jpg\n")
    (tmp_path / "list_bbox_celeba.txt").write_text("2\nimage_id x_1 y_1 width height\n")
    dataset = open_dataset(f"celeba:{tmp_path}")
    assert [record.identity for record in dataset.records] == ["2880", "2937", None, None, None]
    assert dataset.attributes == ("gender", "age")
    assert not [note for note in dataset.notes if "no image suffix" in note]


@pytest.mark.parametrize("suffix", ["txt", "csv"])
def test_celeba_splits_follow_the_partition_list(tmp_path: Path, suffix: str) -> None:
    """0, 1, 2 are train, val, test; photos without a line in the list are left out of a split, with a note."""
    write_celeba(tmp_path)
    lines = ["image_id,partition"] * (suffix == "csv") + [
        "000001.jpg,0",
        "000002.jpg,2",
        "000003.jpg,2",
        "000004.jpg,7",
    ]
    text = "\n".join(lines)
    (tmp_path / f"list_eval_partition.{suffix}").write_text(text if suffix == "csv" else text.replace(",", " "))
    test = open_dataset(f"celeba:{tmp_path}#test")
    assert test.name == "celeba-test"
    assert labels(test, "gender") == {"000002": "female", "000003": "unknown"}
    assert test.notes[0] == "2 of 5 images are in no split of CelebA's partition list: left out"
    assert not [note for note in test.notes if "are not there" in note]
    assert [record.id for record in open_dataset(f"celeba:{tmp_path}#train").records] == ["000001"]
    assert len(open_dataset(f"celeba:{tmp_path}").records) == 5
    assert "none of its images is in split #val" in refusal(f"celeba:{tmp_path}#val")
    assert "no split #valid; there is test, train, val" in refusal(f"celeba:{tmp_path}#valid")


def test_celeba_without_lists_is_refused(tmp_path: Path) -> None:
    """A missing or foreign attribute list, a missing partition list and a missing folder are each named."""
    write_celeba(tmp_path)
    assert "no list_eval_partition.txt or list_eval_partition.csv" in refusal(f"celeba:{tmp_path}#test")
    assert "not a folder" in refusal(f"celeba:{tmp_path / 'list_attr_celeba.txt'}")
    (tmp_path / "list_attr_celeba.txt").write_text("000001.jpg 1 1\n000002.jpg 1 1\n")
    assert "no attribute Male or Young" in refusal(f"celeba:{tmp_path}")
    (tmp_path / "list_attr_celeba.txt").write_bytes(b"\xff\xfe")
    assert "not a readable text file" in refusal(f"celeba:{tmp_path}")
    (tmp_path / "list_attr_celeba.txt").unlink()
    assert "no list_attr_celeba.txt or list_attr_celeba.csv" in refusal(f"celeba:{tmp_path}")


# ---- LFW ----


def test_lfw_people_are_identities_not_groups(tmp_path: Path) -> None:
    """The folder's person is each record's identity and no attribute; photos of no person are counted."""
    names = ["Ana_Li/Ana_Li_0001.jpg", "Ana_Li/Ana_Li_0002.jpg", "Bo/Bo_0001.jpg", "Bo/Ana_Li_0003.jpg", "stray.jpg"]
    dataset = open_dataset(f"lfw:{write_photos(tmp_path / 'lfw', *names)}")
    assert (dataset.name, dataset.licence) == ("lfw", "LFW: research use; see its site")
    assert dataset.attributes == ()
    assert [(record.id, record.identity) for record in dataset.records] == [
        ("Ana_Li_0001", "Ana_Li"),
        ("Ana_Li_0002", "Ana_Li"),
        ("Ana_Li_0003", None),
        ("Bo_0001", "Bo"),
        ("stray", None),
    ]
    assert dataset.notes == ["2 of 5 images do not carry the name of their folder: their identity is not known"]


def test_lfw_archives_open_as_they_unpack(tmp_path: Path) -> None:
    """The funnelled set with its lists of pairs gives the people's photos, and notes the lists."""
    folder = write_photos(tmp_path, "lfw_funneled/Ana_Li/Ana_Li_0001.jpg", "lfw_funneled/Jo-O'X/Jo-O'X_0012.jpg")
    (folder / "lfw_funneled" / "pairs_01.txt").write_text("300\n")
    dataset = open_dataset(f"lfw:{folder}")
    assert [record.identity for record in dataset.records] == ["Ana_Li", "Jo-O'X"]
    assert dataset.notes == ["1 of 3 files have no image suffix, pairs_01.txt for one: left out"]


def test_lfw_of_other_names_is_refused(tmp_path: Path) -> None:
    """A folder without any person's folder is not LFW, and LFW has no splits."""
    write_photos(tmp_path, "a/b_0001.jpg")
    assert "use folder:" in refusal(f"lfw:{tmp_path}")
    assert "leave it out" in refusal(f"lfw:{tmp_path}#test")


# ---- parquet ----


@needs_fairface
def test_plain_parquet_says_no_licence() -> None:
    """The same file as plain parquet has the same labels and photos, under a licence unknown."""
    plain = open_dataset(f"parquet:{FAIRFACE}")
    assert plain.licence == "unknown"
    assert [(r.id, r.labels) for r in plain.records] == [
        (r.id, r.labels) for r in open_dataset(f"fairface:{FAIRFACE}").records
    ]


def test_labels_are_normalised_and_other_columns_noted(tmp_path: Path) -> None:
    """Known columns become lower-case bounded labels under their attribute's name; the rest is named in a note."""
    columns: dict[str, list[object]] = {
        "Ethnicity": [" White", "x" * 500, None],
        "sex": ["Male", "FEMALE", "\n"],
        "skin_tone": [3.0, 10.0, float("nan")],
        "camera": ["a", "b", "c"],
    }
    dataset = open_dataset(f"parquet:{write_parquet(tmp_path / 'faces.parquet', columns)}")
    assert dataset.attributes == ("race", "gender", "skin_tone")
    assert labels(dataset, "race")["0"] == "white"
    assert len(labels(dataset, "race")["1"]) == 40
    assert list(labels(dataset, "gender").values()) == ["male", "female", "unknown"]
    assert list(labels(dataset, "skin_tone").values()) == ["3", "10", "unknown"]
    assert dataset.notes[0] == "columns that are no known label, ignored: camera"
    assert len(dataset.notes) == 4


def test_class_label_numbers_become_names(tmp_path: Path) -> None:
    """Integers of a Hugging Face ClassLabel column are names, not years; a number without a name is unknown."""
    features = {"age": {"names": ["0-2", "3-9"], "_type": "ClassLabel"}, "image": {"_type": "Image"}}
    table = pa.table({"image": [{"bytes": photo(), "path": f"{i}.png"} for i in range(3)], "age": [1, 0, -1]})
    table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pq.write_table(table, tmp_path / "a.parquet")
    assert labels(open_dataset(f"parquet:{tmp_path}"), "age") == {"0": "3-9", "1": "0-2", "2": "unknown"}


def test_damaged_hugging_face_metadata_is_ignored(tmp_path: Path) -> None:
    """Metadata that is no JSON, or JSON of another shape, leaves the values as they are."""
    for metadata in ("{", "[]", '{"info": {"features": {"race": {"names": 5}}}}'):
        table = pa.table({"image": [photo()], "race": ["White"]}).replace_schema_metadata({"huggingface": metadata})
        pq.write_table(table, tmp_path / "a.parquet")
        assert list(labels(open_dataset(f"parquet:{tmp_path}"), "race").values()) == ["white"]


def test_binary_column_without_paths(tmp_path: Path) -> None:
    """Plain binary columns work too; the ids are the file's name and the row."""
    pq.write_table(pa.table({"photo": [photo(1), photo(2)]}), tmp_path / "set.parquet")
    dataset = open_dataset(f"parquet:{tmp_path / 'set.parquet'}")
    assert [record.id for record in dataset.records] == ["set-000000", "set-000001"]
    assert dataset.image(dataset.records[1])[0, 0, 0] == 2


def test_rows_without_bytes_cost_only_themselves(tmp_path: Path) -> None:
    """A row that stores a path but no bytes is an ImageError of that record alone."""
    rows = [{"bytes": photo(), "path": "a.png"}, {"bytes": None, "path": "b.png"}, None]
    pq.write_table(pa.table({"image": rows}), tmp_path / "x.parquet")
    dataset = open_dataset(f"parquet:{tmp_path}")
    readable = {r.id: r for r in dataset.records}
    assert dataset.image(readable["a"]).shape == (4, 4, 3)
    for key in ("b", "x-000002"):
        with pytest.raises(ImageError, match="no image bytes in this row"):
            dataset.image(readable[key])


def test_splits_are_chosen_by_name(tmp_path: Path) -> None:
    """`#SPLIT` picks its shards; no split among several, or one that is not there, lists those that are."""
    write_parquet(tmp_path / "data" / "test-00000-of-00002.parquet", {}, ["a.png"])
    write_parquet(tmp_path / "data" / "test-00001-of-00002.parquet", {}, ["b.png"])
    write_parquet(tmp_path / "data" / "train-00000-of-00001-abc123.parquet", {}, ["c.png"])
    assert [r.id for r in open_dataset(f"parquet:{tmp_path}#test").records] == ["a", "b"]
    assert [r.id for r in open_dataset(f"parquet:{tmp_path}#train").records] == ["c"]
    assert "several splits (test, train)" in refusal(f"parquet:{tmp_path}")
    assert "no split #tes; there is test, train" in refusal(f"parquet:{tmp_path}#tes")


def test_versions_of_a_split_are_not_mixed(tmp_path: Path) -> None:
    """The same split in two folders, as FairFace's two crops come, is a choice to make, not one set of twins."""
    for crop in ("0.25", "1.25"):
        write_parquet(tmp_path / crop / "validation-00000-of-00001.parquet", {}, ["a.png"])
    assert "the split validation lies in several folders" in refusal(f"fairface:{tmp_path}")
    assert [record.id for record in open_dataset(f"fairface:{tmp_path / '0.25'}").records] == ["a"]


def test_rows_keep_their_images_when_the_cache_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With room for one row group only, reading in any order and from several threads gives each row its image."""
    monkeypatch.setattr(datasets, "CACHE_BYTES", 1)
    write_parquet(tmp_path / "x.parquet", {}, [f"{i}.png" for i in range(9)])
    dataset = open_dataset(f"parquet:{tmp_path}")
    wrong: list[str] = []

    def check(seed: int) -> None:
        for i in np.random.default_rng(seed).permutation(9):
            record = dataset.records[i]
            if dataset.image(record)[0, 0, 0] != int(record.id):
                wrong.append(record.id)

    threads = [threading.Thread(target=check, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_unusable_parquet_is_refused(tmp_path: Path) -> None:
    """Text, no image column, and no rows are each called by their name."""
    (tmp_path / "text.parquet").write_text("no parquet")
    pq.write_table(pa.table({"image": ["a.png"], "n": [1]}), tmp_path / "paths.parquet")
    pq.write_table(pa.table({"image": pa.array([], pa.binary())}), tmp_path / "none.parquet")
    assert "not a readable parquet file" in refusal(f"parquet:{tmp_path / 'text.parquet'}")
    assert "no column with image bytes" in refusal(f"parquet:{tmp_path / 'paths.parquet'}")
    assert "no rows" in refusal(f"parquet:{tmp_path / 'none.parquet'}")


# ---- folders ----


def test_folder_without_metadata_has_no_attributes(tmp_path: Path) -> None:
    """Images are found in depth, hidden files are not; other files are left out with a note."""
    write_photos(tmp_path, "b.PNG", "deep/er/a.png", ".hidden.png", "__MACOSX/c.png")
    (tmp_path / "readme.txt").write_text("hello")
    dataset = open_dataset(f"folder:{tmp_path}")
    assert [record.id for record in dataset.records] == ["a", "b"]
    assert dataset.attributes == ()
    assert dataset.notes == ["1 of 3 files have no image suffix, readme.txt for one: left out"]


def test_metadata_labels_and_mismatches(tmp_path: Path) -> None:
    """metadata.csv labels the photos; photos without a row, rows without a photo and repeated rows are counted."""
    write_photos(tmp_path, "a.png", "in/b.png", "c.png")
    rows = "\ufefffile_name,Race,age,note\na.png,Black,31,x\n./in\\b.png,,200,y\nz.png,White,5\na.png,White,31,x\n"
    (tmp_path / "metadata.csv").write_text(rows, encoding="utf-8")
    dataset = open_dataset(f"folder:{tmp_path}")
    assert labels(dataset, "race") == {"a": "black", "b": "unknown", "c": "unknown"}
    assert labels(dataset, "age") == {"a": "30-39", "b": "unknown", "c": "unknown"}
    assert dataset.records[0].age_years == 31
    assert dataset.notes == [
        "columns that are no known label, ignored: note",
        "1 rows of metadata.csv repeat an image: the first row counts",
        "1 of 3 images in metadata.csv are not there, z.png for one: left out",
        "1 of 3 images are not in metadata.csv, c.png for one: no labels",
        "2 of 3 images have no usable race label: counted as unknown",
        "2 of 3 images have no usable age label: counted as unknown",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "no column of file names"),
        (b"name;race\na;b\n", "no column of file names"),
        (b"\xff\xfe\x00bad", "not a readable CSV"),
        (b'file_name,race\n"' + b"x" * 200_000, "not a readable CSV"),
    ],
)
def test_unusable_metadata_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    """A metadata.csv that cannot be used is an error, not a dataset without labels."""
    write_photos(tmp_path, "a.png")
    (tmp_path / "metadata.csv").write_bytes(content)
    assert message in refusal(f"folder:{tmp_path}")


def test_broken_photos_fail_one_by_one(tmp_path: Path) -> None:
    """Opening never decodes: a text file named .jpg, an empty and a vanished file fail alone when asked for."""
    write_photos(tmp_path, "good.png", "gone.png")
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    dataset = open_dataset(f"folder:{tmp_path}")
    (tmp_path / "gone.png").unlink()
    failed = {}
    for record in dataset.records:
        try:
            dataset.image(record)
        except ImageError as error:
            failed[record.id] = str(error)
    assert set(failed) == {"text", "empty", "gone"}
    assert all(f"{key}." in message for key, message in failed.items())
    assert len(dataset_hash(dataset)) == 64


# ---- ids ----


def test_ids_are_unique_safe_and_bounded(tmp_path: Path) -> None:
    """Equal names (in any case) get suffixes and a note; odd characters and long names are tamed."""
    write_photos(tmp_path, "a.png", "b/A.png", "c/a.jpg", "a-2.png", "d e$.png", "n" * 200 + ".png", "é/李.png")
    dataset = open_dataset(f"folder:{tmp_path}")
    assert [record.id for record in dataset.records] == ["A-3", "a", "a-2", "a-4", "d_e_", "n" * 120, "李"]
    assert "2 of 7 images share their name" in dataset.notes[0]


def test_hostile_paths_in_parquet_stay_file_names(tmp_path: Path) -> None:
    """Paths that climb, hide or hold control characters become plain ids and printable sources."""
    paths: list[str | None] = ["../../etc/passwd", "C:\\x\\..\\b.png", "..", "\x1b[31m\n.png", None, ""]
    dataset = open_dataset(f"parquet:{write_parquet(tmp_path / 's.parquet', {}, paths)}")
    for record in dataset.records:
        assert not set("/\\\n\x1b") & set(record.id)
        assert not record.id.startswith(".")
        assert record.source.isprintable()
    assert len({record.id for record in dataset.records}) == 6


# ---- specs ----


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("utkfaces:/x", "did you mean utkface?"),
        ("Folder:/x", "did you mean folder?"),
        ("zzz:/x", "one of utkface, fairface, celeba, lfw, folder, parquet, synthetic"),
        ("folder:", "no path given"),
        ("folder", "no path given"),
        ("", "unknown kind"),
        ("folder:/no/such/place", "/no/such/place: no such file or folder"),
        ("folder:" + "x" * 999, "no such file or folder"),
        ("folder:~nobody-of-this-name/x", "no such file or folder"),
        ("synthetic:/x", "takes no path"),
        ("utk\n\x1b[31mface" + "e" * 999, "unknown kind"),
    ],
)
def test_wrong_specs_say_what_to_do(spec: str, message: str) -> None:
    """A wrong spec is refused in one bounded line that helps."""
    text = refusal(spec)
    assert message in text
    assert len(text) < 400


def test_wrong_places_say_what_to_do(tmp_path: Path) -> None:
    """A bare path, an empty folder, a folder of parquet files and a split without parquet each get their advice."""
    write_parquet(tmp_path / "p" / "x.parquet", {}, ["a.png"])
    write_photos(tmp_path / "i", "a.png")
    (tmp_path / "empty").mkdir()
    assert f"did you mean folder:{tmp_path}" in refusal(str(tmp_path))
    assert "no images" in refusal(f"folder:{tmp_path / 'empty'}")
    assert "no images" in refusal(f"utkface:{tmp_path / 'empty'}")
    assert "no parquet files" in refusal(f"parquet:{tmp_path / 'empty'}")
    assert "use parquet:" in refusal(f"folder:{tmp_path / 'p'}")
    assert "leave it out" in refusal(f"folder:{tmp_path / 'i'}#test")
    assert "not a folder" in refusal(f"folder:{tmp_path / 'i' / 'a.png'}")


def test_a_number_sign_in_the_path_is_allowed(tmp_path: Path) -> None:
    """A path that exists with its "#" is taken whole."""
    assert len(open_dataset(f"folder:{write_photos(tmp_path / 'set#1', 'a.png')}").records) == 1


def test_missing_portraits_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the embedded file, synthetic says that the installation lacks it; with it, it is a demonstration."""
    monkeypatch.setattr("harness.datasets.resources.files", lambda _: tmp_path)
    assert "missing from this installation" in refusal("synthetic")
    columns: dict[str, list[object]] = {"age": [30, 40], "gender": ["male", "female"], "race": ["a", "b"]}
    write_parquet(tmp_path / "data" / "portraits.parquet", columns)
    dataset = open_dataset("synthetic")
    assert dataset.demonstration
    assert dataset.attributes == ("race", "gender", "age")
    assert dataset.image(dataset.records[1])[0, 0, 0] == 1


# ---- subsets and identity ----


def grouped(tmp_path: Path) -> Dataset:
    """Forty photos: 24 of group a, 12 of b, 3 of c, 1 unlabelled."""
    races: list[object] = ["a"] * 24 + ["b"] * 12 + ["c"] * 3 + [None]
    return open_dataset(f"parquet:{write_parquet(tmp_path / 'x.parquet', {'race': races})}")


def test_limit_draws_equally_while_groups_last(tmp_path: Path) -> None:
    """Groups are drawn in equal numbers until the small ones are used up; the unlabelled come last."""
    dataset = grouped(tmp_path)

    def count(n: int) -> list[int]:
        drawn = list(labels(limit(dataset, n), "race").values())
        return [drawn.count(race) for race in ("a", "b", "c", "unknown")]

    assert count(6) == [2, 2, 2, 0]
    assert count(13) == [5, 5, 3, 0]
    assert count(39) == [24, 12, 3, 0]
    assert "6 of 40 images" in limit(dataset, 6).notes[-1]


def test_limit_nests_and_repeats(tmp_path: Path) -> None:
    """The same seed gives the same photos, smaller subsets lie in larger ones, another seed gives others."""
    dataset = grouped(tmp_path)
    subsets = [{record.id for record in limit(dataset, n, 3).records} for n in range(1, 40)]
    assert all(small < large for small, large in pairwise(subsets))
    assert [len(subset) for subset in subsets] == list(range(1, 40))
    assert {record.id for record in limit(dataset, 20, 4).records} != subsets[19]
    assert [r.id for r in limit(dataset, 20, 3).records] == sorted(subsets[19])


def test_limit_beyond_the_set_is_the_set(tmp_path: Path) -> None:
    """A limit above the size changes nothing; one below 1 is refused."""
    dataset = grouped(tmp_path)
    assert limit(dataset, 999) is dataset
    with pytest.raises(DatasetError, match="give 1 or more"):
        limit(dataset, 0)


def test_hash_follows_content_not_layout(tmp_path: Path) -> None:
    """The same photos and labels hash alike from parquet and from a folder; a changed label or pixel does not."""
    races: list[object] = ["a", "b", "b"]
    packed = open_dataset(f"parquet:{write_parquet(tmp_path / 'x.parquet', {'race': races})}")
    folder = write_photos(tmp_path / "f", "0.png", "1.png", "2.png")
    (folder / "metadata.csv").write_text("file,race\n0.png,a\n1.png,b\n2.png,b\n")
    same = dataset_hash(open_dataset(f"folder:{folder}"))
    assert same == dataset_hash(packed)
    (folder / "metadata.csv").write_text("file,race\n0.png,a\n1.png,b\n2.png,a\n")
    other_label = dataset_hash(open_dataset(f"folder:{folder}"))
    (folder / "2.png").write_bytes(photo(99))
    assert len({same, other_label, dataset_hash(open_dataset(f"folder:{folder}"))}) == 3


def test_import_is_light() -> None:
    """Importing the module loads neither pandas, pyarrow, torch nor Pillow."""
    code = "import sys, harness.datasets; print([m for m in ('pandas','pyarrow','torch','PIL') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


def test_a_column_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    """Two columns of one name would contradict each other: the table is refused by the column's name."""
    (tmp_path / "a.png").write_bytes(photo())
    (tmp_path / "metadata.csv").write_text("file_name,race,Race\na.png,white,black\n")
    with pytest.raises(DatasetError, match="column race twice"):
        open_dataset(f"folder:{tmp_path}")
