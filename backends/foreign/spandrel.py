"""Any checkpoint of an architecture that spandrel knows (github.com/chaiNNer-org/spandrel).

The file is read by `files`, not by spandrel, whose reader runs TorchScript; spandrel finds out the architecture and
its sizes.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from backends.base import Batch, Description, Progress, Refused
from backends.device import Device
from backends.foreign import files
from backends.foreign.files import MAX_SIDE, named, read_tensors, regular_file, required
from harness.errors import one_line


class Spandrel:
    """The model of a file; `settings` are `device` and `precision` of `Device`.

    Raises:
        ValueError: one line; the file cannot be used, or spandrel is not installed.
    """

    def __init__(self, path: str, **settings: str) -> None:
        self.device = Device(**settings)
        file = regular_file(path)
        self.model = load(file)
        if self.device.precision == "bfloat16" and not self.model.supports_bfloat16:
            raise ValueError(f"precision=bfloat16: {self.model.architecture.name} does not support it; choose float32")
        self.device.place(self.model.model, own=False)
        self.square = bool(self.model.size_requirements.square)
        self.description = self._describe(self.device.digest(Path(__file__), Path(files.__file__), file))

    def _describe(self, digest: str) -> Description:
        model, sizes = self.model, self.model.size_requirements
        tags = one_line(" ".join(model.tags), 60)
        return Description(
            name="spandrel",
            family="other",  # how it was trained is not in the file
            digest=digest,
            scales=(model.scale,),
            licence="not in the file; that of the checkpoint's publisher",
            domain=f"{model.architecture.name} {tags}, {model.purpose}; what it was trained on is not in the file",
            batch_exact=True,
            minimum=max(1, sizes.minimum),
            maximum=max(MAX_SIDE, sizes.minimum),
            multiple_of=sizes.multiple_of,
            device=self.device.name,
            precision=self.device.precision,
            max_batch=16,
            progress=True,
        )

    @torch.inference_mode()
    def upscale(self, batch: Batch, progress: Progress) -> NDArray[np.floating]:
        """See `Backend.upscale`. One image after the other, as spandrel asks."""
        if self.square and batch.images.shape[1] != batch.images.shape[2]:
            raise Refused("images[0]", "is not square; this model takes square images")
        outputs = []
        for image in batch.images:
            outputs.append(self._forward(image))
            progress(len(outputs), len(batch.images))
        return np.stack(outputs)

    def _forward(self, image: NDArray[np.uint8]) -> NDArray[np.floating]:
        """(H, W, 3) to (s H, s W, 3) on the 0..255 scale."""
        x = torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255
        x = x.contiguous(memory_format=torch.channels_last).to(self.device.where)
        with self.device.autocast():
            y = self.model(x)[0].float()
        output: NDArray[np.floating] = (y * 255).permute(1, 2, 0).cpu().numpy()
        return output


def load(path: Path) -> Any:  # noqa: ANN401 - spandrel's ImageModelDescriptor
    """The model of a file, which takes and gives one RGB image.

    Raises:
        ValueError: one line; spandrel knows no architecture with these weights, or it is not one of that kind.
    """
    spandrel = required("spandrel", "spandrel")
    state = spandrel.canonicalize_state_dict(read_tensors(path))
    try:
        model = spandrel.ModelLoader().load_from_state_dict(state)
    except spandrel.UnsupportedModelError as error:
        raise ValueError(f"{named(path)}: spandrel knows no architecture with these weights") from error
    except Exception as error:  # its architectures raise whatever a strange shape makes them
        reason = f"{type(error).__name__}: {one_line(str(error), 160)}"
        raise ValueError(f"{named(path)}: spandrel cannot build its architecture: {reason}") from error
    if not isinstance(model, spandrel.ImageModelDescriptor) or (model.input_channels, model.output_channels) != (3, 3):
        raise ValueError(f"{named(path)}: {model.architecture.name} does not map an RGB image to an RGB image")
    return model
