"""Seams of backends that work by tiles: `python -m benchmarks.seams BACKEND PHOTO...`.

Each PHOTO is an input of more than one tile, BACKEND one of `BORDERS` as a run names it, options and all. For each
border between tiles the mean gradient across it, |difference of the pixels on its two sides|, is compared with that
across parallel lines: those nearer to it than to another border that lie, like it, between two pixels of the input,
where any enlargement is steeper than within one. The ratio over all borders has a bootstrap interval over borders. What
is in the photos has part in it, more where there are few borders; bicubic's at the same places tells how much. Exit
status 1 when the backend's ratio is not within `TOLERANCE` of 1.
"""

import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends import realesrgan
from backends.sr3 import tiles
from harness.client import Client, Item, typed_options
from harness.errors import ConfigError, HarnessError, one_line
from harness.images import load
from harness.plan import BackendSpec, parse_backend
from harness.processes import LocalServer
from harness.resize import resize, to_uint8
from harness.statistics import ratio_of_means, resampled_means
from protos.values import Value

Pixels = NDArray[np.uint8]
Float = NDArray[np.float64]
Ratio = tuple[float, float, float]
"""A ratio and its 95 % interval."""

SCALE = 4
TOLERANCE = 0.05
DEADLINE = 3600.0


def _of_sr3(size: int, *, options: dict[str, Value]) -> list[int]:
    return tiles.borders(size, int(options["tile"]))


def _of_realesrgan(size: int, *, options: dict[str, Value]) -> list[int]:  # noqa: ARG001 - its tiles have no options
    return [SCALE * core.start for core in realesrgan.cores(size // SCALE)[1:]]


BORDERS: dict[str, Callable[..., list[int]]] = {"sr3-x4": _of_sr3, "realesrgan": _of_realesrgan}
"""Backend -> places of the borders along an axis of so many output pixels; one lies before the pixel."""


def gradients(image: Pixels, places: Sequence[int]) -> Float:
    """Mean gradient across each border between the columns of an (H, W, 3) image, and across lines near it: (k, 2).

    The borders are at `places`, multiples of `SCALE`; the gradient is on the 0..255 scale.
    """
    between = range(SCALE, image.shape[1], SCALE)
    lines = np.array([np.abs(image[:, x].astype(float) - image[:, x - 1]).mean() for x in between])
    at = np.asarray(places, int) // SCALE - 1
    nearest = np.abs(np.arange(len(lines))[:, None] - at).argmin(axis=1) if len(at) else at
    nearest[at] = -1
    return np.array([(lines[line], lines[nearest == i].mean()) for i, line in enumerate(at)]).reshape(-1, 2)


def seams(images: Sequence[Pixels], borders: Callable[[int], list[int]]) -> Float:
    """`gradients` of the borders in both directions of all images; `borders` tells places along so many pixels.

    Raises:
        ConfigError: there are none.
    """
    both = [gradients(view, borders(view.shape[1])) for image in images for view in (image, image.swapaxes(0, 1))]
    rows = np.concatenate(both)
    if not len(rows):
        raise ConfigError("the photos are no larger than a tile: there are no borders; give larger ones")
    return rows


def ratio(rows: Float) -> Ratio:
    """Gradient across borders over gradient elsewhere, from the rows of `seams`."""
    return ratio_of_means(rows[:, :1], rows[:, 1:])


def ratio_to(rows: Float, control: Float) -> Ratio:
    """`ratio` over that of a control at the same borders: what is in the photos cancels out."""
    means = resampled_means(np.hstack([rows, control]))
    low, high = np.quantile(means[:, 0] / means[:, 1] / (means[:, 2] / means[:, 3]), [0.025, 0.975])
    return ratio(rows)[0] / ratio(control)[0], float(low), float(high)


def outputs(spec: BackendSpec, photos: Sequence[Pixels]) -> tuple[list[Pixels], dict[str, Value]]:
    """What a backend makes of photos, one a request, and the options of the requests."""
    with tempfile.TemporaryDirectory() as folder, LocalServer(spec.name, Path(folder) / "log", spec.settings) as server:
        client = Client(server.address)
        try:
            options = typed_options(spec.options, client.describe())
            replies = [client.upscale([Item("a", photo, 0)], SCALE, options, DEADLINE) for photo in photos]
        finally:
            client.close()
    return [reply.images[0] for reply in replies], options


def measure(backend: str, photos: Sequence[Pixels]) -> tuple[Float, Float]:
    """The `seams` of a backend, named as for a run, and those of bicubic at the same places.

    Raises:
        HarnessError: it is not one of `BORDERS`, it fails, or the photos are no larger than a tile.
    """
    spec = parse_backend(backend)
    if spec.name not in BORDERS:
        raise ConfigError(f"{one_line(spec.name, 40)} does not work by tiles; those that do: {', '.join(BORDERS)}")
    made, options = outputs(spec, photos)
    bicubic = [to_uint8(resize(p.astype(np.float64), SCALE * p.shape[0], SCALE * p.shape[1])) for p in photos]
    borders = partial(BORDERS[spec.name], options=options)
    return seams(made, borders), seams(bicubic, borders)


def main() -> int:
    """Print the table; returns the exit status."""
    if len(sys.argv) < 3:
        print("usage: python -m benchmarks.seams BACKEND PHOTO...", file=sys.stderr)
        return 2
    try:
        found, control = measure(sys.argv[1], [load(Path(path)) for path in sys.argv[2:]])
    except HarnessError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{len(found)} borders: gradient across them over gradient elsewhere, 95 % interval")
    figures = {"backend": ratio(found), "bicubic": ratio(control), "backend / bicubic": ratio_to(found, control)}
    for name, (value, low, high) in figures.items():
        print(f"{name:18} {value:.3f} ({low:.3f} to {high:.3f})")
    return int(abs(figures["backend"][0] - 1) > TOLERANCE)


if __name__ == "__main__":
    sys.exit(main())
