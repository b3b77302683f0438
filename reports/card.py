"""A model card of one judged backend: Hugging Face's metadata with `model-index`, then the parts of a model card.

The parts are those of Mitchell et al., "Model Cards for Model Reporting", 2019. All of it comes from the run; what the
run does not say is "not stated".
"""

import math
import re
from collections.abc import Iterator
from typing import Any

import pandas as pd
import yaml

from harness.errors import one_line
from harness.judge import PASSED, STATUSES, Verdict
from reports.findings import findings
from reports.load import Run
from reports.markdown import escape, table
from reports.parts import Table
from reports.readiness import ANSWERS
from reports.sections import input_sizes
from reports.stored import ACCURACY, COST, OTHER, of_backends, options, stored

NOT_STATED = "not stated"
LICENCES = {"apache-2.0", "mit", "bsd-2-clause", "bsd-3-clause", "gpl-3.0", "agpl-3.0", "cc0-1.0", "cc-by-4.0"}
"""Licences that Hugging Face knows by these names; others are "other", with their text."""
TASK = {"type": "image-to-image", "name": "Image super-resolution"}
DIGITS = 6


def text(run: Run, verdict: Verdict) -> str:
    """The whole card as Markdown; texts of the run are escaped."""
    label = verdict.label
    about = run.backends.get(label, verdict.backend)
    blocks = [_front_matter(run, label, about), f"# Model card: {escape(label)}", _origin(run)]
    for title, part in (
        ("Model details", [_facts(_details(about))]),
        ("Intended use", [_facts(_use(about))]),
        ("Factors", [_facts(_factors(run, label))]),
        ("Metrics", list(_metrics(run))),
        ("Evaluation data", [_facts(_evaluation(run))]),
        ("Training data", [_facts({"Data, their licence and how they were prepared": None})]),
        ("Quantitative analyses", list(_analyses(run, label))),
        ("Ethical considerations", list(_ethics(run, label))),
        ("Caveats and recommendations", list(_caveats(run, verdict))),
    ):
        blocks += [f"## {title}", *part]
    return "\n\n".join(blocks) + "\n"


def _origin(run: Run) -> str:
    record = run.record
    return escape(
        f"Written by harness {record.get('harness_version')} from the tables of run {run.folder.resolve().name}, "
        f"finished {record.get('finished')}. What the run does not say is “{NOT_STATED}”."
    )


def _facts(pairs: dict[str, Any]) -> str:
    return "\n".join(
        f"- **{escape(key)}:** {NOT_STATED if value in (None, '') else escape(str(value))}"
        for key, value in pairs.items()
    )


# Metadata


def _front_matter(run: Run, label: str, about: dict[str, Any]) -> str:
    metadata: dict[str, Any] = {**_licence(about), "pipeline_tag": TASK["type"], "tags": ["super-resolution"]}
    metrics = list(_results(run, label))
    if metrics:
        data = run.record["dataset"]
        name = str(data.get("name") or NOT_STATED)
        dataset = {"type": _identifier(name), "name": name, "revision": str(data.get("sha256") or NOT_STATED)}
        results = [{"task": TASK, "dataset": dataset, "metrics": metrics}]
        metadata["model-index"] = [{"name": label, "results": results}]
    lines = yaml.dump(metadata, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=math.inf)
    return f"---\n{lines}---"


class _Dumper(yaml.SafeDumper):
    """Writes everything out: other readers of front matter know no aliases."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ANN401, ARG002 - as the base class has it
        return True


def _licence(about: dict[str, Any]) -> dict[str, str]:
    stated = str(about.get("licence") or "")
    if stated.lower() in LICENCES:
        return {"license": stated.lower()}
    return {"license": "other", "license_name": _identifier(stated or NOT_STATED)}


def _identifier(name: str) -> str:
    """A text as the Hub takes identifiers; its words stand in the card."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-.")[:96] or "unnamed"


def _results(run: Run, label: str) -> Iterator[dict[str, Any]]:
    """The metrics of clean outputs and of sets; infinite and missing ones are none that YAML's readers agree on."""
    for name, column in (("summary", "mean"), ("sets", "value")):
        frame = run.table(name)
        for _, row in frame[frame["backend"] == label].iterrows():
            if math.isfinite(row[column]):
                yield {"type": row["metric"], "value": _rounded(row[column]), "name": _named(run, row)}


def _named(run: Run, row: "pd.Series[Any]") -> str:
    known = math.isfinite(row["low"]) and math.isfinite(row["high"])
    interval = f", 95 % interval {row['low']:.4g} to {row['high']:.4g}" if known else ""
    return f"{run.title(row['metric'])}{interval}, n = {row['n']}"


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")


# The parts of the card


def _details(about: dict[str, Any]) -> dict[str, Any]:
    return {
        "Name": about.get("name"),
        "Kind": about.get("family"),
        "Version (digest of code and weights)": about.get("digest"),
        "Options": options(about),
        "Device and precision": ", ".join(filter(None, (about.get("device"), about.get("precision")))),
        "Same bytes for the same request": _word(about.get("deterministic"), "claimed", "not claimed"),
        "Licence": about.get("licence"),
        "Developed by": None,
        "Paper, contact": None,
    }


def _word(fact: Any, yes: str, no: str) -> str | None:  # noqa: ANN401 - a JSON value
    return None if fact is None else yes if fact else no


def _use(about: dict[str, Any]) -> dict[str, Any]:
    least = about.get("domain_minimum") or 0
    return {
        "Made for, as it states itself": about.get("domain"),
        "Intended users": None,
        "Outside its domain": f"inputs under {least} pixels" if least > 1 else None,
        "Tested within its domain": _word(about.get("out_of_domain"), "no", "yes"),
    }


def _factors(run: Run, label: str) -> dict[str, Any]:
    groups, noise = run.table("groups"), run.table("noise")
    mine = groups[groups["backend"] == label].drop_duplicates(["attribute", "group"])
    named = {f"Groups by {a} (images)": ", ".join(f"{g} ({n})" for g, n in rows) for a, rows in _grouped(mine)}
    sigmas = ", ".join(f"{sigma:g}" for sigma in sorted(set(noise["sigma"])))
    return {
        **(named or {"Groups": "none: the data have no labels"}),
        "Input sizes": input_sizes(run.record["inputs"]),
        "Noise on the input, σ of full scale": sigmas or "not measured",
    }


def _grouped(frame: pd.DataFrame) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    for attribute, rows in frame.groupby("attribute", sort=False):
        yield str(attribute), list(zip(rows["group"], rows["n"], strict=True))


def _metrics(run: Run) -> Iterator[str]:
    yield "Means over images with 95 % bootstrap intervals; differences are paired on the same images."
    yield _facts({
        run.title(name): about.get("recipe") for name, about in {**run.measures, **run.record["set_metrics"]}.items()
    })  # fmt: skip


def _evaluation(run: Run) -> dict[str, Any]:
    data = run.record["dataset"]
    about = {"Dataset": data.get("name"), "Images": data.get("images"), "Licence": data.get("licence")}
    about |= {"SHA-256": data.get("sha256"), "Suite": run.record["suite"].get("name")}
    if data.get("demonstration"):
        about["Demonstration data"] = "yes: the figures are no evidence"
    return about | {f"Note {i}": note for i, note in enumerate(data.get("notes") or [], 1)}


def _analyses(run: Run, label: str) -> Iterator[str]:
    for title, tables in (
        ("All images", of_backends(run, ACCURACY, [label])),
        ("By group", _by_group(run, label)),
        ("Robustness and behaviour", of_backends(run, OTHER, [label])),
        ("Time and memory", of_backends(run, COST, [label])),
    ):
        blocks = [block for each in tables for block in table(each)]
        yield f"### {title}"
        yield from blocks or ["Not measured."]


def _by_group(run: Run, label: str) -> Iterator[Table]:
    """What differs between groups, in the headline metric and in what the suite claims."""
    claims = ((run.record["suite"].get("content") or {}).get("fairness") or {}).get("claims") or []
    wanted = {run.headline, *(claim.get("measure") for claim in claims)}
    for name in ("groups", "gaps", "contrasts"):
        frame = run.table(name)
        frame = frame[(frame["backend"] == label) & frame["metric"].isin(wanted)]
        if len(frame):
            yield stored(name, frame)
    yield from of_backends(run, ("excess_flips", "verification", "perceptual", "group_slopes"), [label])


def _ethics(run: Run, label: str) -> Iterator[str]:
    gaps = run.table("gaps")
    mine = gaps[gaps["backend"] == label]
    found = mine[mine["verdict"] == "disparity"]
    named = {f"{run.title(row['metric'])} by {row['attribute']}, worst {row['worst']}" for _, row in found.iterrows()}
    counts = ", ".join(f"{n} {verdict}" for verdict, n in mine["verdict"].value_counts().items())
    yield _facts({
        "Gaps between groups that were judged": counts or "none: not measured",
        "Disparities found": "; ".join(sorted(named)[:30]) or ("none" if len(mine) else "not measured"),
        "Origin of the group labels": None,
        "Risks, harms and their mitigation": None,
        "Licence of the evaluation data": run.record["dataset"].get("licence"),
    })  # fmt: skip


def _caveats(run: Run, verdict: Verdict) -> Iterator[str]:
    yield escape(f"Verdict: {ANSWERS[verdict.status]}.")
    worst_first = sorted(verdict.findings, key=lambda f: STATUSES.index(f.status))
    gates = [f"- {f.status}: {escape(f.gate.title)}" for f in worst_first if f.status != PASSED]
    yield "\n".join(gates) or "Every gate passed."
    others = tuple(f"{label}{end}" for label in run.labels if label != verdict.label for end in (" ", ":"))
    told = [f for f in findings(run) if f.warning and not f.text.startswith(others)]
    limits = [f"- **{escape(f.topic)}.** {escape(f.text)}" for f in told]
    yield "\n".join(["Limits of the run:", "", *limits]) if limits else "The run names no limits."
    yield "Not measured: " + (
        escape(one_line(", ".join(run.missing), 1000)) or "nothing that the harness has tables for."
    )
