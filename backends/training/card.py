"""Weights and model card of a finished training: `python -m backends.training.card CONFIG [RUN]`.

The card's figures come from the training log and, if a run folder of the harness is given, from its tables.
"""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file

from backends.training.config import ConfigError, TrainingConfig, load_config

WEIGHTS = Path("backends/weights")
TEXTS = Path(__file__).parent / "cards"


def export(config: TrainingConfig, metadata: dict[str, str]) -> Path:
    """Write the averaged weights of the last checkpoint as fp16 safetensors; returns the path."""
    tensors = load_file(Path("runs/training") / config.name / "checkpoint.safetensors")
    average = {k.removeprefix("average."): v.half() for k, v in tensors.items() if k.startswith("average.")}
    sizes = {**config.network.model_dump(), "c_in": 6 if config.task == "sr3" else 3}
    if config.task == "portraits":
        sizes["labels"] = 9
    WEIGHTS.mkdir(exist_ok=True)
    path = WEIGHTS / f"{config.name}.safetensors"
    partial = path.with_suffix(".part")
    save_file({k: v.contiguous() for k, v in average.items()}, partial, {**metadata, "network": json.dumps(sizes)})
    partial.rename(path)
    return path


def write_card(config: TrainingConfig, run: Path | None) -> Path:
    """Write the model card from its text, the training log and a run's tables; returns the path."""
    log = [json.loads(line) for line in (Path("runs/training") / config.name / "log.jsonl").read_text().splitlines()]
    weights = WEIGHTS / f"{config.name}.safetensors"
    parts = [(TEXTS / f"{config.name}.md").read_text(), "## Training\n", _training(config, log, weights)]
    if run is not None:
        parts += ["\n## Measured\n", _measured(run)]
    path = WEIGHTS / f"{config.name}.md"
    path.write_text("\n".join(parts))
    return path


def _training(config: TrainingConfig, log: list[dict[str, float]], weights: Path) -> str:
    last = log[-1]
    parameters = sum(t.numel() for t in load_file(weights).values())
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"],  # noqa: S607 - git is found on the path
        capture_output=True,
        text=True,
        check=False,
    ).stdout.strip()
    rows = [
        ("command", f"`python -m backends.training backends/training/configs/{config.name}.yaml`"),
        ("git revision of the code", commit or "unknown"),
        ("data", f"`{config.train}` (validation `{config.validation}`; the test split was not used)"),
        ("parameters", f"{parameters:,}, {weights.stat().st_size / 1e6:.1f} MB as fp16"),
        ("images seen", f"{int(last['images']):,} in {config.steps:,} steps of {config.batch}"),
        ("wall time", f"{last['hours']:.2f} h on {torch.get_num_threads()} CPU threads, other work running beside it"),
        ("loss on validation images", f"{last['validation_loss']:.4f}"),
    ]
    lines = ["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows)]
    steps = log[:: max(1, len(log) // 8)]
    curve = [f"| {int(r['images']):,} | {r['hours']:.2f} | {r['validation_loss']:.4f} |" for r in steps]
    lines += ["", "| images seen | hours | validation loss |", "| --- | --- | --- |", *curve]
    return "\n".join(lines) + "\n"


def _measured(run: Path) -> str:
    record = json.loads((run / "run.json").read_text())
    summary = pd.read_parquet(run / "tables" / "summary.parquet")
    lines = [f"`{record['command']}`: {record['dataset']['images']} images of `{record['dataset']['spec']}`.", ""]
    lines += ["| backend | metric | n | mean | 95 % interval |", "| --- | --- | --- | --- | --- |"]
    for row in summary.to_dict("records"):
        interval = f"{row['low']:.4g} to {row['high']:.4g}"
        lines.append(f"| {row['backend']} | {row['metric']} | {row['n']} | {row['mean']:.4g} | {interval} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the command line; returns the exit status."""
    if len(sys.argv) not in (2, 3):
        print("usage: python -m backends.training.card CONFIG.yaml [RUN]", file=sys.stderr)
        return 2
    try:
        config = load_config(Path(sys.argv[1]))
        print(write_card(config, Path(sys.argv[2]) if len(sys.argv) == 3 else None))
    except (ConfigError, FileNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
