"""What a training config may say: one YAML file a model, checked field by field."""

import difflib
from pathlib import Path
from typing import Annotated, ClassVar, Literal, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails, PydanticCustomError

from harness.errors import one_line


class ConfigError(Exception):
    """A training config is missing, not YAML, has a wrong field, does not fit its data or checkpoint, or diverges."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


Width = Annotated[int, Field(ge=1, le=1024)]
Blocks = Annotated[int, Field(ge=1, le=64)]
Multiplier = Annotated[int, Field(ge=1, le=64)]
Patch = Annotated[int, Field(ge=1, le=16)]
"""Sizes of networks, none above `backends.checkpoint.LARGEST`: a larger one could be trained, but not be loaded."""


class UNet(_Strict):
    """Size of the U-Net (see `backends.sr3.unet.UNet`)."""

    kind: Literal["unet"] = "unet"
    channels: Width = Field(default=64, ge=8, multiple_of=8)
    multipliers: tuple[Multiplier, ...] = Field(default=(1, 2, 2), min_length=1, max_length=8)
    blocks: Blocks = 2
    patch: Patch = 4
    input_skip: int = Field(default=0, ge=0, le=1)

    @property
    def multiple(self) -> int:
        """Height and width of its input must be a multiple of this."""
        return int(self.patch * 2 ** (len(self.multipliers) - 1))


class SRResNet(_Strict):
    """Size of SRGAN's generator (see `backends.gan.networks.SRResNet`)."""

    kind: Literal["srresnet"]
    channels: Width = 64
    blocks: Blocks = 16
    multiple: ClassVar[int] = 1


class RRDB(_Strict):
    """Size of ESRGAN's generator (see `backends.gan.networks.RRDBNet`)."""

    kind: Literal["rrdb"]
    channels: Width = 64
    growth: int = Field(default=32, ge=1, le=256)
    blocks: Blocks = 6
    multiple: ClassVar[int] = 1


class BigGAN(_Strict):
    """Size of BigGAN's generator (see `backends.biggan.networks.Generator`)."""

    kind: Literal["biggan"]
    channels: Width = 32
    multipliers: tuple[Multiplier, ...] = Field(default=(8, 4, 2), min_length=1, max_length=6)
    latent: int = Field(default=20, ge=1, le=256)
    embedding: Width = 64
    patch: Patch = 2

    @property
    def multiple(self) -> int:
        """The size of its images."""
        return int(4 * 2 ** len(self.multipliers) * self.patch)


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


class Hinge(_Strict):
    """BigGAN's discriminator: its width, and its learning rate in units of the generator's."""

    critic_channels: int = Field(default=32, ge=1)
    critic_rate: float = Field(default=4.0, gt=0)


class Distillation(_Strict):
    """A one-step student of a diffusion model: its teacher, and its losses.

    Two samples of each training image are drawn once, in `sampler_steps` steps of the multistep solver. The student is
    told the noise level `level`, a time t of the cosine schedule. For `pretrain` steps the loss is the squared error
    against these samples alone; then come the weights of the other losses: `pixel` is that of L1 to the teacher's
    sample, `perceptual` that of LPIPS-VGG to the photo, `spread` that of the distance between two faces of one input,
    which is to be at least `share` of the teacher's, `critic` that of the critic, which sees photos.
    """

    teacher: str = Field(pattern=r"^[a-z0-9-]+$")
    sampler_steps: int = Field(default=8, ge=1, le=1000)
    level: float = Field(default=0.65, gt=0, le=1)
    pretrain: int = Field(ge=0)
    pixel: float = Field(default=1.0, ge=0)
    perceptual: float = Field(default=2.0, ge=0)
    spread: float = Field(default=2.0, ge=0)
    share: float = Field(default=1.0, ge=0, le=1)
    critic: float = Field(default=0.01, ge=0)
    critic_channels: int = Field(default=64, ge=1)


class Crops(_Strict):
    """Training on random crops of `high` x `high` pixels instead of whole photos.

    They are cut from photos of `photo` x `photo` pixels and their enlarged inputs, at the same place: what surrounds a
    crop has its part in the input. The photos are the `sharpest` so many of the training split.
    """

    photo: int = Field(ge=8)
    sharpest: int = Field(ge=1)


Task = Literal["sr3", "portraits", "regression", "gan", "student", "attributes", "cdm-base", "cdm-sr", "biggan"]
NETWORKS: dict[Task, tuple[str, ...]] = {
    "sr3": ("unet",),
    "portraits": ("unet",),
    "regression": ("unet",),
    "gan": ("srresnet", "rrdb"),
    "student": ("unet",),
    "attributes": ("mobilenet",),
    "cdm-base": ("unet",),
    "cdm-sr": ("unet",),
    "biggan": ("biggan",),
}
"""The kinds of network that each task can train."""

ENLARGING: tuple[Task, ...] = ("sr3", "regression", "gan", "student", "cdm-sr")
OF_CLASSES: tuple[Task, ...] = ("cdm-base", "cdm-sr", "biggan")
FIELDS: dict[str, tuple[Task, ...]] = {
    "target": ("sr3",),
    "residual": ("sr3",),
    "blur": ("sr3", "cdm-sr"),
    "crops": ("sr3",),
    "augmentation": ("sr3", "cdm-sr"),
    "level": ("sr3", "cdm-sr"),
    "classes": OF_CLASSES,
    "races": ("sr3", "regression", "gan", "student"),
}
"""Fields that not all tasks have, and which have them."""
BLOCKS: dict[str, Task] = {"adversarial": "gan", "distillation": "student", "hinge": "biggan"}
"""Fields that one task needs and no other has."""


class TrainingConfig(_Strict):
    """One model: its task, data, network and optimisation.

    Of the task sr3 alone: what is predicted (`target`) of what (`residual` over bicubic, or the image). `blur`: largest
    sigma in pixels of a blur of the inputs. `augmentation`: the largest level of the noise on the inputs, a time of the
    cosine schedule (0: none), which the network is told, and `level`: that at which the model is to be used.

    `classes`: the labels that a class-conditional model tells apart.
    `start` names weights of `backends/weights` whose layers, where they fit, the network begins with. `momentum` is
    Adam's beta_1. A `recipe` is one side of an experiment: its weights stay in its run folder.
    """

    name: str = Field(pattern=r"^[a-z0-9-]+$")
    task: Task
    recipe: bool = False
    train: str
    validation: str
    races: dict[str, Annotated[int, Field(ge=0)]] | None = None
    low: int = Field(default=16, ge=4)
    high: int = Field(default=64, ge=8)
    network: UNet | SRResNet | RRDB | MobileNet | BigGAN = Field(default=UNet(), discriminator="kind")
    target: Literal["v", "eps"] = "v"
    residual: bool = True
    crops: Crops | None = None
    blur: float = Field(default=0.0, ge=0, le=2)
    classes: tuple[Literal["race", "gender"], ...] = Field(default=("race", "gender"), min_length=1)
    augmentation: float = Field(default=0.0, ge=0, lt=1)
    level: float = Field(default=0.0, ge=0)
    adversarial: Adversarial | None = None
    distillation: Distillation | None = None
    hinge: Hinge | None = None
    start: str | None = Field(default=None, pattern=r"^[a-z0-9-]+$")
    steps: int = Field(ge=1)
    batch: int = Field(default=32, ge=1)
    learning_rate: float = Field(default=3e-4, gt=0)
    final_learning_rate: float = Field(default=1e-5, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    warmup: int = Field(default=200, ge=1)
    ema: float = Field(default=0.999, gt=0, lt=1)
    seed: int = Field(default=0, ge=0, lt=2**32)
    checkpoint_every: int = Field(default=500, ge=1)

    @field_validator("train", "validation")
    @classmethod
    def _not_test(cls, spec: str) -> str:
        if spec.endswith("#test"):
            raise PydanticCustomError("split", "a test split is for measuring alone: name another")
        if spec == "synthetic":
            raise PydanticCustomError("split", "the embedded portraits are for demonstrations alone: name photos")
        return spec

    @field_validator("classes")
    @classmethod
    def _distinct(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) < len(classes):
            raise PydanticCustomError("classes", "a label is there twice")
        return classes

    @model_validator(mode="after")
    def _sizes_fit(self) -> Self:
        multiple = self.network.multiple
        if self.high % multiple:
            raise PydanticCustomError("size", f"high must be a multiple of {multiple}, as the network halves its size")
        if self.high % self.low:
            raise PydanticCustomError("size", f"high must be a multiple of low, {self.low}")
        if self.network.kind == "biggan" and self.high != multiple:
            raise PydanticCustomError("size", f"high must be {multiple}, the size that the network makes")
        if self.crops and (self.crops.photo < self.high or self.crops.photo * self.low % self.high):
            whole = f"at least high, {self.high}, and a multiple of high / low, {self.high // self.low}"
            raise PydanticCustomError("size", f"crops.photo must be {whole}")
        if self.crops and self.high % (4 * multiple):
            raise PydanticCustomError("size", f"high must be a multiple of {4 * multiple}: a crop is a tile of a photo")
        if self.crops and self.augmentation:
            raise PydanticCustomError("crops", "crops have no augmentation: the tiles of a photo share their edges")
        if self.level > self.augmentation:
            raise PydanticCustomError("level", f"level must not be above augmentation, {self.augmentation:g}")
        return self

    @model_validator(mode="after")
    def _factor_fits(self) -> Self:
        factor = self.high // self.low
        if self.task in ENLARGING and factor == 1:
            raise PydanticCustomError("size", f"high must be above low, {self.low}: the task {self.task} enlarges")
        if self.task == "gan" and factor not in (2, 4, 8, 16):
            raise PydanticCustomError("size", f"high / low is {factor}: the task gan enlarges by 2, 4, 8 or 16")
        return self

    @model_validator(mode="after")
    def _parts_fit(self) -> Self:
        kinds = NETWORKS[self.task]
        if self.network.kind not in kinds:
            raise PydanticCustomError("kind", f"the task {self.task} trains a network of kind {' or '.join(kinds)}")
        if self.task == "student" and isinstance(self.network, UNet) and self.network.input_skip:
            raise PydanticCustomError("skip", "the task student trains no network with an input_skip")
        if self.crops and self.races is not None:
            raise PydanticCustomError("field", "crops are of the sharpest photos, races of drawn ones: take one out")
        for name, task in BLOCKS.items():
            if (self.task == task) != (getattr(self, name) is not None):
                raise PydanticCustomError("block", f"the task {task}, and no other, needs the field {name}")
        for name in sorted(self.model_fields_set & FIELDS.keys()):
            if self.task not in FIELDS[name]:
                raise PydanticCustomError("field", f"the task {self.task} has no field {name}")
        return self

    def rate(self, part: str) -> float:
        """The learning rate of a part of the task, in units of `learning_rate`."""
        return self.hinge.critic_rate if self.hinge and part == "critic" else 1.0

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
        raise ConfigError(f"{path}: {one_line(field, 80)}: {_reason(first)}") from error


def _reason(error: ErrorDetails) -> str:
    """What is wrong with a field; of an unknown one at the top, the field that it may be a typo of."""
    if error["type"] != "extra_forbidden":
        return one_line(error["msg"])
    near = difflib.get_close_matches(str(error["loc"][0]), TrainingConfig.model_fields, 1)
    return "there is no such field" + (f"; did you mean {near[0]}?" if near and len(error["loc"]) == 1 else "")
