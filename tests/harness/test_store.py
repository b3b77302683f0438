"""The run folder: rows keep their types, crashes leave no half files, one writer, names that stay inside."""

import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from harness.errors import StoreError
from harness.store import COLUMNS, RunFolder, equal_sizes, open_run, png_size, slug, write_atomic

ROW = {"backend": "gan", "image": "a", "metric": "psnr", "value": 30.5, "seed": 2**63 - 1}
HOLD = """
import sys
from pathlib import Path
from harness.store import RunFolder
with RunFolder(Path(sys.argv[1])).locked():
    print("held", flush=True)
    sys.stdin.read()
"""


def test_batches_hold_one_size_and_bounded_pixels(tmp_path: Path) -> None:
    """Files of one size go together, in their order, up to the count and the pixels; a larger one goes alone."""
    folder = RunFolder(tmp_path)
    sizes = {"a": (4, 6), "b": (6, 4), "c": (4, 6), "d": (30, 40), "e": (4, 6), "f": (30, 40), "g": (4, 6)}
    files = [(name, tmp_path / f"{name}.png") for name in sizes]
    for name, path in files:
        folder.write_image(path, np.zeros((*sizes[name], 3), np.uint8))
    assert [png_size(path) for _, path in files] == list(sizes.values())
    batches = [[name for name, _ in batch] for batch in equal_sizes(files, 3, 100)]
    assert batches == [["a", "c", "e"], ["g"], ["b"], ["d"], ["f"]]
    assert max(map(len, equal_sizes(files, 99, 50))) == 2


def test_rows_come_back_as_they_went_in(tmp_path: Path) -> None:
    """Parts are read in order with every column typed, large seeds exact, infinities kept and gaps filled."""
    folder = RunFolder(tmp_path)
    folder.append([ROW | {"race": "x"}, ROW | {"image": "b", "value": np.inf, "race": "y"}])
    folder.append([{"backend": "gan", "metric": "output", "image": "c", "error": "Kind: text"}], kind="failed")
    folder.append([ROW | {"image": "d", "value": np.nan}])
    rows = folder.rows()
    assert rows["image"].tolist() == ["a", "b", "d", "c"]
    assert {c: rows[c].dtype for c in COLUMNS} == {c: pd.Series(dtype=kind).dtype for c, kind in COLUMNS.items()}
    assert rows["seed"].tolist() == [2**63 - 1] * 3 + [0]
    assert rows["value"].tolist()[:2] == [30.5, np.inf]
    assert rows["value"].isna().tolist() == [False, False, True, True]
    assert rows["race"].tolist()[:2] == ["x", "y"]
    assert (rows[["options", "unit", "stage"]] == "").all(axis=None)


def test_no_rows_have_typed_columns(tmp_path: Path) -> None:
    """An empty folder gives an empty frame with the same columns and types; appending nothing writes nothing."""
    folder = RunFolder(tmp_path)
    folder.append([])
    rows = folder.rows()
    assert len(rows) == 0
    assert {c: rows[c].dtype for c in COLUMNS} == {c: pd.Series(dtype=kind).dtype for c, kind in COLUMNS.items()}
    assert not (tmp_path / "rows").exists()


def test_what_a_crash_left_is_ignored(tmp_path: Path) -> None:
    """A part that was not finished is no part; the next one takes its place."""
    folder = RunFolder(tmp_path)
    folder.append([ROW])
    (tmp_path / "rows/part-000001.parquet.part").write_bytes(b"PAR1 half of")
    assert len(folder.rows()) == 1
    folder.append([ROW | {"image": "b"}])
    assert folder.rows()["image"].tolist() == ["a", "b"]
    assert not list(tmp_path.rglob("*.part"))


def test_failures_can_be_forgotten(tmp_path: Path) -> None:
    """Dropping failures leaves the scores, and later parts overwrite nothing."""
    folder = RunFolder(tmp_path)
    folder.append([ROW])
    folder.append([ROW | {"image": "failed"}], kind="failed")
    folder.drop("failed")
    assert folder.rows()["image"].tolist() == ["a"]
    folder.append([ROW | {"image": "again"}], kind="failed")
    assert folder.rows()["image"].tolist() == ["a", "again"]


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    """While another process holds the folder, locking fails in one line; when that process is killed, it works."""
    command = [sys.executable, "-c", HOLD, str(tmp_path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(StoreError, match="another run is writing") as caught, RunFolder(tmp_path).locked():
            pass
        assert "\n" not in str(caught.value)
        holder.kill()
        holder.wait()
    with RunFolder(tmp_path).locked():
        pass


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path: Path) -> None:
    """An output path below a file is refused with the path."""
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"), RunFolder(tmp_path / "file" / "run").locked():
        pass


HOSTILE = ["../../x", "/etc/passwd", "..", ".", "", "a\0b", "x" * 300, "面孔", "a\\b", "C:con", "a\nb", "\ud800", "-rf"]


@pytest.mark.parametrize("name", HOSTILE)
def test_no_name_leaves_the_folder(name: str, tmp_path: Path) -> None:
    """Whatever an image is called, its files lie in their folder and can be written."""
    folder = RunFolder(tmp_path)
    for path in (folder.target(name), folder.input("clean", name), folder.output(name, "clean", name, "k" * 32)):
        assert path.resolve().is_relative_to(tmp_path.resolve())
        assert ".." not in path.parts
        write_atomic(path, b"x")
    assert folder.target(name).parent == tmp_path / "targets"


def test_names_that_look_alike_are_told_apart() -> None:
    """Ids that differ only in characters a file name cannot hold, in case, or after many characters are distinct."""
    alike = ["a b", "a/b", "a_b", "a?b", "A_b", "a\u0301", "\u00e1", "x" * 300, "x" * 301, *HOSTILE]
    assert len({slug(name).lower() for name in alike}) == len(set(alike))
    assert slug("a b") == slug("a b")


@pytest.mark.parametrize(
    "content",
    [b"not json", b"[]", b"{}", b"null", b'{"schema": 99}', b'{"schema": "1"}', b"\xff\xfe", b"", b"[" * 100_000],
)
def test_a_foreign_record_is_refused_in_one_line(content: bytes, tmp_path: Path) -> None:
    """Any other run.json is not taken for a run, and the message says what to do."""
    (tmp_path / "run.json").write_bytes(content)
    with pytest.raises(StoreError, match="choose another --output") as caught:
        RunFolder(tmp_path).read_record()
    assert "\n" not in str(caught.value)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    """Neither an empty folder nor a record without its images is a run."""
    with pytest.raises(StoreError, match="holds no run"):
        open_run(tmp_path)
    RunFolder(tmp_path).write_record({"schema": 1})
    with pytest.raises(StoreError, match="not a run record"):
        open_run(tmp_path)


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    """When the system refuses the bytes half-way, the file keeps its content and nothing else is left."""
    path = tmp_path / "run.json"
    write_atomic(path, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    try:
        with pytest.raises(StoreError, match="cannot be written"):
            write_atomic(path, bytes(1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["run.json"]


def test_a_path_that_cannot_be_is_one_line(tmp_path: Path) -> None:
    """A file where a folder should be, or a folder where the file should be, is reported and not a traceback."""
    (tmp_path / "file").write_text("")
    (tmp_path / "b.part").mkdir()
    for path in (tmp_path / "file" / "a", tmp_path / "b"):
        with pytest.raises(StoreError, match="cannot be written"):
            write_atomic(path, b"x")


def test_a_cached_image_is_made_once(tmp_path: Path) -> None:
    """The second call reads what the first one made."""
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    made = []

    def make() -> np.typing.NDArray[np.uint8]:
        made.append(1)
        return pixels

    folder = RunFolder(tmp_path)
    for _ in range(2):
        assert np.array_equal(folder.cached_image(folder.target("a"), make), pixels)
    assert len(made) == 1
