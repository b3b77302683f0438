"""Makes the Python stubs from the contract, or says which committed stubs are out of date.

python -m protos.generate            exit 1 if a committed stub is not what the contract gives
python -m protos.generate --write    write the stubs
"""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "protos/upscaler/v1"


def generate(root: Path, target: Path) -> None:
    """Write the stubs of the contract in the repository `root` under `target`, in the folder of the package.

    Raises:
        ValueError: the contract does not compile; the message is the compiler's.
    """
    sources = [path.relative_to(root).as_posix() for path in sorted((root / PACKAGE).glob("*.proto"))]
    # The mapping "package=folder" makes the stubs import each other as `protos.upscaler.v1`.
    outputs = [f"--{kind}_out={target}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{PACKAGE}={PACKAGE}", *outputs, *sources]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=False)
    if done.returncode:
        raise ValueError(done.stderr.strip())


def stale(root: Path) -> list[str]:
    """Names of committed stubs that are missing, left over, or not what the contract gives."""
    with TemporaryDirectory() as folder:
        generate(root, Path(folder))
        fresh, committed = _stubs(Path(folder)), _stubs(root)
    return sorted(name for name in fresh.keys() | committed.keys() if fresh.get(name) != committed.get(name))


def _stubs(root: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (root / PACKAGE).glob("*_pb2*.py*")}


def main() -> str | None:
    """Run the command line; returns what is wrong, if anything."""
    try:
        if "--write" in sys.argv[1:]:
            generate(ROOT, ROOT)
        names = stale(ROOT)
    except ValueError as error:
        return str(error)
    return f"{PACKAGE}: out of date: {', '.join(names)}; run `make stubs`" if names else None


if __name__ == "__main__":
    sys.exit(main())
