"""Stored maps of attribution, and what they come to: how faithful they are, and how wide outputs look.

    explanations/BACKEND/IMAGE.KEY.MAP.npz    map (h, w); deletion, insertion: its areas (see `harness.faithfulness`)
                                   MAP.png    the map over the output, for people

KEY is that of the output which is explained, and so names the backend's digest, the input, the seed and the options.
Beside the maps of the suite lie those that they have to beat, `RIVALS`. `harness.explainer` makes them all.
"""

import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.attribution import Case, Float, diffusion_index, edge_map, random_map
from harness.datasets import UNKNOWN
from harness.errors import StoreError
from harness.faithfulness import Areas, gains, verdict
from harness.plan import CLEAN
from harness.score import CONTROL, scale_of, stored_outputs
from harness.scores import Scores, mean_interval
from harness.statistics import INSUFFICIENT
from harness.store import RunFolder, slug

Row = dict[str, Any]

RIVALS: dict[str, Callable[[Case], Float]] = {"random": random_map, "edge": edge_map}
"""Maps that no upscaler had a part in."""
METRIC = "explanation"
"""The metric of the rows of failures."""
SHOWN = 4
"""Images whose maps are shown as pictures: those with the smallest seeds."""


@dataclass(frozen=True)
class Explanation:
    """A map (h, w) of an image and its areas."""

    attribution: NDArray[np.float32]
    areas: Areas


def explanation_path(folder: RunFolder, label: str, output: Path, name: str) -> Path:
    """Where a map of a stored output lies."""
    return folder.path / "explanations" / slug(label) / f"{output.stem}.{name}.npz"


def load_explanation(path: Path) -> Explanation:
    """A stored map.

    Raises:
        StoreError: the file is not one.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            found = Areas(float(stored["deletion"]), float(stored["insertion"]))
            return Explanation(np.asarray(stored["map"], np.float32), found)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise StoreError(f"{path}: is damaged; delete it and run the command again") from error


def reason_not_run(backend: dict[str, Any], name: str) -> str:
    """Why a backend (its entry in the record) cannot be explained by a map; "" if it can."""
    if backend["status"] != "ok":
        return "the backend could not be used"
    if backend["family"] == "replay":
        return "stored outputs answer no other input"
    return "no Gradient" if name == "lam" and not backend.get("gradient") else ""


@dataclass(frozen=True)
class _Stored:
    """A backend's stored output of an image, which maps of it lie beside."""

    scores: Scores
    backend: dict[str, Any]
    image: str
    output: Path

    def file(self, name: str) -> Path:
        return explanation_path(self.scores.folder, self.backend["label"], self.output, name)


def tables(scores: Scores) -> dict[str, list[Row]]:
    """Rows by the name of the table; none where the suite asks for no explanations."""
    made: dict[str, list[Row]] = {"explanations": [], "diffusion_index": [], "maps": []}
    part = (scores.record["suite"].get("content") or {}).get("explanations") or {"maps": []}
    maps: list[str] = part["maps"]
    for backend in (b for b in scores.record["backends"] if maps and b["label"] != CONTROL):
        stored = list(_stored(scores, backend))
        found = {name: _areas(stored, name) for name in (*maps, *RIVALS)}
        made["explanations"] += [_faithfulness(backend, name, found) for name in maps]
        made["diffusion_index"] += _diffusion(scores, backend, stored) if "lam" in maps else []
        made["maps"] += _pictures(stored, maps)
    return made


def _stored(scores: Scores, backend: dict[str, Any]) -> Iterator[_Stored]:
    """The outputs of which there is any map, in the order of the images' seeds."""
    images = scores.images.sort_values("seed", kind="stable")
    outputs = stored_outputs(scores.folder, images, backend, CLEAN, scale_of(scores.record))
    every = (_Stored(scores, backend, image, output) for image, output in outputs.items())
    return (one for one in every if any(one.file(name).exists() for name in RIVALS))


# Faithfulness


def _areas(stored: list[_Stored], name: str) -> pd.DataFrame:
    """Image -> deletion, insertion and score of a map; images where the blur changes nothing are left out."""
    loaded = {one.image: load_explanation(file).areas for one in stored if (file := one.file(name)).exists()}
    rows = {image: (a.deletion, a.insertion, a.score) for image, a in loaded.items()}
    return pd.DataFrame.from_dict(
        rows, orient="index", columns=["deletion", "insertion", "score"], dtype=float
    ).dropna()


def _faithfulness(backend: dict[str, Any], name: str, found: dict[str, pd.DataFrame]) -> Row:
    """A map against its rivals, on the images that all of them have."""
    common = [image for image in found[name].index if all(image in found[rival].index for rival in RIVALS)]
    mine, *rivals = (found[each].loc[common] for each in (name, *RIVALS))
    row: Row = {"backend": backend["label"], "map": name, "n": len(common)}
    for area in ("deletion", "insertion"):
        row |= _figures(area, **mean_interval(mine[area].to_numpy(float)))
        row |= {f"{rival}_{area}": frame[area].mean() for rival, frame in zip(RIVALS, rivals, strict=True)}
    compared = gains(mine["score"].to_numpy(float), [frame["score"].to_numpy(float) for frame in rivals])
    for rival, gain in zip(RIVALS, compared, strict=True):
        row |= _figures(f"over_{rival}", gain.mean, gain.low, gain.high) | {f"p_{rival}": gain.p_value}
    return row | {"verdict": _said(reason_not_run(backend, name)) or verdict(compared, len(common))}


def _figures(name: str, mean: float, low: float, high: float) -> Row:
    return {name: mean, f"{name}_low": low, f"{name}_high": high}


def _said(reason: str) -> str:
    return f"not run: {reason}" if reason else ""


# The diffusion index


def _diffusion(scores: Scores, backend: dict[str, Any], stored: list[_Stored]) -> Iterator[Row]:
    """Of all images, and of each group; all inputs of a suite with explanations have one size."""
    maps = {one.image: load_explanation(file).attribution for one in stored if (file := one.file("lam")).exists()}
    indices = pd.Series({image: diffusion_index(m) for image, m in maps.items()}, dtype=float).dropna()
    who = {"backend": backend["label"]}
    if reason := _said(reason_not_run(backend, "lam")):
        yield who | {"attribute": "all", "group": "all", "n": 0, "status": reason}
        return
    yield who | {"attribute": "all", "group": "all"} | _index_figures(indices)
    for attribute in scores.attributes:
        groups = scores.groups_of(attribute).reindex(indices.index)
        for group in sorted(set(groups) - {UNKNOWN}):
            yield who | {"attribute": attribute, "group": str(group)} | _index_figures(indices[groups == group])


def _index_figures(indices: "pd.Series[float]") -> Row:
    if len(indices) < INSUFFICIENT:
        return {"n": len(indices), "mean": np.nan, "low": np.nan, "high": np.nan, "status": "insufficient"}
    return {"n": len(indices)} | mean_interval(np.asarray(indices, np.float64)) | {"status": "ok"}


# Pictures


def _pictures(stored: list[_Stored], names: list[str]) -> Iterator[Row]:
    """The pictures of the first images, which lie beside the maps."""
    for one in stored[:SHOWN]:
        for name in names:
            if (picture := one.file(name).with_suffix(".png")).exists():
                folder = one.scores.folder.path
                paths = {"output": str(one.output.relative_to(folder)), "picture": str(picture.relative_to(folder))}
                yield {"image": one.image, "backend": one.backend["label"], "map": name} | paths
