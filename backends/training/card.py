"""Weights and model card of a finished training: `python -m backends.training.card CONFIG [RUN [BACKEND]]`.

The card's figures come from the log of the finished training, from a few steps of it, whose operations are counted and
which need its data, and, if a run folder of the harness is given, from its tables: those of BACKEND, as the run calls
it, by default the model's name without its sizes.
"""

import json
import math
import re
import subprocess
import sys
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from backends.biggan.networks import Generator
from backends.checkpoint import build
from backends.training.attributes import mobilenet
from backends.training.config import ConfigError, TrainingConfig, load_config
from backends.training.loop import LOG, read_log, read_metadata
from backends.training.operations import computation
from harness.datasets import LICENCES, UNKNOWN
from harness.errors import HarnessError, one_line
from harness.sampling import REAL

WEIGHTS = Path("backends/weights")
TEXTS = Path(__file__).parent / "cards"
WATTS_PER_CORE = 5
AGAIN = """\

## Trained again

The training above was before such figures were taken: they are of a second one by the same config, whose weights are
not those that are shipped. It took {time}; energy (estimate): {energy}.

"""


def weights_path(config: TrainingConfig) -> Path:
    """Where weights belong: upscalers with the backends, instruments with the harness, recipes with their run."""
    if config.recipe:
        return Path("runs/training") / config.name / f"{config.name}.safetensors"
    folder = Path("harness/data") if config.task == "attributes" else WEIGHTS
    return folder / f"{config.name}.safetensors"


def export(config: TrainingConfig, sizes: dict[str, object], metadata: dict[str, str]) -> Path:
    """Write the averaged weights of the last checkpoint as fp16 safetensors; returns the path."""
    tensors = load_file(Path("runs/training") / config.name / "checkpoint.safetensors")
    average = {k.removeprefix("average."): v for k, v in tensors.items() if k.startswith("average.")}
    halves = {k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in normalised(average).items()}
    path = weights_path(config)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".part")
    save_file(halves, partial, {**metadata, "network": json.dumps(sizes), "revision": _revision()})
    partial.rename(path)
    return path


def normalised(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights under spectral norm as what they amount to, W / (u' W v); the others as they are."""
    weights = dict(state)
    for name in [name for name in state if name.endswith(".parametrizations.weight.original")]:
        prefix = name.removesuffix("original")
        weight, u, v = weights.pop(name), weights.pop(f"{prefix}0._u"), weights.pop(f"{prefix}0._v")
        weights[prefix.replace("parametrizations.weight.", "weight")] = weight / (u @ weight.flatten(1) @ v)
    return weights


def write_card(config: TrainingConfig, run: Path | None, backend: str | None = None) -> Path:
    """Write the model card from its text, the training log and a run's tables of a backend; returns the path.

    A log `cards/NAME-again.jsonl`, of a second training by the same config, adds its learning curve.

    Raises:
        ConfigError: the training log is damaged or not that of the whole training, or the run has no such backend.
        DatasetError: the data set, on which a step's operations are counted, is not there.
        OSError: a file is missing or cannot be written.
    """
    log = _finished_log(config)
    weights = weights_path(config)
    text = (TEXTS / f"{config.name}.md").read_text(encoding="utf-8")
    parts = [text, "## Training\n", _training(config, log, weights)]
    second = TEXTS / f"{config.name}-again.jsonl"
    if second.exists():
        log = read_log(second)
        parts.append(AGAIN.format(time=_time(log[-1]), energy=_energy(log[-1])) + _curve(log))
    if run is not None:
        parts += [
            "\n## Measured\n",
            _measured(run, backend or config.name.removesuffix(f"-{config.low}-{config.high}")),
        ]
    path = weights.with_suffix(".md")
    path.write_text("\n".join(parts), encoding="utf-8")
    return path


def _finished_log(config: TrainingConfig) -> list[dict[str, float]]:
    path = Path("runs/training") / config.name / LOG
    log = read_log(path)
    if not log or (log[-1]["step"], log[-1].get("images")) != (config.steps, config.steps * config.batch):
        step = int(log[-1]["step"]) if log else 0
        wanted = f"{config.steps:,} steps of {config.batch}"
        raise ConfigError(f"{path}: at step {step:,}, not the log of {wanted}: finish the training first")
    return log


def _training(config: TrainingConfig, log: list[dict[str, float]], weights: Path) -> str:
    last = log[-1]
    parameters = sum(t.numel() for t in load_file(weights).values())
    rows = [
        ("command", f"`python -m backends.training backends/training/configs/{config.name}.yaml`"),
        *([("git revision of the training", trained)] if (trained := read_metadata(weights).get("revision")) else []),
        ("git revision when this card was written", _revision()),
        ("data", f"`{config.train}` (validation `{config.validation}`; the test split was not used)"),
        ("parameters", f"{parameters:,}, {weights.stat().st_size / 1e6:.1f} MB as fp16"),
        ("licence", f"that of the data ({LICENCES.get(re.split('[:#]', config.train)[0], UNKNOWN)})"),
        ("operations", _operations(config, weights)),
        ("computation", computation(config)),
        *([("begun with", f"the weights of {config.start}, where they fit")] if config.start else []),
        ("images seen", f"{int(last['images']):,} in {config.steps:,} steps of {config.batch}"),
        ("time", _time(last)),
        ("energy (estimate)", _energy(last)),
        ("loss on validation images", f"{last['validation_loss']:.4f}"),
        *_ending(log),
    ]
    return "\n".join(["| | |", "| --- | --- |", *(f"| {name} | {value} |" for name, value in rows), "", _curve(log)])


def _ending(log: list[dict[str, float]]) -> list[tuple[str, str]]:
    """What the last tenth of the steps changed, or a little more, as the log has it; nothing of a shorter log."""
    last, begun = log[-1], [row for row in log if row["step"] <= 0.9 * log[-1]["step"]]
    if not begun:
        return []
    names = [name for name in ("validation_loss", "lpips_alex", "kid_alexnet") if name in last and name in begun[-1]]
    changes = [f"{name.replace('_', ' ')} {begun[-1][name]:.4g} to {last[name]:.4g}" for name in names]
    return [("at the end", f"steps {int(begun[-1]['step']):,} to {int(last['step']):,}: {', '.join(changes)}")]


def _time(last: dict[str, float]) -> str:
    wall = f"{last['hours']:.2f} h by the clock, other work beside it"
    return f"{last['core_hours']:.2f} core-hours, {wall}" if "core_hours" in last else wall


def _energy(last: dict[str, float]) -> str:
    if "core_hours" not in last:
        return "not measured"
    return f"{last['core_hours'] * WATTS_PER_CORE:.1f} Wh, at an assumed {WATTS_PER_CORE} W a core"


def _operations(config: TrainingConfig, weights: Path) -> str:
    """Multiply-adds of one pass of the network for one image, each counted as two operations."""
    sizes = json.loads(read_metadata(weights)["network"])
    kind, high = sizes.get("kind", "unet"), config.high
    size = config.low if kind in {"srresnet", "rrdb"} else high
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        network = (mobilenet(8) if kind == "mobilenet" else build(sizes)).eval()
        rest = (torch.zeros(1),) if kind == "unet" else ()
        if isinstance(network, Generator):
            network(torch.zeros(1, network.latents), torch.zeros(1, dtype=torch.long))
        else:
            network(torch.zeros(1, sizes.get("c_in", 3), size, size), *rest)
    return f"{counter.get_total_flops() / 1e9:.2f} GFLOP a pass and image of {high} x {high} pixels"


def _curve(log: list[dict[str, float]]) -> str:
    """The validation figures against images seen, hours and core-hours, at about ten points."""
    hidden = {"step", "images", "hours", "network_loss", "critic_loss", "loss"}
    names = [name for name in log[-1] if name not in hidden]
    lines = [f"| images seen | hours | {' | '.join(name.replace('_', ' ') for name in names)} |"]
    lines += [f"| {' | '.join(['---'] * (len(names) + 2))} |"]
    points = log[:: max(1, len(log) // 10)]
    for row in points if points[-1] is log[-1] else [*points, log[-1]]:
        values = " | ".join(f"{row.get(name, math.nan):.4g}" for name in names)
        lines.append(f"| {int(row['images']):,} | {row['hours']:.2f} | {values} |")
    return "\n".join(lines) + "\n"


def _revision() -> str:
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _measured(run: Path, backend: str) -> str:
    """The figures of the model's backend and of the control, from a run's tables."""
    record = json.loads((run / "run.json").read_text())
    figures = _figures(run / "tables")
    if backend not in set(figures["backend"]):
        raise ConfigError(f"{run}: has no figures of {one_line(backend, 40)}; name the backend after the run")
    command, data = _cell(record["command"]), record["dataset"]
    lines = [f"`{command}`: {data['images']} images of `{_cell(data['spec'])}`.", ""]
    lines += ["| backend | metric | n | mean | 95 % interval |", "| --- | --- | --- | --- | --- |"]
    for row in figures[figures["backend"].isin((backend, "bicubic", REAL))].to_dict("records"):
        interval = "–" if math.isnan(row["low"]) else f"{row['low']:.4g} to {row['high']:.4g}"
        lines.append(f"| {_cell(row['backend'])} | {row['metric']} | {row['n']} | {row['mean']:.4g} | {interval} |")
    return "\n".join(lines) + "\n"


def _figures(tables: Path) -> pd.DataFrame:
    """Scores and sets of upscaled images, and measures of generated ones, all classes together, against the test's."""
    summary, sets, generated = (
        pd.read_parquet(tables / f"{name}.parquet") for name in ("summary", "sets", "generated")
    )
    generated = generated.query("against in ('test', '') and `class` == 'all' and status == 'ok'")
    names = (generated["measure"] + " (" + generated["network"] + ")").str.removesuffix(" ()")
    return pd.concat(
        [summary, sets.rename(columns={"value": "mean"}), generated.assign(metric=names, mean=generated["value"])]
    )


def _cell(text: str) -> str:
    """Text from a run as it may stand in a Markdown table or between backticks."""
    return one_line(text).replace("`", "'").replace("|", "\\|").replace("<", "&lt;")


def main() -> int:
    """Run the command line; returns the exit status."""
    if len(sys.argv) not in (2, 3, 4):
        print("usage: python -m backends.training.card CONFIG.yaml [RUN [BACKEND]]", file=sys.stderr)
        return 2
    try:
        config, (run, backend) = load_config(Path(sys.argv[1])), (*sys.argv[2:], None, None)[:2]
        print(write_card(config, Path(run) if run else None, backend))
    except (ConfigError, HarnessError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
