"""Pictures of what is invented and what is uncertain, drawn for the outputs that a report shows.

    maps/hallucination/BACKEND/OUTPUT.png    the output in grey, reddened by the weight of hallucination
    maps/uncertainty/BACKEND/OUTPUT.png      the deviation over seeds; white is `WHITE` levels and more

The rule for who is shown: of each backend that is no control, the output in the middle and the last one by its share of
hallucination, among those with several samples where there are such.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.diversity import stored_samples
from harness.hallucination import DISTANCES, split, triplet
from harness.images import load
from harness.metrics import GREY
from harness.plan import CLEAN
from harness.resize import to_uint8
from harness.score import BASELINE, CONTROL, output_path, scale_of
from harness.scores import Scores
from harness.store import Row, RunFolder, slug
from harness.uncertainty import deviation

Pixels = NDArray[np.uint8]

PLACES = {"middle": 0.5, "worst": 1.0}
RED = np.array([214.0, 39.0, 40.0])
WHITE = 32.0


def draw_maps(folder: RunFolder) -> None:
    """Draw the maps of the outputs that are shown and have none yet."""
    scores = Scores.of(folder)
    for row in example_rows(scores):
        backend = next(b for b in scores.record["backends"] if b["label"] == row["backend"])
        distance = row["metric"].partition("_")[2]
        output = folder.path / row["output"]
        hallucination, uncertainty = _paths(folder, row["backend"], output)
        pictures = triplet(folder, [row["image"]], [output], scale_of(scores.record))
        folder.cached_image(hallucination, partial(reddened, *pictures, distance=distance))
        if files := _samples(scores, backend, row["image"]):
            folder.cached_image(uncertainty, partial(brightened, files))


def example_rows(scores: Scores) -> Iterator[Row]:
    """The outputs that are shown, with the paths of their pictures within the run folder; "" where there is none."""
    part = scores.record["suite"]["content"].get("hallucination")
    metric = f"hallucination_{part['distances'][0]}" if part else ""
    for backend in (b for b in scores.record["backends"] if part and b["label"] not in (BASELINE, CONTROL)):
        table = scores.values(metric)
        values = table[backend["label"]].dropna() if backend["label"] in table else pd.Series(dtype=float)
        sampled = values[values.index.isin(_sampled(scores, backend["label"]))]
        ordered = (sampled if len(sampled) else values).sort_values(kind="stable")
        for place, where in PLACES.items() if len(ordered) else ():
            image = str(ordered.index[round(where * (len(ordered) - 1))])
            row = {"backend": backend["label"], "place": place, "metric": metric, "image": image}
            yield row | {"value": float(ordered[image])} | _pictures(scores, backend, image)


def _sampled(scores: Scores, label: str) -> list[str]:
    rows = scores.rows[(scores.rows["backend"] == label) & (scores.rows["metric"] == "band_spread")]
    return list(rows["image"])


def _samples(scores: Scores, backend: dict[str, Any], image: str) -> list[Path]:
    """The files of an image's samples; none of a deterministic backend, or where some are missing."""
    part = scores.record["suite"]["content"].get("uncertainty")
    if part is None or backend["deterministic"]:
        return []
    images = scores.images[scores.images["image"] == image]
    return stored_samples(scores.folder, scores.record, backend, images, part["samples"]).get(image, [])


def _pictures(scores: Scores, backend: dict[str, Any], image: str) -> dict[str, str]:
    folder = scores.folder
    seed = int(scores.images.loc[scores.images["image"] == image, "seed"].iloc[0])
    output = output_path(folder, backend, CLEAN, image, seed, scale_of(scores.record))
    paths = {"input": folder.input(CLEAN.folder, image), "output": output, "target": folder.target(image)}
    if output is not None:
        paths |= dict(zip(("hallucination", "uncertainty"), _paths(folder, backend["label"], output), strict=True))
    return {k: str(p.relative_to(folder.path)) if p is not None and p.exists() else "" for k, p in paths.items()}


def _paths(folder: RunFolder, label: str, output: Path) -> tuple[Path, Path]:
    maps = folder.path / "maps"
    return maps / "hallucination" / slug(label) / output.name, maps / "uncertainty" / slug(label) / output.name


def reddened(outputs: Pixels, targets: Pixels, plain: Pixels, *, distance: str) -> Pixels:
    """The first of the outputs in grey, each pixel as red as hallucination weighs there: (H, W, 3)."""
    found = split(DISTANCES[distance], outputs, targets, plain)
    weight = (found.weights[0, 0] * found.counted[0])[..., None]
    return to_uint8((1 - weight) * (outputs[0] @ GREY)[..., None] + weight * RED)


def brightened(samples: list[Path]) -> Pixels:
    """The deviation of the outputs in these files, mean of the channels, as grey: (H, W, 3)."""
    sd = deviation(np.stack([load(file) for file in samples])).mean(axis=-1, keepdims=True)
    return to_uint8(255 * np.minimum(sd / WHITE, 1)).repeat(3, axis=-1)
