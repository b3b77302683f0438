"""What trainings compute, whatever the machine: `python -m backends.training.operations CONFIG...` prints a table.

Core-hours compare trainings on one machine only. Of each phase of a training one step is computed here and its
operations are counted: multiply-adds of convolutions, matrix products and attention, forward and backward, of all parts
and all losses, each as two operations. What Adam and the validations do is not in them.
"""

import sys
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from backends.training.config import ConfigError, TrainingConfig, load_config
from backends.training.tasks import Task, load_task
from harness.errors import HarnessError

HEAD = ("model", "images seen", "TFLOP a step", "PFLOP in all")


def count_operations(config: TrainingConfig) -> list[tuple[int, int]]:
    """Steps of each phase of a training, and operations of one of them.

    A student's teacher draws its samples first, unless they are there already.

    Raises:
        ConfigError: the config does not fit its data.
        DatasetError: the data set is not there.
    """
    task = load_task(config.task)(config)
    return [(last - first, _operations(task, config, first)) for first, last in config.phases]


def _operations(task: Task, config: TrainingConfig, step: int) -> int:
    rng = torch.Generator().manual_seed(config.seed)
    with FlopCounterMode(display=False) as counter:
        for _, loss in task.losses(step, torch.arange(config.batch) % task.count, rng):
            loss.backward()  # type: ignore[no-untyped-call]
    return int(counter.get_total_flops())


def row(config: TrainingConfig) -> tuple[str, ...]:
    """A training's cells under `HEAD`."""
    phases = count_operations(config)
    each = ", ".join(f"{operations / 1e12:.3f} ({steps:,} steps)" for steps, operations in phases)
    total = sum(steps * operations for steps, operations in phases)
    return config.name, f"{config.steps * config.batch:,}", each, f"{total / 1e15:.2f}"


def main() -> int:
    """Run the command line; returns the exit status."""
    if len(sys.argv) < 2:
        print("usage: python -m backends.training.operations CONFIG.yaml...", file=sys.stderr)
        return 2
    try:
        configs = [load_config(Path(name)) for name in sys.argv[1:]]
        for cells in (HEAD, ["---"] * len(HEAD), *map(row, configs)):
            print(f"| {' | '.join(cells)} |", flush=True)
    except (ConfigError, HarnessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
