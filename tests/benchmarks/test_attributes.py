"""The accuracy of an attribute network per group: right figures with their intervals, nothing left out in silence."""

import math
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from benchmarks import attributes

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "black": (0, 0, 0)}
Run = Callable[..., int]


@pytest.fixture
def run(tmp_path: Path, write_graph: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the command on flat photos, given as (colour, race), with a network that takes red for white people."""

    def go(
        photos: list[tuple[str, str]], *options: str, labels: str = "[white, black, asian]", log: bool = False
    ) -> int:
        lines = ["file_name,race,gender,age"]
        for i, (colour, race) in enumerate(photos):
            Image.new("RGB", (72, 80), COLOURS[colour]).save(tmp_path / f"p{i}.png")
            lines.append(f"p{i}.png,{race},female,{40 + i}")
        (tmp_path / "metadata.csv").write_text("\n".join(lines))
        write_graph(tmp_path / "net.onnx", log=log)
        about = "path: net.onnx\nsize: 32\nmean: [0, 0, 0]\nstd: [1, 1, 1]\nfeatures: features\n"
        (tmp_path / "net.yaml").write_text(f"{about}attributes: {{race: {labels}, age: 45}}\n")
        command = ["attributes", f"folder:{tmp_path}", "--network", str(tmp_path / "net.yaml"), *options]
        monkeypatch.setattr(sys, "argv", command)
        return attributes.main()

    return go


def wilson(right: int, n: int) -> str:
    """The share with its interval, by the formula of Wilson (1927)."""
    p, z = right / n, 1.959964
    centre, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return f"{p:.3f} [{(centre - half) / (1 + z * z / n):.3f}, {(centre + half) / (1 + z * z / n):.3f}]"


def test_figures_are_right_per_group(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """Shares, Wilson intervals, errors of age and the confusion are those of the photos, for both sizes."""
    photos = [("red", "white")] * 3 + [("red", "black")] + [("green", "black")] * 3 + [("green", "")]
    assert run(photos) == 0
    text = capsys.readouterr().out
    assert text.count(f"| all | 8 | {wilson(6, 7)} | 2.2 [") == 2  # years 45, ages 40 to 47
    assert f"| black female | 4 | {wilson(3, 4)} | 1.0 [" in text
    assert "| black | 4 | 0.750 | 0.250 |" in text
    assert "| white | 3 | 0.000 | 1.000 |" in text
    assert "1 photos have no race label and count for no race." in text
    assert "ONNX net.onnx sha256" in text


def test_what_cannot_be_measured_is_said(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """A photo without a finite prediction counts as wrong and is named; other labels than the network's are named."""
    assert run([("red", "white"), ("black", "white")], log=True) == 0
    text = capsys.readouterr().out
    assert wilson(1, 2) not in text
    assert "photos got no finite prediction, which counts as wrong: p0, p1." in text
    assert run([("red", "white"), ("red", "other")]) == 0
    assert "does not tell the race labels of this dataset apart: other, white." in capsys.readouterr().out


def test_the_card_keeps_its_text(run: Run, tmp_path: Path) -> None:
    """The figures stand under their heading of the card, once, and what is around them stays."""
    card = tmp_path / "card.md"
    card.write_text("# A network\n\n## Measured\n\nOld.\n\n## Licence\n\nResearch only.\n")
    for _ in range(2):
        assert run([("red", "white")] * 2, "--card", str(card)) == 0
    text = card.read_text()
    assert text.startswith("# A network\n\n## Measured\n\n`python -m benchmarks.attributes")
    assert text.endswith("\n\n## Licence\n\nResearch only.\n")
    assert "Old." not in text
    assert text.count("## Measured\n") == text.count("| all | 2 |") / 2 == 1


def test_bad_input_is_one_line(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    """A network that does not fit its labels ends with one line and status 2."""
    assert run([("red", "white")], labels="[white, black]") == 2
    error = capsys.readouterr().err
    assert "the network has 4 outputs, its attributes name 3" in error
    assert error.count("\n") == 1
