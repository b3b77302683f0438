"""Model cards: metadata that Hugging Face reads, figures of the tables, and nothing that the run does not say."""

import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

PARTS = (
    *("Model details", "Intended use", "Factors", "Metrics", "Evaluation data", "Training data"),
    *("Quantitative analyses", "Ethical considerations", "Caveats and recommendations"),
)
"""The parts of Mitchell et al. 2019, in their order."""
BOTH = pytest.mark.parametrize("hostile", [False, True])


def card(folder: Path, *, hostile: bool = False) -> tuple[dict[str, Any], str]:
    """The metadata and the text of the card of realesrgan, or of the hostile backend."""
    files = folder.glob("documents/model-card-*.md")
    (path,) = [path for path in files if (path.stem != "model-card-realesrgan") == hostile]
    found = re.fullmatch(r"---\n(.*?)\n---\n(.*)", path.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return yaml.safe_load(found[1]), found[2]


def part(text: str, title: str) -> str:
    """One part of a card."""
    return re.split(r"\n## ", text[text.index(f"\n## {title}\n") + 1 :])[0]


@BOTH
def test_the_metadata_are_what_the_hub_documents(hostile: bool, judged_run: Path) -> None:  # noqa: FBT001 - a parameter
    """A result has a task, a dataset with type and name, and metrics with type and a finite value; texts stay texts."""
    metadata, text = card(judged_run, hostile=hostile)
    (model,) = metadata["model-index"]
    (result,) = model["results"]
    assert text.startswith(f"\n# Model card: {'---' if hostile else 'realesrgan'}")
    assert ("<script>" in model["name"], "license_name" in metadata) == (hostile, hostile)
    assert re.fullmatch(r"[a-z0-9.-]+", metadata.get("license_name", "x") + result["dataset"]["type"])
    assert result["task"]["type"] == metadata["pipeline_tag"] == "image-to-image"
    assert {"type", "name"} <= result["dataset"].keys()
    assert {metric["type"] for metric in result["metrics"]} >= {"psnr", "lpips_alex", "kid_alexnet"}
    assert all(isinstance(m["value"], float) and math.isfinite(m["value"]) for m in result["metrics"])


@BOTH
def test_the_hubs_own_reader_takes_every_figure(hostile: bool, judged_run: Path) -> None:  # noqa: FBT001 - a parameter
    """Its library reads as many results as the card states, under the same name."""
    hub = pytest.importorskip("huggingface_hub")
    metadata, _ = card(judged_run, hostile=hostile)
    (model,) = metadata["model-index"]
    data = hub.ModelCardData(**metadata)
    assert (data.model_name, len(data.eval_results)) == (model["name"], len(model["results"][0]["metrics"]))


def test_figures_are_those_of_the_tables(judged_run: Path) -> None:
    """The mean, its interval and n of a metric stand in the metadata, and each group's in the text."""
    metadata, text = card(judged_run)
    summary = pd.read_parquet(judged_run / "tables" / "summary.parquet")
    row = summary[(summary["backend"] == "realesrgan") & (summary["metric"] == "lpips_alex")].iloc[0]
    metrics = {m["type"]: m for m in metadata["model-index"][0]["results"][0]["metrics"]}
    assert metrics["lpips_alex"]["value"] == pytest.approx(row["mean"])
    assert f"95 % interval {row['low']:.4g} to {row['high']:.4g}, n = {row['n']}" in metrics["lpips_alex"]["name"]
    groups = pd.read_parquet(judged_run / "tables" / "groups.parquet")
    groups = groups[(groups["backend"] == "realesrgan") & (groups["metric"] == "lpips_alex") & groups["mean"].notna()]
    for _, group in groups.iterrows():
        assert f"{group['mean']:.4g} [{group['low']:.4g}, {group['high']:.4g}]" in part(text, "Quantitative analyses")


def test_what_the_run_does_not_say_is_not_stated(judged_run: Path) -> None:
    """All parts are there in order; training data, users and harms are called not stated."""
    _, text = card(judged_run)
    assert re.findall(r"^## (.+)$", text, re.MULTILINE) == list(PARTS)
    assert part(text, "Training data").strip().endswith("not stated")
    assert "**Intended users:** not stated" in part(text, "Intended use")
    assert "**Risks, harms and their mitigation:** not stated" in part(text, "Ethical considerations")
    assert "Verdict: does not ship." in part(text, "Caveats and recommendations")


def test_hostile_text_is_inert_in_cards(judged_run: Path) -> None:
    """No markup, link or table break of a backend survives in the text."""
    _, text = card(judged_run, hostile=True)
    assert "&lt;script&gt;" in text
    for mark in ("<", "](", "://"):
        assert mark not in text
