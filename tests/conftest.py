"""Fixtures that several packages' tests share: the data folder, servers in real processes, small photo folders."""

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from harness.client import Client
from harness.processes import LocalServer


@pytest.fixture(autouse=True, scope="session")
def interruptible() -> Iterator[None]:
    """Processes that tests start can be interrupted, also where the tests run in the background of a shell."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The folder of real photos; tests that need it are skipped where it is absent."""
    root = Path(os.environ.get("HARNESS_DATA", "../shared/data"))
    if not (root / "utkface").is_dir():
        pytest.skip(f"needs the data folder ({root}); set HARNESS_DATA")
    return root


@pytest.fixture(scope="session")
def serve(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Client]]:
    """Clients of backends served in processes of their own, each started once a session."""
    clients: dict[str, Client] = {}
    with ExitStack() as stack:

        def get(name: str) -> Client:
            if name not in clients:
                server = stack.enter_context(LocalServer(name, tmp_path_factory.mktemp("logs") / name))
                clients[name] = Client(server.address)
                stack.callback(clients[name].close)
                clients[name].wait_ready(10)
                clients[name].describe()
            return clients[name]

        yield get


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of 70 small pictures with a metadata.csv: two races, two genders, one label missing."""
    folder = tmp_path / "photos"
    folder.mkdir()
    rng = np.random.default_rng(3)
    lines = ["file_name,race,gender,age"]
    for i in range(70):
        coarse = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((48, 48), Image.Resampling.BICUBIC).save(folder / f"p{i:02d}.png")
        race = "" if i == 69 else ("black" if i % 2 else "white")
        lines.append(f"p{i:02d}.png,{race},{'male' if i % 4 < 2 else 'female'},{20 + i % 30}")
    (folder / "metadata.csv").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture
def suite_file(tmp_path: Path) -> Callable[..., Path]:
    """Writes a small suite without LPIPS, so that a run takes seconds; keyword arguments add or replace lines."""

    def write(**lines: str) -> Path:
        settings = {"name": "small", "title": "A small suite", "low": "12", "high": "48", "metrics": "[psnr, lr_mse]"}
        settings |= {"batch": "8", "deadline_s": "20"} | lines
        path = tmp_path / "small.yaml"
        path.write_text("".join(f"{key}: {value}\n" for key, value in settings.items()))
        return path

    return write


@pytest.fixture
def write_graph() -> Callable[..., Path]:
    """Writes an ONNX graph: its output "features" is the mean colour, "scores" are it and its sum."""
    from onnx import TensorProto, helper, numpy_helper, save

    def write(path: Path, *, batch: int | str = 1, log: bool = False) -> Path:
        weight = np.concatenate([np.eye(3), np.ones((3, 1))], axis=1).astype(np.float32)
        nodes = [
            helper.make_node("GlobalAveragePool", ["x"], ["pooled"]),
            helper.make_node("Log" if log else "Identity", ["pooled"], ["features"]),
            helper.make_node("Flatten", ["features"], ["flat"]),
            helper.make_node("MatMul", ["flat", "weight"], ["scores"]),
        ]
        entry = helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 32, 32])
        outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("features", "scores")]
        graph = helper.make_graph(nodes, "colours", [entry], outputs, [numpy_helper.from_array(weight, "weight")])
        save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)
        return path

    return write
