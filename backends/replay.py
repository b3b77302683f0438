"""Serves outputs that were computed elsewhere, matched by image id: for models that cannot be served themselves.

`outputs` is a folder of images (the id is the file's stem) or a parquet file with an image column (bytes and path,
as Hugging Face writes it; the id is the path's stem). An image without an output is refused, and so counted as failed.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backends.base import Batch, Description, Progress, Refused, code_digest
from harness.errors import HarnessError, one_line
from harness.images import SUFFIXES, decode, read

Outputs = dict[str, Callable[[], bytes]]


class Replay:
    """Precomputed outputs as a backend; `outputs` names the folder or the parquet file.

    Raises:
        ValueError: there is nothing to serve at `outputs`, or two outputs have one id.
    """

    def __init__(self, outputs: str) -> None:
        self.stored = stored_outputs(outputs)
        self.description = Description(
            name="replay",
            family="replay",
            digest=hashlib.sha256(f"{code_digest(Path(__file__))} {_content(self.stored)}".encode()).hexdigest(),
            scales=tuple(range(1, 65)),
            licence="that of the outputs",
            domain=f"the {len(self.stored)} images whose outputs lie in {Path(outputs).name[:100]}",
            batch_exact=True,
        )

    def upscale(self, batch: Batch, progress: Progress) -> NDArray[np.uint8]:
        """See `Backend.upscale`."""
        height, width = (n * batch.scale for n in batch.images.shape[1:3])
        output = np.stack([self._output(i, name, height, width) for i, name in enumerate(batch.ids)])
        progress(1, 1)
        return output

    def _output(self, index: int, name: str, height: int, width: int) -> NDArray[np.uint8]:
        if not name:  # the warm-up: no request has an empty id
            return np.zeros((height, width, 3), np.uint8)
        load = self.stored.get(name) or self.stored.get(name.rpartition("#")[0])
        if load is None:
            raise Refused(f"images[{index}].id", f"{name[:80]!r} has no stored output")
        try:
            image = decode(load(), name=name[:80])
        except HarnessError as error:
            raise Refused(f"images[{index}].id", str(error)) from error
        if image.shape != (height, width, 3):
            raise Refused("scale", f"the output of {name[:80]!r} is {image.shape[0]} x {image.shape[1]}")
        return image


def stored_outputs(outputs: str) -> Outputs:
    """How to read each output of a folder or a parquet file, by the id of its image.

    Raises:
        ValueError: there are none, or two have one id.
    """
    path = Path(outputs)
    stored = _from_parquet(path) if path.is_file() else _from_folder(path)
    if not stored:
        raise ValueError(f"{path}: holds no output images; give a folder of images or a parquet file")
    return stored


def _from_folder(path: Path) -> Outputs:
    files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
    return _by_stem(path, [(file.name, partial(read, file)) for file in files])


def _from_parquet(path: Path) -> Outputs:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        column = pq.read_table(path, columns=["image"]).column("image")
    except (pa.ArrowInvalid, KeyError, OSError) as error:
        raise ValueError(f"{path}: is not a parquet file with an image column") from error
    return _by_stem(path, [(row["path"] or "", partial(bytes, row["bytes"])) for row in column.to_pylist()])


def _by_stem(path: Path, files: list[tuple[str, Callable[[], bytes]]]) -> Outputs:
    stored: Outputs = {}
    for name, load in files:
        stem = Path(name).stem
        if stem in stored:
            raise ValueError(f"{path}: two outputs are named {one_line(stem, 80)!r}; an image has one output")
        stored[stem] = load
    return stored


def _content(stored: Outputs) -> str:
    total = hashlib.sha256()
    for name in sorted(stored):
        total.update(name.encode() + b"\0" + hashlib.sha256(stored[name]()).digest())
    return total.hexdigest()
