"""Meters: memory of the pass alone, energy counters where the system shows them, and nothing invented where not."""

import math
from pathlib import Path

import numpy as np
import pytest

from harness import meters
from harness.client import Client, Item
from harness.meters import Meter, package_joules
from harness.processes import LocalServer


def counters(root: Path, **microjoules: int) -> Path:
    """A folder as Linux shows RAPL: one entry for each package or part, named by keyword."""
    for i, (name, value) in enumerate(microjoules.items()):
        folder = root / f"intel-rapl:{i}"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "name").write_text(f"{name}\n")
        (folder / "energy_uj").write_text(f"{value}\n")
    return root


def test_energy_is_that_of_all_packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Packages are added up, their parts are not; a pass has the difference, and none where a counter began again."""
    monkeypatch.setattr(meters, "POWERCAP", counters(tmp_path, package_0=3_000_000, package_1=500_000, core=2_000_000))
    assert package_joules() == pytest.approx(3.5)
    meter = Meter([])
    counters(tmp_path, package_0=5_000_000, package_1=500_000)
    assert meter.read().package_j == pytest.approx(2.0)
    counters(tmp_path, package_0=1, package_1=1)
    assert math.isnan(meter.read().package_j)


@pytest.mark.parametrize("content", [None, "no number"])
def test_energy_without_counters_is_unknown(
    content: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No counters, or unreadable ones, give NaN instead of an error."""
    monkeypatch.setattr(meters, "POWERCAP", counters(tmp_path, package_0=1))
    if content is None:
        (tmp_path / "intel-rapl:0" / "energy_uj").unlink()
    else:
        (tmp_path / "intel-rapl:0" / "energy_uj").write_text(content)
    assert math.isnan(package_joules())


def test_what_a_remote_backend_used_is_unknown() -> None:
    """Without a process of ours there is no load, processor time or memory to tell."""
    usage = Meter([]).read()
    assert math.isnan(usage.other_load)
    assert math.isnan(usage.cpu_s)
    assert math.isnan(usage.peak_memory_mb)
    assert usage.wall_s >= 0


def test_peak_memory_is_that_of_the_pass(tmp_path: Path) -> None:
    """A large request raises the peak of its own pass and not that of the next one."""
    with LocalServer("nearest", tmp_path / "log") as server:
        if not server.forget_peak_memory():
            pytest.skip("this system does not let a peak be forgotten")
        client = Client(server.address)
        client.wait_ready(10)
        client.describe()
        peaks = []
        for side in (1024, 8):
            meter = Meter([server])
            client.upscale([Item("a", np.zeros((side, side, 3), np.uint8), 0)], 4, {}, 60)
            usage = meter.read()
            assert not usage.since_start
            peaks.append(usage.peak_memory_mb)
        client.close()
    assert peaks[0] > peaks[1] + 40  # 48 MiB of output
