"""What a training config may say: one YAML file a model, checked field by field."""

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from harness.errors import one_line


class ConfigError(Exception):
    """A training config is missing, is not YAML, has a wrong field, or does not fit its data or checkpoint."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Network(_Strict):
    """Size of the U-Net (see `backends.sr3.unet.UNet`)."""

    channels: int = Field(default=64, ge=8, multiple_of=8)
    multipliers: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 2, 2), min_length=1, max_length=8)
    blocks: int = Field(default=2, ge=1)
    patch: int = Field(default=4, ge=1)


class TrainingConfig(_Strict):
    """One model: its task, data, network and optimisation."""

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    task: Literal["sr3", "portraits"]
    train: str
    validation: str
    low: int = Field(default=16, ge=4)
    high: int = Field(default=64, ge=8)
    network: Network = Network()
    steps: int = Field(ge=1)
    batch: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=3e-4, gt=0)
    final_learning_rate: float = Field(default=1e-5, gt=0)
    warmup: int = Field(default=200, ge=1)
    ema: float = Field(default=0.999, gt=0, lt=1)
    seed: int = 0
    checkpoint_every: int = Field(default=500, ge=1)

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        multiple = self.network.patch * 2 ** (len(self.network.multipliers) - 1)
        if self.high % multiple:
            raise PydanticCustomError("size", f"high must be a multiple of {multiple}, as the network halves its size")
        if self.high % self.low:
            raise PydanticCustomError("size", f"high must be a multiple of low, {self.low}")
        return self


def load_config(path: Path) -> TrainingConfig:
    """Read and check a config file.

    Raises:
        ConfigError: one line that names the file and the field.
    """
    try:
        data = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from error
    except (ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: not YAML: {one_line(str(error))}") from error
    try:
        return TrainingConfig.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigError(f"{path}: {one_line(field, 80)}: {one_line(first['msg'])}") from error
