"""What trainings compute, whatever the machine: `python -m backends.training.operations CONFIG...` prints a table.

Of each phase of a training a few steps are done here. The operations of one are counted: multiply-adds of convolutions,
matrix products and attention, forward and backward, of all parts and all losses, each as two operations. The others are
timed, by the processor's clock, for the core-hours that all steps would take on this machine, validations left out:
one thread (`OMP_NUM_THREADS=1`) and nothing beside it make them comparable.
"""

import sys
import time
from collections.abc import Sequence
from itertools import chain
from math import prod
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import NamedTuple

import torch
from torch.utils.flop_counter import FlopCounterMode

from backends.training.config import ConfigError, TrainingConfig, load_config
from backends.training.loop import Trainer
from harness.errors import HarnessError, one_line

HEAD = ("model", "images seen", "PFLOP in all", "of which", "core-hours on this machine")
TIMED = 5
"""Steps of each phase that are timed; their median counts."""


def _backward(output: Sequence[int], x: Sequence[int], weight: Sequence[int], *rest: object, **_: object) -> int:
    """A convolution's operations backward: each gradient, of its input and its weight, costs what forward does.

    PyTorch counts the weight's as if there were no groups.
    """
    transposed, wanted = rest[4], rest[7]
    if not isinstance(wanted, Sequence):
        raise TypeError("convolution_backward has other arguments in this version of PyTorch")
    positions = (x if transposed else output)[2:]
    return 2 * output[0] * prod(positions) * prod(weight) * sum(map(bool, wanted[:2]))


COUNTS = {torch.ops.aten.convolution_backward: _backward}


class Phase(NamedTuple):
    """A part of a training: its steps, operations of one, and processor seconds of one."""

    steps: int
    operations: int
    seconds: float


def measure(config: TrainingConfig) -> list[Phase]:
    """The phases of a training, of which a few steps are done; its own folder is left alone.

    A student's teacher draws its samples first, and how far they are apart is measured, unless that is there already;
    neither is counted.

    Raises:
        ConfigError: the config does not fit its data.
        DatasetError: the data set is not there.
    """
    with TemporaryDirectory() as folder:
        trainer = Trainer(config, Path(folder))
    return [_phase(trainer, first, last) for first, last in config.phases]


def _phase(trainer: Trainer, first: int, last: int) -> Phase:
    indices = torch.arange(trainer.config.batch)
    with FlopCounterMode(display=False, custom_mapping=COUNTS) as counter:
        trainer.one_step(first, indices)
    seconds = []
    for _ in range(TIMED):
        start = time.process_time()
        trainer.one_step(first, indices)
        seconds.append(time.process_time() - start)
    return Phase(last - first, int(counter.get_total_flops()), median(seconds))


def computation(config: TrainingConfig) -> str:
    """What a card says of all operations of a training; see `measure` for errors."""
    phases = measure(config)
    return f"{_total(phases)} PFLOP: {_steps(phases)}"


def _total(phases: list[Phase]) -> str:
    return f"{sum(phase.steps * phase.operations for phase in phases) / 1e15:.3g}"


def _steps(phases: list[Phase]) -> str:
    return ", ".join(f"{phase.steps:,} steps of {phase.operations / 1e12:.4g} TFLOP" for phase in phases)


def row(config: TrainingConfig) -> tuple[str, ...]:
    """A training's cells under `HEAD`; see `measure` for errors."""
    phases = measure(config)
    hours = sum(phase.steps * phase.seconds for phase in phases) / 3600
    images = f"{config.steps * config.batch:,} in {config.steps:,} steps of {config.batch}"
    return config.name, images, _total(phases), _steps(phases), f"{hours:.2g}"


def main() -> int:
    """Run the command line; returns the exit status."""
    if len(sys.argv) < 2:
        print("usage: python -m backends.training.operations CONFIG.yaml...", file=sys.stderr)
        return 2
    try:
        configs = [load_config(Path(name)) for name in sys.argv[1:]]
        for cells in chain((HEAD, ["---"] * len(HEAD)), map(row, configs)):
            print(f"| {' | '.join(cells)} |", flush=True)
    except (ConfigError, HarnessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
