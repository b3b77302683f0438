"""What a timed pass uses: processor time, energy, memory, and how much others used the machine meanwhile."""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from harness.processes import LocalServer

CLOCK_ERROR = 0.05
"""Seconds by which the system's processor clocks may be off: they count in ticks of 10 ms for each core and process."""

POWERCAP = Path("/sys/class/powercap")
"""Where Linux shows the energy counters of Intel and AMD processors (RAPL)."""


@dataclass(frozen=True)
class Usage:
    """What a pass used; NaN is not known, as for a backend that we did not start.

    `cpu_s` is processor time of the backend's process in seconds, `package_j` the energy of all processor packages in
    joules, whoever used them; `peak_memory_mb` is in MiB, of this pass alone unless `since_start`; `other_load` is the
    processor time, in cores, that others used.
    """

    wall_s: float
    cpu_s: float
    package_j: float
    peak_memory_mb: float
    since_start: bool
    other_load: float


class Meter:
    """Starts when it is made; `read` says what was used since. `servers` are the backend's processes, if all are ours.

    The peak memory of several is the sum of theirs, which they need not reach at one moment.
    """

    def __init__(self, servers: Sequence[LocalServer]) -> None:
        self.servers = servers
        self.fresh = bool(servers) and all(server.forget_peak_memory() for server in servers)
        self.started, self.busy, self.joules = time.perf_counter(), _busy_seconds(), package_joules()
        self.backend, self.harness = self._backend_seconds(), _seconds_of(psutil.Process())

    def read(self) -> Usage:
        """What was used since the start."""
        wall = time.perf_counter() - self.started
        backend = self._backend_seconds() - self.backend
        own = backend + _seconds_of(psutil.Process()) - self.harness
        others = _busy_seconds() - self.busy - own
        joules = package_joules() - self.joules
        return Usage(
            wall_s=wall,
            cpu_s=backend,
            package_j=joules if joules >= 0 else math.nan,  # the counters start again from 0 now and then
            peak_memory_mb=sum(s.peak_memory_mb() for s in self.servers) if self.servers else math.nan,
            since_start=not self.fresh,
            other_load=math.nan if math.isnan(others) else max(0.0, others - CLOCK_ERROR) / wall,
        )

    def _backend_seconds(self) -> float:
        processes = [server.process for server in self.servers if server.process is not None]
        if not processes or len(processes) < len(self.servers):
            return math.nan
        return sum(_seconds_of(psutil.Process(process.pid)) for process in processes)


def package_joules() -> float:
    """The energy counters of all processor packages together, in joules; NaN where the system does not show them."""
    try:
        packages = [d for d in POWERCAP.glob("intel-rapl:*") if (d / "name").read_text().startswith("package")]
        return sum(int((d / "energy_uj").read_text()) for d in packages) / 1e6 if packages else math.nan
    except (OSError, ValueError):
        return math.nan


def _seconds_of(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    idle = times.idle + getattr(times, "iowait", 0.0) + getattr(times, "guest", 0.0)
    return float(sum(times) - idle)
