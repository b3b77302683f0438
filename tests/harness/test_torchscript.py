"""TorchScript: networks give what they give in PyTorch, and a program that does more than compute is never loaded."""

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import mobilenet_v2

from harness import torchscript
from harness.errors import ConfigError
from harness.networks import VALUE, open_network

pytestmark = pytest.mark.filterwarnings("ignore:.torch.jit")


class Colours(torch.nn.Module):
    """Maps of colours, and their sum."""

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, 3, H, W) to themselves and (N, 1)."""
        if x.dim() != 4:
            raise ValueError("not a batch of images")
        return x, x.mean(dim=[2, 3]).sum(dim=1, keepdim=True)


def describe(folder: Path, module: torch.nn.Module, lines: str) -> str:
    """The path of a description of a module, saved as TorchScript."""
    torch.jit.save(module, folder / "net.pt")
    text = f"path: net.pt\nsize: 32\nresize: box\nmean: [0, 0, 0]\nstd: [1, 1, 1]\n{lines}\n"
    (folder / "net.yaml").write_text(text)
    open_network.cache_clear()
    return str(folder / "net.yaml")


def program(body: str, **members: bytes) -> bytes:
    """An archive of one class with this text in its body; `members` replace its files."""
    saved = io.BytesIO()
    torch.jit.save(torch.jit.script(Colours()), saved)
    changed = io.BytesIO()
    with zipfile.ZipFile(saved) as archive, zipfile.ZipFile(changed, "w", zipfile.ZIP_DEFLATED) as copy:
        for name in archive.namelist():
            short = name.partition("/")[2].removesuffix(".pkl")
            content = members.get(short, archive.read(name))
            copy.writestr(name, content + body.encode() if name.endswith(".py") else content)
    return changed.getvalue()


def refused(data: bytes) -> str:
    """What is said of a file that is refused: one line."""
    with pytest.raises(ConfigError) as caught:
        torchscript.load(data, "net.yaml")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_traced_network_gives_its_eager_features(tmp_path: Path) -> None:
    """A traced MobileNetV2 measures as the same module in PyTorch, its only output taken as features."""
    torch.manual_seed(0)
    model = mobilenet_v2(num_classes=8, width_mult=0.25).eval()
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), dtype=np.uint8)
    traced = torch.jit.trace(model, torch.zeros(1, 3, 32, 32))  # type: ignore[no-untyped-call]
    network = open_network("mine", describe(tmp_path, traced, "features: '0'"))
    with torch.inference_mode():
        expected = model(torch.from_numpy(images).permute(0, 3, 1, 2) / 255)
    assert network.features(images) == pytest.approx(expected.numpy(), abs=1e-5)
    assert network.recipe.startswith("TorchScript net.pt sha256")


def test_a_scripted_network_is_read_as_described(tmp_path: Path) -> None:
    """Of a tuple, `features` names one by its place, the others are read as attributes; a wrong place is said."""
    images = np.full((1, 32, 32, 3), 51, np.uint8)
    module = torch.jit.script(Colours())
    network = open_network("mine", describe(tmp_path, module, "features: '0'\nattributes: {light: 100}"))
    assert network.features(images) == pytest.approx(np.full((1, 3), 0.2))
    assert network.predictions(images)["light"][VALUE].to_numpy() == pytest.approx(60)
    with pytest.raises(ConfigError, match="there is no output '2'; there is 0, 1"):
        open_network("mine", describe(tmp_path, module, "features: '2'"))


def test_a_network_that_a_script_defined_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A class of `__main__`, as in a script or notebook, is a class of the program like any other."""
    monkeypatch.setattr(Colours, "__module__", "__main__")
    traced = torch.jit.trace(Colours(), torch.zeros(1, 3, 32, 32))  # type: ignore[no-untyped-call]
    network = open_network("net", describe(tmp_path, traced, 'features: "1"'))
    assert network.features(np.full((2, 32, 32, 3), 255, np.uint8)).tolist() == [[3.0], [3.0]]


def test_a_program_that_writes_files_is_not_loaded(tmp_path: Path) -> None:
    """PyTorch would run `torch.save` of a script; here it is refused by name, and no file is written."""

    class Writer(torch.nn.Module):
        def __init__(self, path: str) -> None:
            super().__init__()
            self.path = path

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            torch.save(x, self.path)
            return x

    written = tmp_path / "written"
    with pytest.raises(ConfigError, match=r"uses 'save', .*export the network as ONNX"):
        open_network("mine", describe(tmp_path, torch.jit.script(Writer(str(written))), "features: '0'"))
    assert not written.exists()
    torch.jit.load(tmp_path / "net.pt")(torch.zeros(1))  # type: ignore[no-untyped-call]
    assert written.exists()


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ("\n  def __setstate__(self, state: Tensor) -> NoneType:\n    return None\n", "__setstate__"),
        ("\n  def f(self, x: Tensor) -> NoneType:\n    return (x). \\\n save('f')\n", "save"),
        ("\n  def f(self, x: Tensor) -> NoneType:\n    return getattr(x, 's\\141ve')('f')\n", "getattr"),
        ('\n  def f(self, x: Tensor) -> NoneType:\n    return getattr(x, "sa" "ve")(\'f\')\n', "getattr"),
        ("\n  a : __torch__.torch.classes.any.Thing\n", "classes"),
        ("\n  def f(self, x: Tensor) -> Tensor:\n    return torch.from_file('f', True, 9)\n", "from_file"),
    ],
)
def test_no_spelling_gets_past(body: str, named: str) -> None:
    """What runs on loading, and operators that are not listed, are refused in every spelling that PyTorch knows."""
    assert f"uses {named!r}" in refused(program(body))


def test_pickles_name_only_tensors_and_the_program() -> None:
    """A pickle in the archive that names a function is refused with the function's name."""
    assert "uses 'builtins exec'" in refused(
        program("", data=pickle.dumps(exec, protocol=2).replace(b"__builtin__", b"builtins"))
    )
    assert "uses" in refused(program("", constants=pickle.dumps(exec, protocol=4)))


def test_damaged_and_huge_archives_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Archives cut short, with damaged members, or that unpack to far more than they weigh are refused."""
    whole = program("")
    assert "damaged" in refused(whole[:-40])
    assert "damaged" in refused(program("", data=b"no pickle"))
    assert "not TorchScript that can be loaded" in refused(program("\n  not a program"))
    monkeypatch.setattr(torchscript, "MAX_TEXT_BYTES", 10_000)
    assert "unpacks to more" in refused(program(" " * 10_000))
