"""What will be run: the conditions of a suite, and which images each of them uses."""

import re
from dataclasses import dataclass

from harness.suite import Suite


@dataclass(frozen=True)
class Condition:
    """One way to prepare the input: `clean`, or Gaussian noise of `sigma` at a severity."""

    name: str
    severity: int = 0
    sigma: float = 0.0

    @property
    def folder(self) -> str:
        """Name of its folders in a run."""
        return self.name if self.severity == 0 else f"{self.name}-{self.severity}"


CLEAN = Condition("clean")


@dataclass(frozen=True)
class Step:
    """A condition, how many of the images (in their order) it uses, and the metrics scored under it."""

    condition: Condition
    images: int
    metrics: tuple[str, ...]


def plan(suite: Suite, images: int) -> list[Step]:
    """The steps of a suite over `images` images, clean first."""
    steps = [Step(CLEAN, images, suite.metrics)]
    if suite.noise is not None:
        for severity, sigma in enumerate(suite.noise.sigmas, 1):
            condition = Condition("gaussian_noise", severity, sigma)
            steps.append(Step(condition, min(images, suite.noise.images), suite.noise.metrics))
    return steps


@dataclass(frozen=True)
class BackendSpec:
    """A backend as the command line or a suite names it: `NAME[@ADDRESS][,option=value]...`."""

    name: str
    address: str | None
    label: str
    options: dict[str, str]


def parse_backend(text: str) -> BackendSpec:
    """Read `NAME[@ADDRESS][,option=value]...`; the option `name` sets the label.

    Raises:
        ConfigError: the text is not of that form.
    """
    from harness.errors import ConfigError, one_line

    head, *rest = text.split(",")
    name, _, address = head.strip().partition("@")
    options = {}
    for part in rest:
        key, equals, value = part.partition("=")
        if not equals or not key.strip() or key.strip() in options:
            raise ConfigError(f"backend {one_line(text, 80)!r}: {one_line(part, 40)!r} is not option=value, or is twice")
        options[key.strip()] = value.strip()
    label = options.pop("name", name)
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._ -]{0,39}", label):
        raise ConfigError(f"backend {one_line(text, 80)!r}: a name is 1 to 40 letters, digits, dots, dashes or spaces")
    return BackendSpec(name, address or None, label, options)
