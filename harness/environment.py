"""What a run was made on: machine, threads, packages and the state of the code."""

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "torchvision",
    "torchmetrics",
    "lpips",
    "ncnn",
    "numpy",
    "pandas",
    "grpcio",
    "protobuf",
    "fairlearn",
)


def describe() -> dict[str, Any]:
    """The environment as plain JSON data."""
    import psutil

    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 2**30, 1),
        "threads": os.environ.get("OMP_NUM_THREADS", os.cpu_count()),
        "packages": {name: _version(name) for name in PACKAGES},
        "git": _git(),
    }


def _cpu() -> str:
    path = Path("/proc/cpuinfo")
    if path.exists():
        for line in path.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "not installed"


def _git() -> dict[str, Any] | None:
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit = _run_git(root, "rev-parse", "HEAD")
        return {"commit": commit, "dirty": bool(_run_git(root, "status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _run_git(root: Path, *arguments: str) -> str:
    command = ["git", "-C", str(root), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
