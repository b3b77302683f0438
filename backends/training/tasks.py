"""What a training task is, and which there are."""

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor, nn

from backends.training.config import Task as Name
from backends.training.config import TrainingConfig


class Task(Protocol):
    """A training task over `count` images.

    `parts` are the networks that are optimised; "network" is the one whose running average is shipped.
    """

    count: int
    parts: dict[str, nn.Module]

    def __init__(self, config: TrainingConfig) -> None:
        """Load the images and make the networks."""

    def losses(self, step: int, indices: Tensor, rng: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        """(part, its loss on the images `indices`), one part after the other; all randomness comes from `rng`.

        The part is updated before the next one is asked for.
        """

    def validate(self, network: nn.Module) -> dict[str, float]:
        """Figures on validation images, `validation_loss` among them, with fixed noise."""

    def export(self) -> tuple[dict[str, object], dict[str, str]]:
        """The network's kind and sizes, and the settings that its user needs: the metadata of the weights file."""


def load_task(name: Name) -> type[Task]:
    """The class of a task."""
    from backends.training import attributes, biggan, cdm, diffusion, feedforward, student

    tasks: dict[Name, type[Task]] = {
        "sr3": diffusion.SR3Task,
        "portraits": diffusion.PortraitsTask,
        "regression": feedforward.RegressionTask,
        "gan": feedforward.GANTask,
        "student": student.StudentTask,
        "attributes": attributes.AttributesTask,
        "cdm-base": cdm.CDMBaseTask,
        "cdm-sr": cdm.CDMStageTask,
        "biggan": biggan.BigGANTask,
    }
    return tasks[name]
