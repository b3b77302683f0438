"""Weights from strangers: read within bounds, and nothing in them is executed."""

import contextlib
import os
import pickle
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from backends.foreign import files
from backends.foreign.files import count, read_tensors, regular_file, required

WEIGHTS = {"conv.weight": torch.arange(8.0).reshape(2, 4), "conv.bias": torch.ones(2, dtype=torch.float16)}


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def same(state: dict[str, Tensor]) -> bool:
    """Whether these are `WEIGHTS` as float32."""
    return state.keys() == WEIGHTS.keys() and all(torch.equal(state[k], v.float()) for k, v in WEIGHTS.items())


@pytest.mark.parametrize("wrap", [[], ["params_ema"], ["state_dict"], ["model"]])
@pytest.mark.parametrize("zipped", [True, False])
def test_weights_are_found(tmp_path: Path, wrap: list[str], zipped: bool) -> None:  # noqa: FBT001 - a parameter
    """PyTorch's two formats are read, with and without what training programs put around the weights."""
    raw: dict[str, object] = {"epoch": 3} if wrap else {}
    raw |= {wrap[0]: WEIGHTS} if wrap else WEIGHTS
    torch.save(raw, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    state = read_tensors(tmp_path / "w.pth")
    assert same(state)
    assert {t.dtype for t in state.values()} == {torch.float32}


def test_averaged_weights_come_first(tmp_path: Path) -> None:
    """Of the weights of training and their moving average, the average is served; DataParallel's prefix goes."""
    averaged = {f"module.{name}": tensor for name, tensor in WEIGHTS.items()}
    torch.save({"params": {"x": torch.zeros(1)}, "params_ema": averaged}, tmp_path / "w.pth")
    assert same(read_tensors(tmp_path / "w.pth"))


def test_safetensors_are_read(tmp_path: Path) -> None:
    """Safetensors hold the weights as they are."""
    save_file(WEIGHTS, tmp_path / "w.safetensors")
    assert same(read_tensors(tmp_path / "w.safetensors"))


@pytest.mark.parametrize("how", ["zip", "old", "bare"])
def test_a_pickle_that_would_run_code_is_refused(tmp_path: Path, how: str) -> None:
    """A hostile pickle is refused by one line, and what it would have done is not done."""
    victim, file = tmp_path / "victim", tmp_path / "w.pth"
    raw = {"conv.weight": torch.ones(2), "x": Hostile(victim)}
    if how == "bare":
        file.write_bytes(pickle.dumps(Hostile(victim)))
    else:
        torch.save(raw, file, _use_new_zipfile_serialization=how == "zip")
    with pytest.raises(ValueError, match=r"w\.pth: refused, not a pickle of tensors alone: ") as caught:
        read_tensors(file)
    assert "\n" not in str(caught.value)
    assert not victim.exists()
    with contextlib.suppress(RuntimeError):  # a bare pickle runs, and then is no checkpoint
        torch.load(file, weights_only=False)
    assert victim.exists(), "the pickle was not hostile"


def test_ten_gigabytes_are_refused(tmp_path: Path) -> None:
    """Neither a file of 10 GB nor a small one whose tensor claims 10 GB is taken in."""
    with (tmp_path / "large.pth").open("wb") as file:
        file.truncate(10_000_000_000)
    with pytest.raises(ValueError, match="10000000000 bytes"):
        regular_file(str(tmp_path / "large.pth"))
    torch.save({"x": torch.zeros(1).expand(50_000, 50_000)}, tmp_path / "claim.pth")
    with pytest.raises(ValueError, match="declare 10000000000 bytes"):
        read_tensors(tmp_path / "claim.pth")


def test_archives_that_grow_are_refused(tmp_path: Path) -> None:
    """A compressed archive is not what torch.save writes."""
    torch.save({"x": torch.zeros(1_000_000)}, tmp_path / "w.pth")
    with zipfile.ZipFile(tmp_path / "w.pth") as plain, zipfile.ZipFile(tmp_path / "bomb.pth", "w") as bomb:
        for name in plain.namelist():
            bomb.writestr(name, plain.read(name), zipfile.ZIP_DEFLATED)
    with pytest.raises(ValueError, match="compressed archive"):
        read_tensors(tmp_path / "bomb.pth")


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
def test_torchscript_is_refused(tmp_path: Path) -> None:
    """TorchScript is a program, whatever its suffix."""
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), str(tmp_path / "w.pt"))
    with pytest.raises(ValueError, match="TorchScript is a program"):
        read_tensors(tmp_path / "w.pt")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([1, 2], "no dictionary of tensors"),
        ({}, "0 tensors"),
        ({"epoch": 3}, "0 tensors"),
        ({1: torch.ones(1)}, "no dictionary of tensors"),
        ({"body.999999999.weight": torch.ones(1)}, "a layer's number"),
        ({"x": torch.ones(2, 2).to_sparse()}, "not a plain tensor|not an allowed|Unsupported"),
    ],
)
def test_what_holds_no_plain_weights_is_refused(tmp_path: Path, content: object, message: str) -> None:
    """A file of other things is refused by one line that says what is wrong."""
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=rf"w\.pth: .*({message})") as caught:
        read_tensors(tmp_path / "w.pth")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.ckpt"])
@pytest.mark.parametrize("content", [b"not weights", b"PK\x03\x04", b"\x80\x02.", b"\xff" * 100])
def test_rubbish_is_refused(tmp_path: Path, name: str, content: bytes) -> None:
    """Bytes of any kind under any name are refused by one line."""
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name}: (not weights as|refused)") as caught:
        read_tensors(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_a_file_is_needed(tmp_path: Path) -> None:
    """A folder, a missing file and an empty one are told apart."""
    (tmp_path / "empty").touch()
    for name, message in {".": "is a folder", "missing": "no such file", "empty": "0 bytes"}.items():
        with pytest.raises(ValueError, match=message):
            regular_file(str(tmp_path / name))


def test_layers_are_counted_without_gaps() -> None:
    """The layers of a part are counted by their numbers; a missing one is said."""
    assert count(["downs.0.weight", "downs.1.conv.weight", "ups.0.weight", "downsize.7.weight"], "downs") == 2
    with pytest.raises(ValueError, match="downs: layers are missing"):
        count(["downs.0.weight", "downs.2.weight"], "downs")


def test_a_missing_extra_is_named() -> None:
    """Where a library is not installed, the line says how to install it."""
    with pytest.raises(ValueError, match=r"pip install 'upscaler-harness\[spandrel\]'"):
        required("no_such_library_anywhere", "spandrel")


def test_too_many_tensors_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The number of tensors is bounded."""
    monkeypatch.setattr(files, "MAX_TENSORS", 3)
    save_file({f"x{i}": torch.ones(1) for i in range(4)}, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match="4 tensors; 1 to 3"):
        read_tensors(tmp_path / "w.safetensors")
