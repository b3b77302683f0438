"""What trainings compute, whatever the machine: `python -m backends.training.operations CONFIG...` prints a table.

Of each phase of a training a few steps are done here. The operations of one are counted: multiply-adds of convolutions,
matrix products and attention, forward and backward, of all parts and all losses, each as two operations. The others are
timed, by the processor's clock, for the core-hours that all steps would take on this machine, validations left out:
one thread (`OMP_NUM_THREADS=1`) and nothing beside it make them comparable.
"""

import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from backends.training.config import ConfigError, TrainingConfig, load_config
from backends.training.loop import Trainer
from harness.errors import HarnessError

HEAD = ("model", "images seen", "PFLOP in all", "of which", "core-hours on this machine")
TIMED = 5
"""Steps of each phase that are timed; their median counts."""


class Phase(NamedTuple):
    """A part of a training: its steps, operations of one, and processor seconds of one."""

    steps: int
    operations: int
    seconds: float


def measure(config: TrainingConfig) -> list[Phase]:
    """The phases of a training, of which a few steps are done; its own folder is left alone.

    A student's teacher draws its samples first, unless they are there already.

    Raises:
        ConfigError: the config does not fit its data.
        DatasetError: the data set is not there.
    """
    with TemporaryDirectory() as folder:
        trainer = Trainer(config, Path(folder))
    return [_phase(trainer, first, last) for first, last in config.phases]


def _phase(trainer: Trainer, first: int, last: int) -> Phase:
    indices = torch.arange(trainer.config.batch)
    with FlopCounterMode(display=False) as counter:
        trainer.one_step(first, indices)
    seconds = []
    for _ in range(TIMED):
        start = time.process_time()
        trainer.one_step(first, indices)
        seconds.append(time.process_time() - start)
    return Phase(last - first, int(counter.get_total_flops()), median(seconds))


def computation(config: TrainingConfig) -> str:
    """What a card says of all operations of a training; see `measure` for errors."""
    return _computation(measure(config))


def _computation(phases: list[Phase]) -> str:
    total = sum(phase.steps * phase.operations for phase in phases)
    steps = ", ".join(f"{phase.steps:,} steps of {phase.operations / 1e12:.4g} TFLOP" for phase in phases)
    return f"{total / 1e15:.3g} PFLOP: {steps}"


def row(config: TrainingConfig) -> tuple[str, ...]:
    """A training's cells under `HEAD`; see `measure` for errors."""
    phases = measure(config)
    hours = sum(phase.steps * phase.seconds for phase in phases) / 3600
    images = f"{config.steps * config.batch:,} in {config.steps:,} steps of {config.batch}"
    return config.name, images, *_computation(phases).replace(" PFLOP", "").split(": "), f"{hours:.2f}"


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
