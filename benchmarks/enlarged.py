"""Photos enlarged by bicubic x4 and scored, as the benchmarks of the audit's statistics use them."""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.datasets import Dataset
from harness.degrade import make_input, make_target
from harness.errors import ConfigError, ImageError, one_line
from harness.metrics import score
from harness.resize import resize, to_uint8

LOW, HIGH = 16, 64

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Enlarged:
    """Targets, inputs and bicubic outputs, (N, side, side, 3), and the labels of the photos in the same order."""

    targets: Images
    inputs: Images
    outputs: Images
    labels: pd.DataFrame

    def psnr(self, outputs: Images | None = None) -> NDArray[np.float64]:
        """PSNR in dB of the outputs, the bicubic ones if none are given, each against its target."""
        return score("psnr", self.outputs if outputs is None else outputs, self.targets, self.inputs, HIGH // LOW)


def enlarge(dataset: Dataset) -> Enlarged:
    """All usable photos of a dataset at 16 pixels and enlarged to 64.

    Raises:
        ConfigError: none can be used.
    """
    targets, labels, unusable = [], [], ["it has no photos"]
    for record in dataset.records:
        try:
            targets.append(make_target(dataset.image(record), HIGH))
            labels.append(record.labels)
        except ImageError as error:
            unusable.append(str(error))
    if not targets:
        raise ConfigError(f"{dataset.spec}: no photo can be used: {one_line(unusable[-1])}")
    inputs = np.stack([make_input(target, LOW) for target in targets])
    outputs = to_uint8(resize(inputs.astype(np.float64), HIGH, HIGH))
    return Enlarged(np.stack(targets), inputs, outputs, pd.DataFrame(labels))
