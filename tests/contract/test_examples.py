"""The example backends of the guide keep the contract, in environments where our packages are not."""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness.contract import check_address

ROOT = Path(os.environ.get("HARNESS_SOURCE", Path(__file__).resolve().parents[2]))
EXAMPLES, PREPARED = ROOT / "docs/examples", ROOT / ".nox"


def prepared(name: str) -> Path:
    """The environment of an example."""
    folder = PREPARED / name
    if not (folder / ".installed").exists():
        pytest.skip(f"needs {folder}, which `make test` prepares from a package registry")
    return folder


@contextmanager
def serving(command: list[str], cwd: Path, **env: str) -> Iterator[str]:
    """Run a server that prints its port; yields its address."""
    path = {"PATH": os.environ["PATH"]}
    with subprocess.Popen(command, cwd=cwd, env=path | env, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield f"127.0.0.1:{process.stdout.readline().split()[-1]}"
        finally:
            process.kill()


def test_the_python_example_keeps_the_contract(tmp_path: Path) -> None:
    """Under 100 lines and stubs made from the contract pass every check, where our packages cannot be imported."""
    python = str(prepared("example-python") / "bin/python")
    proto, out = "upscaler/v1/upscaler.proto", [f"--{kind}_out={tmp_path}" for kind in ("python", "grpc_python")]
    subprocess.run([sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", *out, proto], check=True)
    absent = "import importlib.util as u; assert not any(map(u.find_spec, ('harness', 'backends', 'protos')))"
    subprocess.run([python, "-c", absent], cwd=tmp_path, env={}, check=True)
    server = EXAMPLES / "python/server.py"
    assert len(server.read_text().splitlines()) < 100
    with serving([python, str(server), "127.0.0.1:0"], tmp_path, PYTHONPATH=str(tmp_path)) as address:
        assert [r for r in check_address(address) if not r.passed] == []


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_node_example_keeps_the_contract(tmp_path: Path) -> None:
    """A server in another language, which reads the contract when it starts, passes every check."""
    modules = prepared("example-node") / "node_modules"
    server = EXAMPLES / "node/server.js"
    assert len(server.read_text().splitlines()) < 100
    command = ["node", str(server), str(ROOT / "protos"), "127.0.0.1:0"]
    with serving(command, tmp_path, NODE_PATH=str(modules)) as address:
        assert [r for r in check_address(address) if not r.passed] == []
