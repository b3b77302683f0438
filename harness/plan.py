"""What will be run: the conditions of a suite, and which images each of them uses."""

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from backends.registry import ENTRIES
from harness.datasets import Dataset, limit
from harness.errors import ConfigError, one_line
from harness.suite import Corruptions, Noise, Seeds, Suite

ARROW = "->"
"""What stands between the stages of a chain."""
LABEL = r"[A-Za-z0-9][A-Za-z0-9._ -]{0,39}"
"""What a backend may be called."""


@dataclass(frozen=True)
class Job:
    """A command to run: a suite over a dataset with backends, into a folder."""

    suite: Suite
    dataset: str
    backends: tuple[str, ...]
    output: Path
    limit: int | None
    command: str
    credentials: Path | None = None


@dataclass(frozen=True)
class Condition:
    """One way to prepare the input: `clean`, one of `harness.degrade.EFFECTS` at a severity, or an uninformative one.

    Without `parameters`, a severity of 1 to 5 has those of its table for the image's size. Under `average` each image's
    input is the average face of its group, which says nothing but the group; under `average_noise` it has noise of its
    own, whose standard deviation of full scale is the parameter. `draw` numbers the draws of a corruption; only the
    first, 0, is scored.
    """

    name: str
    severity: int = 0
    parameters: tuple[float, ...] = ()
    draw: int = 0

    @property
    def folder(self) -> str:
        """Name of its folders in a run."""
        parts = (self.name, str(self.severity) if self.severity else "", f"draw{self.draw}" if self.draw else "")
        return "-".join(part for part in parts if part)


CLEAN = Condition("clean")
AVERAGE = "average"
AVERAGE_NOISE = "average_noise"


@dataclass(frozen=True)
class Step:
    """A condition, the ids of the images it uses, and the metrics scored under it.

    `sample` numbers the outputs of one input; those after the first, 0, are for stochastic backends only.
    """

    condition: Condition
    images: tuple[str, ...]
    metrics: tuple[str, ...]
    sample: int = 0


def conditions(suite: Suite) -> list[tuple[Condition, tuple[str, ...]]]:
    """The conditions of a suite with the metrics scored under each, clean first."""
    return [(CLEAN, suite.metrics), *_noisy(suite.noise), *_corrupted(suite.corruptions)]


def _noisy(noise: Noise | None) -> list[tuple[Condition, tuple[str, ...]]]:
    if noise is None:
        return []
    return [(Condition("gaussian_noise", s, (sigma,)), noise.metrics) for s, sigma in enumerate(noise.sigmas, 1)]


def _corrupted(part: Corruptions | None) -> list[tuple[Condition, tuple[str, ...]]]:
    """What moves pixels is compared with the input alone."""
    if part is None:
        return []
    pairs = itertools.product(part.names, part.severities)
    return [(Condition(name, severity), part.metrics_of(name)) for name, severity in pairs]


def _seeded(seeds: Seeds, images: tuple[str, ...]) -> Iterator[Step]:
    """Further draws of corruptions at a backend's first seed, and further seeds of it on the first draw."""
    for name, k in itertools.product(seeds.names, range(1, seeds.samples)):
        yield Step(Condition(name, seeds.severity, draw=k), images, ())
        yield Step(Condition(name, seeds.severity), images, (), sample=k)


def uninformative_conditions(suite: Suite) -> list[Condition]:
    """The conditions whose inputs say nothing but the group; none where the suite asks for none."""
    part = suite.fairness.uninformative if suite.fairness else None
    return [Condition(AVERAGE), Condition(AVERAGE_NOISE, parameters=(part.sigma,))] if part else []


def images_of(suite: Suite, dataset: Dataset, count: int) -> tuple[str, ...]:
    """The ids of the images that a part of a suite over so many of them uses: stratified by group, always the same."""
    return tuple(record.id for record in limit(dataset, count, suite.seed).records)


def plan(suite: Suite, dataset: Dataset) -> list[Step]:
    """The steps of a suite over a dataset; all parts but the clean one use subsets stratified by group.

    None of a suite that has nothing enlarged.
    """
    if suite.generation:
        return []

    def subset(count: int) -> tuple[str, ...]:
        return images_of(suite, dataset, count) if count else ()

    everything, fairness = tuple(record.id for record in dataset.records), suite.fairness
    noisy, corrupted = (subset(part.images if part else 0) for part in (suite.noise, suite.corruptions))
    steps = [Step(CLEAN, everything, suite.metrics)]
    steps += [Step(condition, noisy, metrics) for condition, metrics in _noisy(suite.noise)]
    steps += [Step(condition, corrupted, metrics) for condition, metrics in _corrupted(suite.corruptions)]
    if suite.corruptions and (seeds := suite.corruptions.seeds):
        steps += _seeded(seeds, subset(min(seeds.images, suite.corruptions.images)))
    for part in (suite.diversity, fairness.posterior if fairness else None, suite.uncertainty):
        steps += [Step(CLEAN, subset(part.images), (), sample) for sample in range(1, part.samples)] if part else []
    empty = subset(fairness.uninformative.images if fairness and fairness.uninformative else 0)
    return steps + [Step(condition, empty, ()) for condition in uninformative_conditions(suite)]


@dataclass(frozen=True)
class BackendSpec:
    """A backend as the command line or a suite names it: `NAME[@ADDRESS[+ADDRESS]...][,option=value]...`.

    Several addresses are those of replicas. `options` go with every request; `settings` are what a local backend is
    started with. `level` is the conditioning level of every image; None leaves it to the backend. A chain has `stages`
    instead of all that, and a stage may choose its `scale` (0: the only one that it has).
    """

    name: str
    address: str | None
    label: str
    options: dict[str, str]
    settings: dict[str, str] = field(default_factory=dict)
    level: float | None = None
    scale: int = 0
    stages: tuple["BackendSpec", ...] = ()

    @property
    def addresses(self) -> list[str]:
        """The address of each replica; none of a backend that we start."""
        return self.address.split("+") if self.address else []


def check_address(address: str, lowest_port: int = 1) -> None:
    """Refuse what is not HOST:PORT; IPv6 hosts stand in brackets.

    Raises:
        ConfigError: the address is not of that form.
    """
    match = re.fullmatch(r"(?:[\w.-]+|\[[0-9A-Fa-f:.]+\]):([0-9]{1,5})", address)
    if match is None or not lowest_port <= int(match[1]) <= 65535:
        raise ConfigError(f"{one_line(address, 80)!r}: an address is HOST:PORT with a port from {lowest_port} to 65535")


def _check_addresses(addresses: list[str]) -> None:
    for address in addresses:
        check_address(address)
        if addresses.count(address) > 1:
            raise ConfigError(f"{address} is there twice; replicas have an address each")


def parse_entry(text: str) -> BackendSpec:
    """Read a backend, or a chain of backends: `[NAME =] BACKEND -> BACKEND [-> BACKEND]...`.

    A stage is a backend as of `parse_backend`, at one address at most; its option `scale` chooses one of its scales.

    Raises:
        ConfigError: the text is not of that form.
    """
    if ARROW not in text:
        return parse_backend(text)
    named = re.fullmatch(rf"\s*({LABEL})=(.*)", text, re.DOTALL)
    stages = tuple(_stage(part) for part in (named[2] if named else text).split(ARROW))
    label = named[1].strip() if named else " to ".join(stage.label for stage in stages)
    if not re.fullmatch(LABEL, label):
        raise ConfigError(f"backend {one_line(text, 80)!r}: its name would be too long; put NAME = in front")
    return BackendSpec("chain", None, label, {}, stages=stages)


def _stage(text: str) -> BackendSpec:
    spec = parse_backend(text)
    if len(spec.addresses) > 1:
        raise ConfigError(f"backend {one_line(text, 80)!r}: a stage of a chain has no replicas; give one address")
    options = dict(spec.options)
    scale = options.pop("scale", "0")
    if not re.fullmatch("[0-9]{1,2}", scale):
        raise ConfigError(f"backend {one_line(text, 80)!r}: scale={one_line(scale, 20)}: a whole number is needed")
    return replace(spec, options=options, scale=int(scale))


def parse_backend(text: str) -> BackendSpec:
    """Read `NAME[@ADDRESS[+ADDRESS]...][,option=value]...`.

    The option `name` sets the label, `conditioning_level` that of every image. `NAME:PATH` is short for
    `NAME,path=PATH` where the backend needs a path.

    Raises:
        ConfigError: the text is not of that form.
    """
    head, *rest = text.split(",")
    if takes_path(head):
        head, _, path = head.strip().partition(":")
        rest.insert(0, f"path={path}")
    name, at, address = head.strip().partition("@")
    if at:
        _check_addresses(address.split("+"))
    options = _options(text, rest)
    label = options.pop("name", name)
    if not re.fullmatch(LABEL, label):
        raise ConfigError(f"backend {one_line(text, 80)!r}: a name is 1 to 40 letters, digits, dots, dashes or spaces")
    level = _level(options.pop("conditioning_level", None))
    settings = {} if address else _settings(name, options)
    return BackendSpec(name, address or None, label, options, settings, level)


def _options(text: str, parts: list[str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or key.strip() in options:
            raise ConfigError(
                f"backend {one_line(text, 80)!r}: {one_line(part, 40)!r} is not option=value, or is twice"
            )
        options[key.strip()] = value.strip()
    return options


def _level(text: str | None) -> float | None:
    try:
        level = None if text is None else float(text)
    except ValueError:
        level = math.nan
    if level is not None and not 0 <= level <= 1:
        raise ConfigError(f"conditioning_level={one_line(str(text), 20)}: a number from 0 to 1 is needed")
    return level


def takes_path(head: str) -> bool:
    """Whether a text begins like `NAME:PATH`, with a backend that needs a path."""
    name, colon, _ = head.strip().partition(":")
    return bool(colon) and name in ENTRIES and "path" in ENTRIES[name].settings


def _settings(name: str, options: dict[str, str]) -> dict[str, str]:
    """What a local backend gets when it starts: its settings, taken out of the options, and its hints, which stay."""
    if name not in ENTRIES:
        return {}
    entry = ENTRIES[name]
    missing = [key for key in entry.settings if key not in options]
    if missing:
        raise ConfigError(f"backend {name} needs {missing[0]}: write {name},{missing[0]}=VALUE")
    hints = {key: options[key] for key in entry.hints if key in options}
    return hints | {key: options.pop(key) for key in (*entry.settings, *entry.optional) if key in options}
