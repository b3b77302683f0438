"""The comparison with published scores: matched by file stem, honest about what is missing."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.published import compare
from harness.errors import ConfigError
from harness.scores import Scores
from harness.store import RunFolder

METRICS = ("lpips_alex", "sharpness")


@pytest.fixture
def scores(tmp_path: Path) -> Scores:
    """A run in which `gan` has 0.1, 0.2 ... 0.5 in each metric for the images a to e."""
    folder = RunFolder(tmp_path)
    gan = {"label": "gan", "digest": "d", "options": {}, "device": "", "precision": ""}
    about = {"title": "", "unit": "", "higher_is_better": False, "recipe": ""}
    record = {"schema": 1, "suite": {}, "dataset": {}, "backends": [gan], "metrics": dict.fromkeys(METRICS, about)}
    folder.write_record(record)
    folder.write_table("images", pd.DataFrame({"image": list("abcde"), "seed": 0, "error": ""}))
    row = {"backend": "gan", "digest": "d", "options": "{}", "condition": "clean"}
    values = zip("abcde", np.arange(1, 6) / 10, strict=True)
    folder.append([row | {"metric": m, "image": image, "value": v} for image, v in values for m in METRICS])
    return Scores.of(folder)


def test_scores_are_matched_by_name(scores: Scores, tmp_path: Path) -> None:
    """Rows in any order and with other images are matched by file stem; blur is minus sharpness."""
    table = pd.DataFrame({"file": ["val/e.jpg", "val/a.png", "val/c.jpg", "val/z.jpg"], "lpips": [0.5, 0.1, 0.4, 9.0]})
    table.assign(blur=[-0.5, -0.1, -0.3, 0.0]).to_csv(tmp_path / "theirs.csv")
    found = compare(scores, "gan", tmp_path / "theirs.csv").set_index("metric")
    assert found["n"].tolist() == [3, 3]
    assert found.loc["sharpness", "correlation"] == pytest.approx(1)
    assert found.loc["lpips_alex", "correlation"] == pytest.approx(np.corrcoef([5, 1, 3], [5, 1, 4])[0, 1])
    assert found["largest difference"].tolist() == pytest.approx([0.1, 0])


def test_what_cannot_be_compared_is_one_line(scores: Scores, tmp_path: Path) -> None:
    """A backend that the run lacks and a table without the authors' columns are named."""
    (tmp_path / "theirs.csv").write_text("file,lpips\na.jpg,0.1\n")
    with pytest.raises(ConfigError, match="no backend 'gam'; it has gan"):
        compare(scores, "gam", tmp_path / "theirs.csv")
    with pytest.raises(ConfigError, match=r"theirs\.csv: .*blur"):
        compare(scores, "gan", tmp_path / "theirs.csv")
