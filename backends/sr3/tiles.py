"""Predictions of overlapping tiles, fused at every step on the one canvas that all of them are cut from.

The noisy image and its condition are canvases of the whole image. At each network evaluation every tile is cut out of
both, and the predictions are averaged by windows of raised cosines that sum to one everywhere; then the sampler takes
one step on the whole canvas (MultiDiffusion, Bar-Tal et al., arXiv 2302.08113, eq. 5, with smooth weights). Tiles that
are drawn apart and joined at the end would hold different content; here they agree at every step.

A tile reaches a quarter of its side into the next one, and an eighth beyond the image, where it sees its mirror image.
`borders`, where one tile hands over to the next, are thus at the multiples of three quarters of a tile.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

AT_ONCE = 4
"""Tiles that the network gets at once: what bounds the memory beside the canvases."""


@dataclass(frozen=True)
class Span:
    """A tile along one axis: the `places` of the canvas that it sees, (tile,), and those that it answers for.

    The latter are `on` the canvas and `within` the tile; `weights` are those of its prediction there.
    """

    places: Tensor
    on: slice
    within: slice
    weights: Tensor


Tile = tuple[Span, Span]
"""Its rows and its columns."""
Grid = Sequence[Sequence[Tile]]
"""The tiles of a canvas, as many together as are evaluated at once."""


def borders(size: int, tile: int) -> list[int]:
    """The places along an axis of `size` pixels where tiles hand over: a border lies before the pixel."""
    return list(range(_step(tile), size, _step(tile))) if size > tile else []


def _step(tile: int) -> int:
    return tile - tile // 4


def spans(size: int, tile: int, multiple: int) -> list[Span]:
    """The tiles along an axis of `size` pixels; one where it is no longer than a tile.

    Args:
        size: length of the canvas.
        tile: side of a tile, a multiple of 4 `multiple`; one that is longer than the canvas becomes shorter.
        multiple: what the side of an image must be a multiple of, for the network.
    """
    if size <= tile:
        starts, tile, overlap = [0], multiple * -(-size // multiple), 0
    else:
        overlap = tile // 4
        starts = [place - overlap // 2 for place in (0, *borders(size, tile))]
    window = _window(tile, overlap)
    insides = [slice(max(0, start), min(size, start + tile)) for start in starts]
    total = torch.zeros(size, dtype=torch.float64)
    for start, on in zip(starts, insides, strict=True):
        total[on] += window[on.start - start : on.stop - start]
    return [_span(start, on, window, total) for start, on in zip(starts, insides, strict=True)]


def _span(start: int, on: slice, window: Tensor, total: Tensor) -> Span:
    within = slice(on.start - start, on.stop - start)
    weights = (window[within] / total[on]).float()
    return Span(_mirrored(torch.arange(start, start + len(window)), len(total)), on, within, weights)


def _window(tile: int, overlap: int) -> Tensor:
    """1, falling over `overlap` pixels at both ends as (1 + cos) / 2."""
    window = torch.ones(tile, dtype=torch.float64)
    rise = 0.5 - 0.5 * torch.cos(math.pi * (torch.arange(overlap, dtype=torch.float64) + 0.5) / max(1, overlap))
    window[:overlap] = rise
    window[tile - overlap :] = rise.flip(0)
    return window


def _mirrored(places: Tensor, size: int) -> Tensor:
    """Places beyond the ends of an axis as those of the mirror image there: -1 is 0, `size` is size - 1."""
    places = places.remainder(2 * size)
    return torch.where(places < size, places, 2 * size - 1 - places)


def grid(height: int, width: int, tile: int, multiple: int) -> Grid:
    """The tiles of a canvas of `height` x `width` pixels; the rest is as in `spans`."""
    tiles = list(product(spans(height, tile, multiple), spans(width, tile, multiple)))
    return [tiles[start : start + AT_ONCE] for start in range(0, len(tiles), AT_ONCE)]


def fuse(
    predict: Callable[[Tensor], Tensor], canvases: Sequence[Tensor], *, grid: Grid, report: Callable[[], None]
) -> Tensor:
    """The fused predictions for a canvas, of the shape of the last of the canvases, all (1, C, H, W).

    Args:
        predict: maps the tiles of all canvases, joined along the channels, (n, sum of C, tile, tile), to predictions.
        canvases: what the tiles are cut from; the last one has as many channels as a prediction.
        grid: the tiles.
        report: called after each evaluation of `predict`; may raise to cancel.
    """
    fused = torch.zeros_like(canvases[-1])
    for group in grid:
        x = torch.stack([torch.cat([_cut(canvas, tile) for canvas in canvases]) for tile in group])
        for (rows, columns), prediction in zip(group, predict(x), strict=True):
            weights = (rows.weights[:, None] * columns.weights).to(fused.device)
            fused[0, :, rows.on, columns.on] += weights * prediction[:, rows.within, columns.within]
        report()
    return fused


def _cut(canvas: Tensor, tile: Tile) -> Tensor:
    """The (C, tile, tile) part of a canvas that a tile sees."""
    rows, columns = (span.places.to(canvas.device) for span in tile)
    return canvas[0][:, rows[:, None], columns]
