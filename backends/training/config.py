"""What a training config may say: one YAML file a model, checked field by field."""

from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from pydantic_core import PydanticCustomError

from harness.errors import one_line


class ConfigError(Exception):
    """A training config is missing, is not YAML, has a wrong field, or does not fit its data or checkpoint."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class UNet(_Strict):
    """Size of the U-Net (see `backends.sr3.unet.UNet`)."""

    kind: Literal["unet"] = "unet"
    channels: int = Field(default=64, ge=8, multiple_of=8)
    multipliers: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 2, 2), min_length=1, max_length=8)
    blocks: int = Field(default=2, ge=1)
    patch: int = Field(default=4, ge=1)

    @property
    def multiple(self) -> int:
        """Height and width of its input must be a multiple of this."""
        return int(self.patch * 2 ** (len(self.multipliers) - 1))


class SRResNet(_Strict):
    """Size of SRGAN's generator (see `backends.gan.networks.SRResNet`)."""

    kind: Literal["srresnet"]
    channels: int = Field(default=64, ge=1)
    blocks: int = Field(default=16, ge=1)
    multiple: ClassVar[int] = 1


class RRDB(_Strict):
    """Size of ESRGAN's generator (see `backends.gan.networks.RRDBNet`)."""

    kind: Literal["rrdb"]
    channels: int = Field(default=64, ge=1)
    growth: int = Field(default=32, ge=1)
    blocks: int = Field(default=6, ge=1)
    multiple: ClassVar[int] = 1


class MobileNet(_Strict):
    """The network of the attribute classifier (torchvision's `mobilenet_v2`), started from ImageNet weights."""

    kind: Literal["mobilenet"]
    multiple: ClassVar[int] = 32


class Adversarial(_Strict):
    """Losses of a GAN's generator, and how long it is pretrained with L1 alone."""

    pretrain: int = Field(ge=0)
    relativistic: bool = False
    pixel: float = Field(default=1.0, ge=0)
    perceptual: float = Field(default=2.0, ge=0)
    critic: float = Field(default=0.01, ge=0)
    critic_channels: int = Field(default=64, ge=1)


class Distillation(_Strict):
    """A one-step student of a diffusion model: its teacher, and the losses against the teacher's samples.

    `noises` samples of each training image are drawn once, in `sampler_steps` steps of the multistep solver. The
    student is told the noise level `level`, a time t of the cosine schedule. For `pretrain` steps the loss is the
    squared error alone; then come the weights of the other losses. `spread` is that of the distance between two samples
    of one image, which is to be at least the teacher's.
    """

    teacher: str = Field(pattern=r"^[a-z0-9-]+$")
    noises: int = Field(default=2, ge=2)
    sampler_steps: int = Field(default=8, ge=1, le=1000)
    level: float = Field(default=0.65, gt=0, le=1)
    pretrain: int = Field(ge=0)
    pixel: float = Field(default=1.0, ge=0)
    perceptual: float = Field(default=2.0, ge=0)
    spread: float = Field(default=2.0, ge=0)
    critic: float = Field(default=0.01, ge=0)
    critic_channels: int = Field(default=64, ge=1)


Task = Literal["sr3", "portraits", "regression", "gan", "student", "attributes"]
NETWORKS: dict[Task, tuple[str, ...]] = {
    "sr3": ("unet",),
    "portraits": ("unet",),
    "regression": ("unet",),
    "gan": ("srresnet", "rrdb"),
    "student": ("unet",),
    "attributes": ("mobilenet",),
}
"""The kinds of network that each task can train."""


SR3_ONLY = {"target", "residual", "blur", "conditioning_noise"}


class TrainingConfig(_Strict):
    """One model: its task, data, network and optimisation.

    Of the task sr3 alone: what is predicted (`target`) of what (`residual` over bicubic, or the image), and the inputs'
    augmentation: largest sigma of a `blur` in pixels, largest deviation of `conditioning_noise` on the scale 0 to 1.
    """

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    task: Task
    train: str
    validation: str
    races: dict[str, Annotated[int, Field(ge=0)]] | None = None
    low: int = Field(default=16, ge=4)
    high: int = Field(default=64, ge=8)
    network: UNet | SRResNet | RRDB | MobileNet = Field(default=UNet(), discriminator="kind")
    target: Literal["v", "eps"] = "v"
    residual: bool = True
    blur: float = Field(default=0.0, ge=0, le=2)
    conditioning_noise: float = Field(default=0.0, ge=0, le=0.5)
    adversarial: Adversarial | None = None
    distillation: Distillation | None = None
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
        multiple = self.network.multiple
        if self.high % multiple:
            raise PydanticCustomError("size", f"high must be a multiple of {multiple}, as the network halves its size")
        if self.high % self.low:
            raise PydanticCustomError("size", f"high must be a multiple of low, {self.low}")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        kinds = NETWORKS[self.task]
        if self.network.kind not in kinds:
            raise PydanticCustomError("kind", f"the task {self.task} trains a network of kind {' or '.join(kinds)}")
        if (self.task == "gan") != (self.adversarial is not None):
            raise PydanticCustomError("adversarial", "the task gan, and no other, needs the field adversarial")
        if self.task != "sr3" and self.model_fields_set & SR3_ONLY:
            fields = ", ".join(sorted(self.model_fields_set & SR3_ONLY))
            raise PydanticCustomError("sr3", f"only the task sr3 has the fields {fields}")
        if (self.task == "student") != (self.distillation is not None):
            raise PydanticCustomError("distillation", "the task student, and no other, needs the field distillation")
        return self

    @property
    def phases(self) -> tuple[tuple[int, int], ...]:
        """First and last step of each part of the training that has a learning-rate schedule of its own."""
        part = self.adversarial or self.distillation
        first = part.pretrain if part else 0
        return ((0, first), (first, self.steps)) if 0 < first < self.steps else ((0, self.steps),)


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
