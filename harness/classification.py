"""Classification Accuracy Score: how well a classifier tells real images apart that has seen generated ones only.

A network is trained from nothing on the images of a generator and their classes, and tested on the real images of the
run's dataset (Ravuri and Vinyals 2019). What a generator leaves out or gets wrong the classifier cannot know. The same
network trained on as many real images of each class, of the training split, is what could be reached.

    classification/LABEL.KEY.parquet    image, truth, said: places in the sorted classes; KEY stands for the recipe and
                                        the images of both sides
"""

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from rich.progress import Progress

from harness.generated_sets import REFERENCE, image_sets
from harness.images import load
from harness.resize import resize, to_uint8
from harness.sampling import REAL
from harness.store import RunFolder, read_table, slug
from harness.suite import Generation, Suite, stored_suite

if TYPE_CHECKING:
    import torch

Images = NDArray[np.uint8]
Places = NDArray[np.int64]

CHANNELS = ((3, 24, 2), (24, 48, 2), (48, 96, 2), (96, 96, 1))
"""Channels in and out and stride of each convolution."""
SIDE, BATCH, PASSES, RATE, DECAY, SEED = 64, 64, 12, 0.003, 0.01, 0
RECIPE = (
    f"{len(CHANNELS)} convolutions 3 x 3 (channels in, out, stride {CHANNELS}) with batch norm and ReLU, mean over "
    f"positions, linear layer; RGB -1..1, at most {SIDE} x {SIDE} pixels; AdamW, decay {DECAY}, one-cycle rate {RATE}, "
    f"{PASSES} passes in batches of {BATCH}, half of the images mirrored, seed {SEED}, one thread, from nothing"
)


@dataclass(frozen=True)
class Arm:
    """One classifier: what it is trained and tested on, columns image, class and path, and the classes in order."""

    label: str
    training: pd.DataFrame
    test: pd.DataFrame
    classes: tuple[str, ...]

    def file(self, folder: RunFolder) -> Path:
        """Where its answers are stored."""
        names = [[Path(file).name for file in frame["path"]] for frame in (self.training, self.test)]
        text = json.dumps([RECIPE, self.classes, names])
        key = hashlib.sha256(text.encode()).hexdigest()[:16]
        return folder.path / "classification" / f"{slug(self.label)}.{key}.parquet"

    def answers(self) -> pd.DataFrame:
        """Train, and say of each test image which class it is: columns image, truth and said."""
        labels = [np.array([self.classes.index(c) for c in frame["class"]]) for frame in (self.training, self.test)]
        images = [np.stack([load(file) for file in frame["path"]]) for frame in (self.training, self.test)]
        said = classify(images[0], labels[0], images[1], len(self.classes))
        return pd.DataFrame({"image": self.test["image"].to_list(), "truth": labels[1], "said": said})


def arms(sets: dict[str, pd.DataFrame], label: str) -> tuple[Arm, Arm] | None:
    """The classifier of a backend's images, and that of as many real ones; None for fewer than two classes.

    The classes are those of which there are generated, training and test images.
    """
    made, real, test = sets[label], sets[REAL], sets[REFERENCE]
    counts = {c: min((frame["class"] == c).sum() for frame in (made, real)) for c in sorted(set(test["class"]) - {""})}
    classes = tuple(c for c, count in counts.items() if count)
    if len(classes) < 2:
        return None
    test = test[test["class"].isin(classes)]
    first, second = (pd.concat([frame[frame["class"] == c].head(counts[c]) for c in classes]) for frame in (made, real))
    return Arm(label, first, test, classes), Arm(REAL, second, test, classes)


def measure_classification(folder: RunFolder, progress: Progress) -> None:
    """Train the classifiers whose answers are not stored yet."""
    record = folder.read_record() or {}
    suite = stored_suite(record)
    if suite.generation is None or not suite.generation.classification:
        return
    found = list(_arms(folder, record, suite.generation, suite))
    task = progress.add_task("classifiers", total=len(found))
    for arm in found:
        file = arm.file(folder)
        if not file.exists():
            folder.write_table(str(file.relative_to(folder.path).with_suffix("")), arm.answers())
        progress.advance(task)


def _arms(folder: RunFolder, record: dict[str, Any], part: Generation, suite: Suite) -> Iterator[Arm]:
    sets = image_sets(folder, record, part, suite)
    for label in sets:
        if label not in (REFERENCE, REAL):
            yield from arms(sets, label) or ()


def stored_answers(folder: RunFolder, arm: Arm) -> pd.DataFrame | None:
    """What a classifier has said, by image; None where it was not trained."""
    file = arm.file(folder)
    return read_table(file).set_index("image") if file.exists() else None


def classify(training: Images, labels: Places, test: Images, classes: int) -> Places:
    """The class of each of (M, H, W, 3) test images, by `RECIPE` trained on (N, H, W, 3) images and their (N,) labels.

    The same images give the same answers.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(SEED)
            network = _network(classes)
            _train(network, _prepared(training), torch.from_numpy(labels))
        network.eval()
        with torch.inference_mode():
            logits = [network(_to_model(part)) for part in _portions(_prepared(test))]
        said: Places = torch.cat(logits).argmax(dim=1).numpy()
    finally:
        torch.set_num_threads(threads)
    return said


def _network(classes: int) -> "torch.nn.Module":
    from torch import nn

    layers: list[nn.Module] = []
    for c_in, c_out, stride in CHANNELS:
        layers += [nn.Conv2d(c_in, c_out, 3, stride, 1, bias=False), nn.BatchNorm2d(c_out), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(CHANNELS[-1][1], classes))


def _prepared(images: Images) -> "torch.Tensor":
    """(N, 3, h, w) uint8, of `SIDE` pixels a side at most."""
    import torch

    if images.shape[1] > SIDE:
        images = to_uint8(resize(images.astype(np.float32), SIDE, SIDE))
    return torch.from_numpy(images).permute(0, 3, 1, 2)


def _to_model(images: "torch.Tensor") -> "torch.Tensor":
    return images.float() / 127.5 - 1


def _portions(x: "torch.Tensor") -> Iterator["torch.Tensor"]:
    return (x[start : start + BATCH] for start in range(0, len(x), BATCH))


def _train(network: "torch.nn.Module", x: "torch.Tensor", y: "torch.Tensor") -> None:
    import torch

    steps = PASSES * -(-len(x) // BATCH)
    optimizer = torch.optim.AdamW(network.parameters(), lr=RATE, weight_decay=DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps)
    for indices in (part for _ in range(PASSES) for part in _portions(torch.randperm(len(x)))):
        mirrored = torch.rand(len(indices))[:, None, None, None] < 0.5
        batch = torch.where(mirrored, x[indices].flip(3), x[indices])
        loss = torch.nn.functional.cross_entropy(network(_to_model(batch)), y[indices])
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
