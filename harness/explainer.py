"""The stage of a run that explains outputs: makes the maps of attribution and tries how faithful they are."""

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.progress import Progress

from harness.attribution import (
    SIDE,
    Case,
    Float,
    Interventions,
    Pixels,
    Single,
    Window,
    cem,
    lam,
    occlusion,
)
from harness.client import FloatItem, Item
from harness.errors import BackendError
from harness.explanations import METRIC, RIVALS, explanation_path, reason_not_run
from harness.faithfulness import areas
from harness.images import load
from harness.plan import CLEAN
from harness.replicas import Replicas, sound
from harness.resize import resize, to_uint8
from harness.score import stored_outputs
from harness.store import Row, RunFolder, write_atomic
from harness.suite import Explanations, Suite

Asked = TypeVar("Asked", Item, FloatItem)
Got = TypeVar("Got")

REQUEST_PIXELS = 2**21
"""Most output pixels of a request of several images: 24 MiB as floats, which is well within a message."""
HELPS, HURTS = (255, 140, 0), (0, 120, 255)
"""Colours of what is positive in a map, and of what is negative."""


@dataclass(frozen=True)
class Live:
    """An upscaler that answers for one case under its seed; `image` names it."""

    backend: Replicas
    image: str
    case: Case

    def upscale(self, images: Pixels) -> Pixels:
        """See `harness.attribution.Upscale`.

        Raises:
            BackendError: an output did not come.
        """
        items = [Item(self._id(n), image, self.case.seed) for n, image in enumerate(images)]
        return np.stack([*self._answers(items, self.backend.upscale)])

    def gradient(self, images: Single, cotangents: Single | None, seeds: Sequence[int]) -> tuple[Single, Single | None]:
        """See `harness.attribution.Gradient`.

        Raises:
            BackendError: an output or a gradient did not come.
        """
        weights: Sequence[Single | None] = [None] * len(images) if cotangents is None else [*cotangents]
        asked = enumerate(zip(images, seeds, weights, strict=True))
        items = [FloatItem(self._id(n), image, seed, weight) for n, (image, seed, weight) in asked]
        answers = self._answers(items, self.backend.gradient)
        gradients = [answer.gradient for answer in answers if answer.gradient is not None]
        return np.stack([answer.output for answer in answers]), np.stack(gradients) if gradients else None

    def _id(self, number: int) -> str:
        return f"{self.image}/{number}"

    def _answers(self, items: Sequence[Asked], ask: Callable[[Sequence[Asked]], list[Got | BackendError]]) -> list[Got]:
        size = min(self.backend.batch, max(1, REQUEST_PIXELS // self.case.output[..., 0].size))
        batches = (items[start : start + size] for start in range(0, len(items), size))
        return [answer for batch in batches for answer in sound(ask(batch))]


@dataclass(frozen=True)
class Explainer:
    """Explains the stored clean outputs of one backend, for `images`, rows of the run's table of images."""

    folder: RunFolder
    suite: Suite
    settings: Explanations
    backend: Replicas
    images: pd.DataFrame

    def run(self, progress: Progress) -> Iterator[Row]:
        """Store the maps that are missing; yields what is to be noted of each that failed."""
        record = self.backend.record
        alone = ("cem",) if len(self._inputs) < 2 else ()  # no other image to take patches from
        names = [n for n in (*self.settings.maps, *RIVALS) if n not in alone and not reason_not_run(record, n)]
        outputs = stored_outputs(self.folder, self.images, record, CLEAN, self.suite.scale)
        task = progress.add_task(f"{record['label']}: explanations", total=len(names) * len(outputs))
        for image, output in outputs.items():
            files = {name: explanation_path(self.folder, record["label"], output, name) for name in names}
            missing = {name: file for name, file in files.items() if not file.exists()}
            progress.advance(task, len(files) - len(missing))
            case = self._case(image, output)
            for name, file in missing.items():
                try:
                    self._store(Live(self.backend, image, case), name, file)
                except BackendError as error:
                    text = f"{type(error).__name__}: {error}"
                    yield {"image": image, "stage": name, "metric": METRIC, "error": text}
                progress.advance(task)

    def _case(self, image: str, output: Path) -> Case:
        seed = int(self.images.loc[self.images["image"] == image, "seed"].iloc[0])
        return Case(self._inputs[image], load(output), load(self.folder.target(image)), seed)

    def _store(self, live: Live, name: str, file: Path) -> None:
        case, attribution = live.case, self._map(live, name)
        found = areas(live.upscale, case, attribution)
        buffer = io.BytesIO()
        if name not in RIVALS:
            self.folder.write_image(file.with_suffix(".png"), overlay(case.output, attribution, case.window))
        np.savez(buffer, map=attribution.astype(np.float32), deletion=found.deletion, insertion=found.insertion)
        write_atomic(file, buffer.getvalue())

    def _map(self, live: Live, name: str) -> Float:
        case = live.case
        side = max(1, self.settings.block // self.suite.scale)
        if name == "lam":
            return lam(live.gradient, case, self.settings.steps)
        if name == "occlusion":
            return occlusion(live.upscale, case, side)
        if name == "cem":
            others = np.stack([pixels for image, pixels in self._inputs.items() if image != live.image])
            return cem(live.upscale, case, Interventions(others, side, self.settings.coarse, self.settings.fine))
        return RIVALS[name](case)

    @cached_property
    def _inputs(self) -> dict[str, Pixels]:
        usable = self.images.loc[self.images["error"] == "", "image"].astype(str)
        return {image: load(self.folder.input(CLEAN.folder, image)) for image in usable}


def overlay(output: Pixels, attribution: NDArray[np.floating], window: Window) -> Pixels:
    """An output (H, W, 3) in grey, the map (h, w) over it in colour, its window framed in white.

    The more opaque the colour, the larger the value against the map's largest; negative values have a colour of their
    own.
    """
    height, width = output.shape[:2]
    grey = np.repeat(output.mean(axis=-1, keepdims=True), 3, axis=-1)
    large = resize(attribution[..., None].astype(np.float64), height, width, "box")
    opacity = np.abs(large) / max(float(np.abs(large).max()), 1e-12)
    colour: Float = np.where(large > 0, HELPS, HURTS)
    picture = to_uint8((1 - opacity) * grey + opacity * colour)
    rows, columns = slice(window.top, window.top + SIDE), slice(window.left, window.left + SIDE)
    for edge in (window.top, window.top + SIDE - 1):
        picture[edge, columns] = 255
    for edge in (window.left, window.left + SIDE - 1):
        picture[rows, edge] = 255
    return picture
