"""Local backends: child processes on a free port, handed over by a file, their logs kept, ended with us."""

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

import psutil

from harness.errors import Unavailable, one_line

START_SECONDS = 600.0
"""How long a backend may take to load; one that compiles its network takes minutes."""


class LocalServer:
    """One of the product's backends in a process of its own; `address` is set once it serves.

    The child watches the pipe to its stdin and ends when we do, however we do.
    """

    def __init__(self, name: str, log: Path, settings: Mapping[str, str] | None = None) -> None:
        self.name, self.log = name, log
        self.settings = [f"--set={key}={value}" for key, value in (settings or {}).items()]
        self.address = ""
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Start (or restart) the process; returns the seconds until it served.

        Raises:
            Unavailable: it ended or did not get ready, and the message quotes the last line of its log; or the
                system would not start it or keep its log.
        """
        self.stop()
        started = time.perf_counter()
        try:
            self.address = self._launch()
        except OSError as error:
            self.stop()
            raise Unavailable(f"{self.name} cannot be started: {one_line(str(error))}") from error
        return time.perf_counter() - started

    def _launch(self) -> str:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as folder, self.log.open("ab") as log:
            handshake = Path(folder) / "address"
            self.process = subprocess.Popen(
                [
                    sys.executable,
                    "-P",
                    "-m",
                    "backends.serve",
                    self.name,
                    "--handshake",
                    str(handshake),
                    *self.settings,
                ],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
            return self._wait(handshake)

    def _wait(self, handshake: Path) -> str:
        process = self._process()
        deadline = time.monotonic() + START_SECONDS
        while not handshake.exists():
            if process.poll() is not None:
                self.stop()
                raise Unavailable(f"{self.name} ended while starting: {self._last_line()}; its log is {self.log}")
            if time.monotonic() > deadline:
                self.stop()
                late = f"{self.name} was not ready after {START_SECONDS:g} s"
                raise Unavailable(f"{late}: {self._last_line()}; its log is {self.log}")
            time.sleep(0.02)
        return handshake.read_text()

    def _last_line(self) -> str:
        lines = self.log.read_text(errors="replace").strip().splitlines()
        return one_line(lines[-1]) if lines else "no output"

    def _process(self) -> subprocess.Popen[bytes]:
        if self.process is None:
            raise Unavailable(f"{self.name} is not running")
        return self.process

    def alive(self) -> bool:
        """True while the process runs."""
        return self.process is not None and self.process.poll() is None

    def forget_peak_memory(self) -> bool:
        """Let `peak_memory_mb` count from now on; False where the system cannot (only Linux can)."""
        try:
            Path(f"/proc/{self._process().pid}/clear_refs").write_text("5")
        except OSError:
            return False
        return True

    def peak_memory_mb(self) -> float:
        """Largest resident size of the process so far, in MiB (the current one where the system keeps no peak)."""
        process = self._process()
        status = Path(f"/proc/{process.pid}/status")
        if status.exists():
            for line in status.read_text().splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) / 1024
        return float(psutil.Process(process.pid).memory_info().rss) / 2**20

    def stop(self) -> None:
        """End the process: politely, then for good."""
        if self.process is None:
            return
        if self.process.stdin is not None:
            self.process.stdin.close()
        self.process.terminate()
        try:
            self.process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.process = None

    def kill(self) -> None:
        """End a process that hangs, at once."""
        if self.process is not None:
            self.process.kill()
        self.stop()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
