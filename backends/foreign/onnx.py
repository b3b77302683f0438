"""An upscaler in an ONNX file, run by ONNX Runtime on the CPU.

The network maps images (1, 3, H, W), floats from 0 to 1, to images larger by an integer. Other conventions stand in a
YAML file beside it, `model.yaml` beside `model.onnx`: see `Conventions`. What sizes it takes is found by trials.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from backends.base import Batch, Description, Progress, code_digest
from backends.foreign import files
from backends.foreign.files import MAX_SIDE, named, regular_file, required
from harness.errors import one_line

EXTERNAL = re.compile(rb"[\x00\x08]location")
"""How a tensor says that its data lies in another file (`external_data` in onnx.proto): the word after its length.

The length, 8, may be written in more bytes, of which the last is 0; what stands before and after is in any order.
"""
TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
TRIAL = 64
"""Side of the first trial image, and the largest step between sizes that is looked for."""


class Conventions(BaseModel):
    """What an ONNX file does not say of itself; `low` and `high` are its values of black and white."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)
    layout: Literal["nchw", "nhwc"] = "nchw"
    order: Literal["rgb", "bgr"] = "rgb"
    low: float = 0.0
    high: float = 1.0
    licence: str = "not in the file; that of its publisher"
    domain: str = "what it was trained on is not in the file"


@dataclass(frozen=True)
class Sizes:
    """The inputs that a network takes, by their sides in pixels, and how much it enlarges them."""

    minimum: int
    maximum: int
    multiple_of: int
    scale: int


class ONNX:
    """The network of a file.

    Raises:
        ValueError: one line; the file or the YAML beside it cannot be used, or ONNX Runtime is not installed.
    """

    def __init__(self, path: str) -> None:
        file = regular_file(path)
        beside = [notes] if (notes := file.with_suffix(".yaml")).is_file() else []
        conventions = read_conventions(notes) if beside else Conventions()
        self.network = Network(file, conventions)
        sizes = self.network.sizes()
        self.description = Description(
            name="onnx",
            family="other",  # how it was trained is not in the file
            digest=code_digest(Path(__file__), Path(files.__file__), file, *beside),
            scales=(sizes.scale,),
            licence=one_line(conventions.licence),
            domain=one_line(conventions.domain),
            batch_exact=True,
            minimum=sizes.minimum,
            maximum=sizes.maximum,
            multiple_of=sizes.multiple_of,
            max_batch=16,
            progress=True,
        )

    def upscale(self, batch: Batch, progress: Progress) -> NDArray[np.floating]:
        """See `Backend.upscale`. One image after the other: many files have a batch of one built in."""
        outputs = []
        for image in batch.images:
            outputs.append(self.network.run(image))
            progress(len(outputs), len(batch.images))
        return np.stack(outputs)


def read_conventions(path: Path) -> Conventions:
    """The YAML beside a file.

    Raises:
        ValueError: it is not one, or holds something that `Conventions` has not.
    """
    try:
        conventions = Conventions.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except ValidationError as error:
        where, what = error.errors()[0]["loc"], error.errors()[0]["msg"]
        raise ValueError(f"{named(path)}: {one_line(' '.join(map(str, (*where, what))), 160)}") from error
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"{named(path)}: cannot be read as YAML: {one_line(str(error), 160)}") from error
    if not conventions.low < conventions.high:
        raise ValueError(f"{named(path)}: low must be below high")
    return conventions


class Network:
    """A session of ONNX Runtime and the conventions of its images."""

    def __init__(self, path: Path, conventions: Conventions) -> None:
        self.name, self.conventions = named(path), conventions
        self.session = open_session(path)
        inputs, outputs = self.session.get_inputs(), self.session.get_outputs()
        if len(inputs) != 1 or len(outputs) != 1 or len(inputs[0].shape) != 4 or inputs[0].type not in TYPES:
            found = one_line(", ".join(f"{i.name}: {i.type} {i.shape}" for i in inputs), 160)
            raise ValueError(f"{self.name}: one input of four dimensions, of floats, is needed; it has {found}")
        self.input = inputs[0]

    def run(self, image: NDArray[np.uint8]) -> NDArray[np.floating]:
        """(H, W, 3) uint8 to (s H, s W, 3) on the 0..255 scale."""
        c = self.conventions
        x = c.low + image[:, :, :: -1 if c.order == "bgr" else 1].astype(np.float32) / 255 * (c.high - c.low)
        x = x.transpose(2, 0, 1) if c.layout == "nchw" else x
        feed = {self.input.name: np.ascontiguousarray(x[None], TYPES[self.input.type])}
        (y,) = self.session.run(None, feed)
        y = y[0].transpose(1, 2, 0) if c.layout == "nchw" else y[0]
        output: NDArray[np.floating] = (y[:, :, :: -1 if c.order == "bgr" else 1].astype(np.float32) - c.low) * 255
        return output / (c.high - c.low)

    def sizes(self) -> Sizes:
        """What sizes it takes: those written in the file, else what trials find.

        Raises:
            ValueError: it takes none that a client may send, or its output is not an enlarged image.
        """
        n, *rest = self.input.shape
        (height, width), channels = (rest[1:], rest[0]) if self.conventions.layout == "nchw" else (rest[:2], rest[2])
        fixed = {side for side in (height, width) if isinstance(side, int)}
        if len(fixed) > 1 or (isinstance(n, int) and n != 1) or (isinstance(channels, int) and channels != 3):
            raise ValueError(f"{self.name}: takes {self.input.shape}, not one square RGB image; is its layout another?")
        if fixed:
            (side,) = fixed
            if not 1 <= side <= MAX_SIDE:
                raise ValueError(f"{self.name}: takes images of {side} pixels; 1 to {MAX_SIDE} are accepted")
            return Sizes(side, side, 1, self._scale(side))
        return self._tried()

    def _tried(self) -> Sizes:
        scale = self._scale(TRIAL)
        steps = [2**k for k in range(TRIAL.bit_length())]
        step = next((step for step in steps if self._takes(TRIAL + step, scale)), None)
        if step is None:
            raise ValueError(f"{self.name}: takes images of {TRIAL} pixels, but none that are a little larger")
        minimum = next(side for side in (*(step * s for s in steps), TRIAL) if self._takes(side, scale))
        return Sizes(minimum, MAX_SIDE, step, scale)

    def _takes(self, side: int, scale: int) -> bool:
        try:
            return self._scale(side) == scale
        except ValueError:
            return False

    def _scale(self, side: int) -> int:
        """How much larger the output of a trial image is."""
        try:
            shape = self.run(np.full((side, side, 3), 128, np.uint8)).shape
        except Exception as error:
            raise ValueError(f"{self.name}: fails on {side} x {side} pixels: {one_line(str(error), 160)}") from error
        if shape != (shape[0], shape[0], 3) or shape[0] % side or not shape[0]:
            raise ValueError(f"{self.name}: makes {shape} of {side} x {side} pixels, not an enlarged RGB image")
        return int(shape[0] // side)


def open_session(path: Path) -> Any:  # noqa: ANN401 - onnxruntime.InferenceSession
    """ONNX Runtime on what is in this file alone.

    Raises:
        ValueError: it is not ONNX, or keeps its weights in other files.
    """
    onnxruntime = required("onnxruntime", "onnx")
    data = path.read_bytes()
    if EXTERNAL.search(data):
        raise ValueError(f"{named(path)}: keeps weights in other files; save it as one file")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # trials may fail
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # other work has the cores meanwhile
    try:
        return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise ValueError(f"{named(path)}: not a network in ONNX: {one_line(str(error), 160)}") from error
