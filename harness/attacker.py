"""The stage of a run that attacks a backend: makes the attacked inputs and stores them with their outputs.

    attacks/BACKEND/ATTACK-EPSILON/IMAGE.KEY.input.png     the attacked input
                                   IMAGE.KEY.output.png    what the backend made of it, by a usual Upscale

KEY is that of the clean output, and so names the backend's digest, the input, the seed and the options. A stochastic
backend is attacked with other seeds than the one that its outputs are made with, clean and attacked.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from rich.progress import Progress

from harness.attacks import GRADIENT_ATTACKS, Ball, Floats, Generators, Pixels, height, search, slope
from harness.client import FloatItem, Item
from harness.degrade import seed_of
from harness.errors import BackendError
from harness.images import load
from harness.plan import CLEAN
from harness.replicas import Replicas, sound
from harness.resize import to_uint8
from harness.score import stored_outputs
from harness.store import Row, RunFolder, equal_sizes, is_whole, slug
from harness.suite import Attacks, Suite

ATTACK = "attack"
"""The metric of the rows of failures."""
SIGNS, SEARCH = "signs", "search"
REQUEST_PIXELS = 2**21
"""Most output pixels of a request: 24 MiB of floats each way."""


class Attack(NamedTuple):
    """One attack at one strength: a condition, whose severity is epsilon."""

    name: str
    epsilon: int

    @property
    def condition(self) -> str:
        """The condition of its rows."""
        return f"attack_{self.name}"

    def files(self, folder: RunFolder, label: str, output: Path) -> tuple[Path, Path]:
        """Where the attacked input of a clean `output` lies, and what the backend made of it."""
        where = folder.path / "attacks" / slug(label) / f"{self.name}-{self.epsilon}"
        return where / f"{output.stem}.input.png", where / f"{output.stem}.output.png"


def seeds_of(backend: dict[str, Any], part: Attacks) -> int:
    """With how many sampler seeds a backend (its entry in the record) is attacked."""
    return 1 if backend["deterministic"] else part.samples


def attacks_on(backend: dict[str, Any], part: Attacks) -> list[Attack]:
    """The attacks on a backend, the control first; none on one that knows only stored outputs."""
    if backend["family"] in ("replay", "control") or backend["status"] != "ok":
        return []
    names = part.names if backend.get("gradient") else (SEARCH,)
    return [Attack(name, epsilon) for epsilon in part.epsilons for name in (SIGNS, *names)]


class Target(NamedTuple):
    """An image under attack, (H, W, 3), with the seed of its stored output, and the file of that."""

    id: str
    image: Pixels
    seed: int
    output: Path


@dataclass(frozen=True)
class Attacker:
    """Attacks one backend with `images`, rows of the run's table of images."""

    folder: RunFolder
    suite: Suite
    part: Attacks
    backend: Replicas
    images: pd.DataFrame

    def run(self, progress: Progress) -> Iterator[Row]:
        """Store the attacks that are missing; yields what is to be noted of each that failed."""
        record = self.backend.record
        outputs = stored_outputs(self.folder, self.images, record, CLEAN, self.suite.scale)
        attacks = attacks_on(record, self.part)
        task = progress.add_task(f"{record['label']}: attacks", total=len(attacks) * len(outputs))
        pool = ThreadPoolExecutor(len(self.backend.sessions))
        try:
            for attack in attacks:
                pending = {i: o for i, o in outputs.items() if not all(map(is_whole, self._files(attack, o)))}
                progress.advance(task, len(outputs) - len(pending))
                batches = [*self._batches(pending)]
                for batch, failures in zip(batches, pool.map(partial(self._store, attack), batches), strict=True):
                    progress.advance(task, len(batch))
                    yield from failures
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _files(self, attack: Attack, output: Path) -> tuple[Path, Path]:
        return attack.files(self.folder, self.backend.record["label"], output)

    def _batches(self, outputs: dict[str, Path]) -> Iterator[list[Target]]:
        seeds = dict(self.images[["image", "seed"]].itertuples(index=False, name=None))
        files = ((image, self.folder.input(CLEAN.folder, image)) for image in outputs)
        for batch in equal_sizes(files, self.backend.batch, REQUEST_PIXELS // self.suite.scale**2):
            yield [Target(image, load(path), int(seeds[image]), outputs[image]) for image, path in batch]

    def _store(self, attack: Attack, targets: list[Target]) -> list[Row]:
        """Attack a batch, image by image where that fails; returns a row for each failure."""
        try:
            attacked = self._attacked(attack, targets)
            items = [Item(t.id, image, t.seed) for t, image in zip(targets, attacked, strict=True)]
            results = sound(self.backend.upscale(items))
        except BackendError as error:
            if len(targets) == 1:
                text = f"{type(error).__name__}: {error}"
                where = {"condition": attack.condition, "severity": attack.epsilon}
                return [where | {"image": targets[0].id, "metric": ATTACK, "error": text}]
            return [row for target in targets for row in self._store(attack, [target])]
        for target, image, output in zip(targets, attacked, results, strict=True):
            first, second = self._files(attack, target.output)
            self.folder.write_image(first, image)
            self.folder.write_image(second, output)
        return []

    def _attacked(self, attack: Attack, targets: list[Target]) -> Pixels:
        """The attacked inputs, rounded within the ball."""
        images = np.stack([target.image for target in targets])
        ball, seeds = Ball(images, attack.epsilon), seeds_of(self.backend.record, self.part)
        rngs: Generators = [np.random.default_rng(seed_of(t.seed, attack.name, attack.epsilon)) for t in targets]
        if attack.name == SIGNS:
            return ball.corners(rngs)
        if attack.name == SEARCH:
            return search(ball, height(images, self._upscale(targets), seeds), self.part.queries, rngs)
        gradient = slope(images, self._differentiate(targets), seeds)
        return to_uint8(GRADIENT_ATTACKS[attack.name](ball, gradient, self.part.steps, rngs))

    def _differentiate(self, targets: list[Target]) -> Callable[..., tuple[Floats, Floats | None]]:
        """See `harness.attacks.Differentiate`."""

        def call(images: Floats, cotangents: Floats | None, seed: int) -> tuple[Floats, Floats | None]:
            weights = [None] * len(images) if cotangents is None else [*cotangents]
            rows = zip(targets, images, weights, strict=True)
            answers = sound(self.backend.gradient([FloatItem(t.id, x, attack_seed(t, seed), w) for t, x, w in rows]))
            gradients = [answer.gradient for answer in answers if answer.gradient is not None]
            return np.stack([answer.output for answer in answers]), np.stack(gradients) if gradients else None

        return call

    def _upscale(self, targets: list[Target]) -> Callable[[Pixels, int], Pixels]:
        """See `harness.attacks.Upscale`."""

        def call(images: Pixels, seed: int) -> Pixels:
            pairs = zip(targets, images, strict=True)
            return np.stack(sound(self.backend.upscale([Item(t.id, x, attack_seed(t, seed)) for t, x in pairs])))

        return call


def attack_seed(target: Target, number: int) -> int:
    """A sampler seed to attack with: another than that of the outputs that are judged, `target.seed`."""
    return seed_of(target.seed, ATTACK, number)
