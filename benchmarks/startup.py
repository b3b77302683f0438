"""How fast the command line answers: `python -m benchmarks.startup`.

Times `harness --help` as a whole process (best and median of 11 runs), and lists heavy packages it imported.
"""

import statistics
import subprocess
import sys
import time

HEAVY = ("torch", "torchvision", "pandas", "pyarrow", "scipy", "lpips", "altair", "fairlearn")
RUNS = 11


def main() -> int:
    """Print the figures; returns 1 if something heavy is imported or the median is 0.3 s or more."""
    command = [sys.executable, "-m", "harness", "--help"]
    seconds = []
    for _ in range(RUNS):
        started = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - started)
    trace = subprocess.run(
        [sys.executable, "-X", "importtime", *command[1:]], check=True, capture_output=True, text=True
    )
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in trace.stderr.splitlines()}
    heavy = sorted(imported & set(HEAVY))
    median = statistics.median(seconds)
    print(f"harness --help: median {median:.3f} s, best {min(seconds):.3f} s of {RUNS} runs")
    print(f"heavy packages imported: {', '.join(heavy) or 'none'}")
    return int(bool(heavy) or median >= 0.3)


if __name__ == "__main__":
    sys.exit(main())
