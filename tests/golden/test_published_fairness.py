"""The fairness figures that Lasz et al. 2024 give for their own outputs come out of our measures."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.fairness_published import PUBLISHED, figures, read

DATA = Path(__file__).parents[2] / os.environ.get("HARNESS_DATA", "../shared/data") / "upsampled_published"

needs_published = pytest.mark.skipif(not DATA.is_dir(), reason="no published outputs: set HARNESS_DATA")


@needs_published
@pytest.mark.parametrize("name", PUBLISHED)
def test_figures_are_the_published_ones(name: str) -> None:
    """RDP and PR divergences agree to 3 decimals, hit rates and the share turned White to 0.006."""
    compared, _ = figures(*read(DATA / f"{name}.csv"))
    assert len(compared) == 12
    assert compared["agrees"].all(), compared.to_string()


@needs_published
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_valid_test_confirms_the_published_conclusion(name: str) -> None:
    """Homogeneity of the hit rates has p <= 5.4e-17, goodness of fit of PR p <= 7.1e-11."""
    _, p = figures(*read(DATA / f"{name}.csv"))
    assert (p["valid p"] <= [5.4e-17, 7.1e-11]).all()


def test_a_table_without_published_figures_is_refused(tmp_path: Path) -> None:
    """Another file costs one line that names those that can be compared, and exit status 2."""
    command = [sys.executable, "-m", "benchmarks.fairness_published", str(tmp_path / "other.csv")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "ddrm-unfairface, psp-fairface" in done.stderr
    assert done.stderr.count("\n") == 1
