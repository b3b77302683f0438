"""Kills a run in its middle and finishes it: `python -m benchmarks.resume DATASET [IMAGES]`.

Starts `harness run` with SR3 over IMAGES images (default 500), sends SIGKILL to the backend at a third of the
outputs and to the harness at two thirds, starts the same command again, and checks that every row is present once,
that no case failed, and that no output written before the kill was written again.
"""

import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
import psutil

SUITE = """name: resume
title: Killed and continued
low: 16
high: 64
metrics: [psnr, lr_mse]
batch: 16
"""
KEY = ["backend", "digest", "options", "condition", "severity", "image", "sample", "stage", "metric"]


def outputs(run: Path) -> dict[Path, int]:
    """Files of SR3's outputs and when they were written."""
    return {p: p.stat().st_mtime_ns for p in run.glob("outputs/sr3-*/clean/*.png")}


def wait_for(run: Path, count: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until so many outputs are there.

    Raises:
        RuntimeError: the run ended before.
    """
    while len(outputs(run)) < count:
        if process.poll() is not None:
            raise RuntimeError(f"the run ended with status {process.returncode} before {count} outputs were there")
        time.sleep(0.05)


def interrupted(command: list[str], run: Path, images: int) -> dict[Path, int]:
    """Start the command, kill its backend and then itself; returns the outputs that were there at the end."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    wait_for(run, images // 3, process)
    children = psutil.Process(process.pid).children(recursive=True)
    next(child for child in children if "sr3" in child.cmdline()).send_signal(signal.SIGKILL)
    wait_for(run, 2 * images // 3, process)
    process.kill()
    process.wait()
    return outputs(run)


def main() -> int:
    """Run the check; returns the exit status."""
    if len(sys.argv) not in (2, 3):
        print("usage: python -m benchmarks.resume KIND:PATH[#SPLIT] [IMAGES]", file=sys.stderr)
        return 2
    images = int(sys.argv[2]) if len(sys.argv) == 3 else 500
    with tempfile.TemporaryDirectory() as folder:
        run, suite = Path(folder) / "run", Path(folder) / "resume.yaml"
        suite.write_text(SUITE)
        command = [sys.executable, "-m", "harness", "run", str(suite), "--dataset", sys.argv[1], "--backend", "sr3"]
        command += ["--limit", str(images), "--output", str(run)]
        before = interrupted(command, run, images)
        status = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
        rows = pd.concat([pd.read_parquet(p) for p in run.glob("rows/*.parquet")])
        twice = int(rows.duplicated(KEY).sum())
        scored = rows[rows["metric"] == "psnr"].groupby("backend")["image"].nunique().to_dict()
        again = sum(outputs(run)[p] != written for p, written in before.items())
    print(f"{len(before)} outputs of sr3 when the harness was killed; exit status of the same command: {status}")
    print(f"images scored: {scored}; rows twice: {twice}; outputs written again: {again}")
    return int(status != 0 or twice > 0 or again > 0 or set(scored.values()) != {images})


if __name__ == "__main__":
    sys.exit(main())
