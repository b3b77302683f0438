"""The training kit: configs, order of the data, resumption, what a failure leaves behind, weights and cards."""

import errno
import io
import itertools
import json
import math
import os
import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image
from pydantic import BaseModel, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from backends.base import Batch, SampleBatch
from backends.biggan.backend import BigGAN
from backends.cdm.backend import CDMBase, CDMStage
from backends.checkpoint import LARGEST, build, load_network
from backends.pixels import enlarge, to_images, to_model
from backends.sr3 import backend
from backends.sr3.tiled import SR3Tiled
from backends.sr3.unet import UNet
from backends.training import __main__ as command
from backends.training import card, cdm, loop, operations, student, warm
from backends.training import config as training_config
from backends.training.config import ConfigError, TrainingConfig, load_config
from backends.training.data import batches, class_names, label_vectors, load_classes, load_images, shuffled
from backends.training.diffusion import SR3Task, blurred, noisy, stratified_t
from backends.training.feedforward import Critic, GANTask
from backends.training.labelled import Labelled
from backends.training.loop import Trainer, learning_rate, read_metadata
from backends.training.pairs import Pairs
from backends.training.portraits import nearest
from backends.training.warm import start_from
from harness.metrics import lpips_network, score
from harness.resize import resize, to_uint8
from protos.values import Value

pytestmark = pytest.mark.usefixtures("one_thread")

SRRESNET: dict[str, Any] = {"kind": "srresnet", "channels": 8, "blocks": 1}
TINY: dict[str, Any] = {
    "name": "tiny",
    "task": "sr3",
    "train": "parquet:faces#train",
    "validation": "parquet:faces#validation",
    "low": 4,
    "high": 16,
    "network": {"kind": "unet", "channels": 8, "multipliers": [1, 2], "blocks": 1, "patch": 2},
    "steps": 6,
    "batch": 4,
    "warmup": 2,
    "checkpoint_every": 3,
}
GAN = {
    "task": "gan",
    "high": 32,
    "network": {"kind": "srresnet", "channels": 4, "blocks": 1},
    "adversarial": {"pretrain": 2, "critic_channels": 4},
}
STUDENT: dict[str, object] = {
    "name": "tiny",
    "task": "student",
    "distillation": {"teacher": "teacher", "sampler_steps": 2, "pretrain": 4, "critic_channels": 4},
}
CROPS: dict[str, object] = {"crops": {"photo": 20, "sharpest": 6}}


def config(**changes: object) -> TrainingConfig:
    """A training of seconds."""
    return TrainingConfig.model_validate(TINY | changes)


def write_config(folder: Path, **changes: object) -> Path:
    """The same as a file."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(TINY | changes))
    return path


def write_faces(folder: Path, split: str, count: int) -> None:
    """A parquet file of smooth pictures, some wider than high, with labels."""
    rng = np.random.default_rng(count)
    rows: list[dict[str, object]] = []
    for i in range(count):
        picture = to_uint8(resize(rng.uniform(0, 255, (4, 4, 3)), 36, 36 + i % 3))
        buffer = io.BytesIO()
        Image.fromarray(picture).save(buffer, "PNG")
        image = {"bytes": buffer.getvalue(), "path": None}
        rows.append({"image": image, "age": 20 + i, "gender": ("male", "female")[i % 2], "race": "asian"})
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}-00000-of-00001.parquet")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with ten pictures to train on."""
    work = tmp_path / "work"
    write_faces(work / "faces", "train", 10)
    write_faces(work / "faces", "validation", 3)
    write_teacher(tmp_path / "weights")
    monkeypatch.setattr(student, "FOLDER", tmp_path / "weights")
    monkeypatch.chdir(work)
    return work


def write_teacher(folder: Path) -> None:
    """A diffusion model of the size of the tiny networks, whose answers depend on the noise."""
    sizes = {k: v for k, v in TINY["network"].items() if k != "kind"} | {"c_in": 6}
    network = UNet(**sizes)
    torch.nn.init.normal_(network.exit.weight, std=0.05, generator=torch.Generator().manual_seed(0))
    folder.mkdir()
    metadata = {"network": json.dumps(sizes), "std": "0.1", "low": "4", "high": "16"}
    save_file(network.state_dict(), folder / "teacher.safetensors", metadata)


def train(config: TrainingConfig) -> Trainer:
    """Train, or continue, in the folder that the command uses."""
    trainer = Trainer(config, Path("runs/training") / config.name)
    trainer.train()
    return trainer


def checkpoint() -> dict[str, Tensor]:
    """The tensors of the tiny training's checkpoint."""
    return load_file("runs/training/tiny/checkpoint.safetensors")


def logged_steps() -> list[int]:
    """The steps in the tiny training's log."""
    return [json.loads(line)["step"] for line in Path("runs/training/tiny/log.jsonl").read_text().splitlines()]


def run_main(monkeypatch: pytest.MonkeyPatch, main: Callable[[], int], *arguments: object) -> int:
    """A command line in this process."""
    monkeypatch.setattr(sys, "argv", ["command", *map(str, arguments)])
    return main()


# Configs


@pytest.mark.parametrize("path", sorted((Path(card.__file__).parent / "configs").glob("*.yaml")), ids=lambda p: p.stem)
def test_shipped_configs_are_valid(path: Path) -> None:
    """Every config of the repository loads and is named after its file."""
    assert load_config(path).name == path.stem


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"steps": 0}, "steps"),
        ({"steps": "many"}, "steps"),
        ({"task": "painter"}, "task"),
        ({"task": "gan"}, "the task gan trains a network of kind srresnet or rrdb"),
        ({"task": "gan", "network": {"kind": "rrdb"}}, "needs the field adversarial"),
        ({"adversarial": {"pretrain": 1}}, "needs the field adversarial"),
        ({"task": "student"}, "needs the field distillation"),
        ({"task": "portraits", "races": {"asian": 3}}, "the task portraits has no field races"),
        ({"task": "student", "distillation": {"teacher": "../x", "pretrain": 1}}, "distillation.teacher"),
        ({"target": "x"}, "target"),
        ({"task": "regression", "target": "eps", "blur": 0.5}, "the task regression has no field blur"),
        ({"task": "cdm-sr", "augmentation": 0.1, "level": 0.2}, "level must not be above augmentation, 0.1"),
        ({"task": "cdm-base", "races": {"asian": 3}}, "the task cdm-base has no field races"),
        ({"task": "cdm-base", "classes": ["height"]}, "classes.0"),
        ({"task": "cdm-base", "classes": ["race", "race"]}, "classes: a label is there twice"),
        ({"task": "biggan", "network": {"kind": "biggan"}, "high": 64}, "needs the field hinge"),
        ({"task": "biggan", "network": {"kind": "biggan"}, "high": 128, "hinge": {}}, "high must be 64"),
        ({"network": {"kind": "transformer"}}, "network"),
        ({"name": "../x"}, "name"),
        ({"ema": 1.0}, "ema"),
        ({"learning_rate": math.nan}, "learning_rate"),
        ({"learning_rate": math.inf}, "learning_rate"),
        ({"learnig_rate": 1.0}, "learnig_rate: there is no such field; did you mean learning_rate?"),
        ({"validation": "utkface:faces#test"}, "validation: a test split is for measuring alone"),
        (CROPS | {"augmentation": 0.3}, "crops have no augmentation"),
        ({"train": "synthetic"}, "train: the embedded portraits are for demonstrations alone"),
        ({"network": {"kind": "unet", "chanels": 8}}, "chanels: there is no such field"),
        ({"network": {"kind": "unet", "channels": 9}}, "channels"),
        ({"network": {"kind": "unet", "multipliers": []}}, "multipliers"),
        ({"network": {"kind": "unet", "multipliers": [1, 0]}}, "multipliers.1"),
        ({"high": 18}, "high must be a multiple of 4"),
        ({"low": 5}, "high must be a multiple of low"),
        ({"low": 16}, "high must be above low, 16: the task sr3 enlarges"),
        ({"task": "cdm-sr", "low": 16}, "high must be above low, 16: the task cdm-sr enlarges"),
        ({**GAN, "high": 12}, "high / low is 3: the task gan enlarges by 2, 4, 8 or 16"),
        ({**GAN, "high": 128}, "high / low is 32: the task gan enlarges by 2, 4, 8 or 16"),
        ({"seed": 10**30}, "seed"),
        ({"seed": -1}, "seed"),
        ({**STUDENT, "distillation": {"teacher": "teacher", "pretrain": 1, "share": 1.1}}, "distillation.share"),
        ({"network": {"kind": "unet", "patch": 17}}, "network.unet.patch"),
        ({"crops": {"photo": 18, "sharpest": 2}}, "crops.photo must be at least high, 16, and a multiple of"),
        ({"crops": {"photo": 40, "sharpest": 2}, "high": 20}, "high must be a multiple of 16: a crop is a tile"),
        ({"crops": {"photo": 20, "sharpest": 2}, "races": {"asian": 3}}, "take one out"),
        (
            {
                "task": "student",
                "distillation": {"teacher": "teacher", "pretrain": 1},
                "network": TINY["network"] | {"input_skip": 1},
            },
            "the task student trains no network with an input_skip",
        ),
        ({"more\n\x1b[31m" + "x" * 1000: 1}, "there is no such field"),
    ],
)
def test_a_wrong_field_is_named_with_its_file(tmp_path: Path, changes: dict[str, object], named: str) -> None:
    """The message is one line: the file, the field, what is wrong."""
    path = write_config(tmp_path, **changes)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert named in message
    assert message.isprintable()
    assert len(message) < len(str(path)) + 400


@pytest.mark.parametrize("task", ["portraits", "cdm-base"])
def test_a_model_that_enlarges_nothing_may_have_low_equal_high(task: str) -> None:
    """Its images are of one size."""
    assert config(task=task, low=16).low == 16


@pytest.mark.parametrize(
    "sizes", [training_config.UNet, training_config.SRResNet, training_config.RRDB, training_config.BigGAN]
)
def test_no_network_is_larger_than_can_be_loaded(sizes: type[BaseModel]) -> None:
    """Each size may be as large as weights that are loaded may have it, and no larger."""
    kind = sizes.model_fields["kind"].annotation
    for name in sizes.model_fields.keys() - {"kind"}:
        first, second = ([n] if name == "multipliers" else n for n in (LARGEST[name], LARGEST[name] + 8))
        sizes.model_validate({"kind": get_args(kind)[0], name: first})
        with pytest.raises(ValidationError, match=name):
            sizes.model_validate({"kind": get_args(kind)[0], name: second})


@pytest.mark.parametrize(
    "content",
    [b"", b"[1, 2]", b"steps: [", b"\xff\xfe\x00", b"a: 2024-13-99", b"[" * 100_000, b"!!python/object:os.x {}"],
)
def test_a_file_that_is_no_config_gets_one_line(tmp_path: Path, content: bytes) -> None:
    """Empty, broken, binary or hostile files are refused with the file's name."""
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert str(caught.value).isprintable()


# Learning rate and order


def test_learning_rate_warms_up_and_ends_at_its_final_value() -> None:
    """Linear to the first value within `warmup` steps, then falling to the final one and staying there."""
    c = config(steps=100, warmup=10, learning_rate=1e-3, final_learning_rate=1e-5)
    rates = [learning_rate(c, step) for step in range(101)]
    np.testing.assert_allclose(rates[:10], np.arange(1, 11) * 1e-4)
    assert rates[10] == pytest.approx(1e-3)
    assert all(np.diff(rates[10:]) < 0)
    assert rates[55] == pytest.approx((1e-3 + 1e-5) / 2)
    assert rates[100] == pytest.approx(1e-5)
    assert learning_rate(c, 1000) == pytest.approx(1e-5)


def take(count: int, first: int = 0, seed: int = 0) -> list[tuple[int, list[int]]]:
    """Some (step, indices) over 11 images in batches of 3, three batches an epoch."""
    drawn = itertools.islice(batches(11, 3, seed, first), count)
    return [(step, indices.tolist()) for step, indices in drawn]


@pytest.mark.parametrize("first", range(8))
def test_the_order_can_be_taken_up_at_any_step(first: int) -> None:
    """From any step on the order is the one of an uninterrupted training."""
    assert take(5, first) == take(13)[first : first + 5]


def test_held_out_photos_are_in_an_order_of_chance(folder: Path) -> None:
    """The first, which figures are taken on, are no block of the dataset; the order stays, and classes go with it."""
    write_faces(folder / "faces", "validation", 30)
    settings = config(task="cdm-base", classes=["gender"])
    photos, classes = load_images(settings.validation, 16), load_classes(settings.validation, ["gender"])
    for data in (Labelled(settings), Pairs(config()), Labelled(settings)):
        places = [int(np.flatnonzero((photos == photo).all(axis=(1, 2, 3)))[0]) for photo in data.held_out]
        assert sorted(places) == list(range(30))
        assert max(places[:10]) >= 15
        assert places == shuffled(30).tolist()
        if isinstance(data, Labelled):
            assert data.held_out_classes.tolist() == classes[places].tolist()


def test_each_epoch_is_another_permutation() -> None:
    """No image twice in an epoch, all images over the epochs, and seeds and epochs differ in order."""
    epochs = [[i for _, indices in take(3, first=3 * e) for i in indices] for e in range(12)]
    assert all(len(set(epoch)) == 9 for epoch in epochs)
    assert {i for epoch in epochs for i in epoch} == set(range(11))
    assert len({tuple(epoch) for epoch in epochs}) == 12
    assert take(3) != take(3, seed=1)


def test_noise_levels_cover_the_whole_range() -> None:
    """One time in each of `count` equal strata, in mixed order."""
    t = stratified_t(32, torch.Generator().manual_seed(0))
    assert sorted((t * 32).floor().tolist()) == list(range(32))
    assert t.tolist() != sorted(t.tolist())


# Data and task


@pytest.mark.usefixtures("folder")
def test_training_sees_what_the_backend_will_see() -> None:
    """The task's low-resolution images and enlarged conditions are those of the server's resize and rounding."""
    task = SR3Task(config())
    pairs = task.pairs
    low = pairs.resizer.down(to_model(pairs.images))
    expected = np.stack([to_uint8(resize(image.astype(np.float64), 4, 4)) for image in pairs.images])
    received: NDArray[np.uint8] = ((low + 1) * 127.5).round().permute(0, 2, 3, 1).numpy().astype(np.uint8)
    np.testing.assert_array_equal(received, expected)
    torch.testing.assert_close(pairs.resizer.up(low), enlarge(expected, 4), atol=1e-5, rtol=0)
    residual = to_model(pairs.images) - enlarge(expected, 4)
    assert pairs.std == pytest.approx(float(residual.std()), rel=1e-3)


def test_blur_and_noise_are_of_the_inputs_alone() -> None:
    """Blur smooths about half of the images and keeps flat ones; noise is z_s ~ q(z_s | z), at s = 0 none."""
    rng = torch.Generator().manual_seed(0)
    low = torch.rand((64, 3, 8, 8), generator=rng)
    changed = (blurred(low, 1.0, rng) != low).flatten(1).any(dim=1)
    assert 20 < int(changed.sum()) < 44
    assert (blurred(low, 2.0, rng).var() < low.var()).all()
    flat = torch.full((8, 3, 8, 8), 0.25)
    torch.testing.assert_close(blurred(flat, 2.0, rng), flat)
    assert blurred(low, 0, rng) is low
    with_noise, gamma = noisy(flat, torch.linspace(0, 0.7, 8), rng)
    assert torch.equal(with_noise[0], flat[0])
    for s, told, image in zip(torch.linspace(0, 0.7, 8), gamma, with_noise, strict=True):
        assert float(told) == pytest.approx(math.cos(float(s) * math.pi / 2) ** 2)
        noise = image - math.sqrt(told) * 0.25
        assert float(noise.std()) == pytest.approx(math.sqrt(1 - told), rel=0.25, abs=1e-6)


@pytest.mark.usefixtures("folder")
def test_crops_are_of_the_sharpest_photos_and_of_whole_inputs() -> None:
    """The photos with the highest sharpness are kept; a crop of photo and enlarged input is from one place of both."""
    task = SR3Task(config(**CROPS))
    every = load_images("parquet:faces#train", 20)
    sharpness = score("sharpness", every, None, every, 1)
    np.testing.assert_array_equal(task.pairs.images, every[np.sort(np.argsort(-sharpness)[:6])])
    hr = to_model(task.pairs.images)
    rng = torch.Generator().manual_seed(0)
    seen, up = task._seen(hr, task._condition(task.pairs.resizer.down(hr), rng)[0], rng)
    assert seen.shape == up.shape == (6, 3, 16, 16)
    low = np.stack([to_uint8(resize(image.astype(np.float64), 5, 5)) for image in task.pairs.images])
    places = [
        (top, left)
        for i in range(6)
        for top, left in itertools.product((0, 4), repeat=2)
        if torch.equal(seen[i], hr[i, :, top : top + 16, left : left + 16])
        and torch.allclose(up[i], enlarge(low[i : i + 1], 4)[0, :, top : top + 16, left : left + 16], atol=1e-5)
    ]
    assert len(places) == 6
    assert len(set(places)) > 1


@pytest.mark.usefixtures("folder")
def test_a_training_on_crops_serves_photos_by_tiles() -> None:
    """Its weights tell the tile; more photos than there are cannot be the sharpest."""
    settings = config(**CROPS)
    trainer = train(settings)
    path = card.export(settings, *trainer.task.export())
    served = SR3Tiled(str(path.resolve()))
    assert served.description.options[3].default == 16
    with pytest.raises(ConfigError, match="sharpest: 11 images are asked for, parquet:faces#train has 10"):
        SR3Task(config(crops={"photo": 20, "sharpest": 11}))


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "kind", [{}, {"target": "eps", "residual": False}, {"augmentation": 0.3, "level": 0.1}], ids=["v", "eps", "noise"]
)
def test_the_backend_serves_what_was_trained(monkeypatch: pytest.MonkeyPatch, kind: dict[str, object]) -> None:
    """The weights say what they predict, at which level: the image is the one that the training's validation drew."""
    settings = config(learning_rate=3e-3, **kind)
    trainer = train(settings)
    monkeypatch.setattr("backends.checkpoint.FOLDER", card.export(settings, *trainer.task.export()).parent)
    assert isinstance(trainer.task, SR3Task)
    images = trainer.task.pairs.images[:2]
    low = np.stack([to_uint8(resize(image.astype(np.float64), 4, 4)) for image in images])
    ours = backend.SR3(weights="tiny")
    options: dict[str, Value] = {"steps": 8, "sampler": "ddim", "schedule": 1.0}
    asked = Batch(low, 4, ("a", "b"), (1, 1), options, levels=(None, None))
    outputs = ours.upscale(asked, lambda _done, _total: None)
    drawn = []
    for image in low:
        rng = torch.Generator().manual_seed(1)
        with torch.no_grad():
            seen = trainer.task._condition(to_model(image[None]), rng, at=settings.level)
            drawn.append(trainer.task._sample(trainer.average, *seen, rng))
    difference = np.abs(outputs - to_images(torch.cat(drawn)))
    assert difference.mean() < 0.5  # the training's validation computes in bfloat16
    assert difference.mean() < 0.1 * np.abs(outputs - outputs.mean()).mean()
    formulation = trainer.task.formulation
    assert (ours.formulation.target, ours.formulation.residual) == (formulation.target, formulation.residual)


def test_images_are_decoded_once(folder: Path) -> None:
    """The second time they come from the cache, of the same bytes."""
    first = load_images("parquet:faces#train", 16)
    (cache,) = (folder / ".cache/training").iterdir()
    assert first.shape == (10, 16, 16, 3)
    written = cache.stat().st_mtime_ns
    np.testing.assert_array_equal(load_images("parquet:faces#train", 16), first)
    assert cache.stat().st_mtime_ns == written


@pytest.mark.parametrize("kept", [0, 50, -1])
def test_a_damaged_cache_is_made_anew(folder: Path, kept: int) -> None:
    """Images, or a teacher's samples, whose file is empty or was cut short are made again."""
    images, samples = load_images("parquet:faces#train", 16), student.StudentTask(config(**STUDENT)).samples
    for cache in (folder / ".cache/training").rglob("*.npy"):
        cache.write_bytes(cache.read_bytes()[:kept])
    np.testing.assert_array_equal(load_images("parquet:faces#train", 16), images)
    np.testing.assert_array_equal(student.StudentTask(config(**STUDENT)).samples, samples)


def test_two_trainings_may_cache_the_same_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One writes the file while the other one does; nothing but the file is left."""
    save = np.save

    def save_beside_another(path: Path, images: NDArray[np.uint8]) -> None:
        save(path, images)
        monkeypatch.setattr(np, "save", save)
        load_images("parquet:faces#train", 16)

    monkeypatch.setattr(np, "save", save_beside_another)
    assert load_images("parquet:faces#train", 16).shape == (10, 16, 16, 3)
    assert len(list((folder / ".cache/training").iterdir())) == 1


def test_labels_become_vectors() -> None:
    """One race, one gender, the age as a share of a century, and a constant that tells labels from none."""
    assert label_vectors(["asian"], ["female"], [30]).tolist() == [[0, 0, 1, 0, 0, 0, 1, pytest.approx(0.3), 1]]


def test_nearest_finds_copies_and_mirror_images() -> None:
    """A copy of a training photo is at distance 0, mirrored or not; others are at their pixel distance."""
    photos = np.random.default_rng(0).integers(0, 200, (3, 4, 4, 3), dtype=np.uint8)
    ours = np.stack([photos[1], photos[2][:, ::-1], photos[0] + 10])
    np.testing.assert_allclose(nearest(ours, photos), [0, 0, 10], atol=0.05)


# Training, resumption, failures


ESRGAN = GAN | {
    "network": {"kind": "rrdb", "channels": 4, "growth": 2, "blocks": 1},
    "adversarial": {"pretrain": 2, "critic_channels": 4, "relativistic": True},
}
BASE: dict[str, object] = {"task": "cdm-base"}
STAGE: dict[str, object] = {"task": "cdm-sr", "augmentation": 0.5, "level": 0.2, "blur": 0.5}
BIGGAN: dict[str, object] = {
    "task": "biggan",
    "network": {"kind": "biggan", "channels": 4, "multipliers": [2], "latent": 2, "embedding": 4, "patch": 2},
    "hinge": {"critic_channels": 4},
    "momentum": 0.0,
}
TASKS: dict[str, dict[str, object]] = {
    "sr3": {},
    "sr3-eps": {"target": "eps", "residual": False, "blur": 1.0, "augmentation": 0.3, "level": 0.1},
    "portraits": {"task": "portraits"},
    "regression": {"task": "regression"},
    "srgan": GAN,
    "esrgan": ESRGAN,
    "student": STUDENT,
    "cdm-base": BASE,
    "cdm-sr": STAGE,
    "cdm-sr-plain": STAGE | {"augmentation": 0, "level": 0},
    "biggan": BIGGAN,
}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
def test_an_interrupted_training_ends_like_a_straight_one(
    folder: Path, monkeypatch: pytest.MonkeyPatch, task: dict[str, object]
) -> None:
    """Stopped between checkpoints and continued, a training reaches the same weights, averages and optimiser state."""
    train(config(**task))
    straight = checkpoint()
    other = folder / "other"
    other.mkdir()
    (other / "faces").symlink_to(folder / "faces")
    monkeypatch.chdir(other)
    trainer = Trainer(config(**task), Path("runs/training/tiny"))
    with interrupted(monkeypatch, trainer, at_step=4):
        trainer.train()
    assert logged_steps() == [3]
    assert Trainer(config(**task), Path("runs/training/tiny")).step == 5
    resumed = train(config(**task))
    assert resumed.step == 6
    assert logged_steps() == [3, 6]
    torch.testing.assert_close(checkpoint(), straight, atol=1e-6, rtol=1e-6)


@pytest.mark.usefixtures("folder")
def test_a_second_interrupt_stops_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Someone who presses Ctrl-C twice does not wait for the step; the last checkpoint stays."""
    trainer = Trainer(config(), Path("runs/training/tiny"))
    with interrupted(monkeypatch, trainer, at_step=4, times=2):
        trainer.train()
    assert Trainer(config(), Path("runs/training/tiny")).step == 3


@contextmanager
def interrupted(monkeypatch: pytest.MonkeyPatch, trainer: Trainer, at_step: int, times: int = 1) -> Iterator[None]:
    """Someone presses Ctrl-C in the middle of a step."""
    one_step = trainer.one_step

    def step(number: int, indices: Tensor) -> dict[str, float]:
        for _ in range(times if number == at_step else 0):
            signal.raise_signal(signal.SIGINT)
        return one_step(number, indices)

    monkeypatch.setattr(trainer, "one_step", step)
    with pytest.raises(KeyboardInterrupt):
        yield


def test_training_learns(folder: Path) -> None:
    """The loss on images that were not trained on falls, and the average follows the network."""
    trainer = train(config(steps=60, checkpoint_every=20, learning_rate=3e-3, ema=0.9))
    rows = [json.loads(line) for line in (folder / "runs/training/tiny/log.jsonl").read_text().splitlines()]
    assert [row["images"] for row in rows] == [80, 160, 240]
    assert rows[-1]["validation_loss"] < 0.95 * rows[0]["validation_loss"]
    for slow, fast in zip(trainer.average.parameters(), trainer.parts["network"].parameters(), strict=True):
        torch.testing.assert_close(slow, fast.detach(), atol=0.1, rtol=0)


@pytest.mark.usefixtures("folder")
def test_the_average_follows_its_recurrence() -> None:
    """A step keeps the share min(ema, (1 + step) / (10 + step)) of the average and adds the rest of the network."""
    trainer = Trainer(config(learning_rate=0.05, ema=0.2), Path("runs/training/tiny"))
    expected = [parameter.detach().clone() for parameter in trainer.average.parameters()]
    for step, decay in enumerate((1 / 10, 2 / 11, 0.2, 0.2)):
        trainer.one_step(step, torch.arange(4))
        network = [parameter.detach() for parameter in trainer.parts["network"].parameters()]
        expected = [decay * slow + (1 - decay) * fast for slow, fast in zip(expected, network, strict=True)]
        torch.testing.assert_close(list(trainer.average.parameters()), expected, atol=1e-6, rtol=1e-5)
    assert max(float((a - b).abs().max()) for a, b in zip(expected, network, strict=True)) > 1e-3


def bce(logits: Tensor, target: float) -> Tensor:
    """The mean cross entropy of logits that should say `target`."""
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("relativistic", [False, True])
def test_gan_losses_are_cross_entropies(monkeypatch: pytest.MonkeyPatch, relativistic: bool) -> None:  # noqa: FBT001 - a parameter
    """The critic tells photos from outputs, and the generator has them mistaken; of ESRGAN, by its equations 1 and 2.

    ESRGAN's two terms are averaged here, and so are the critic's two in either.
    """
    alone = {"pretrain": 0, "pixel": 0, "perceptual": 0, "critic": 1, "relativistic": relativistic}
    task = GANTask(config(**GAN | {"adversarial": alone}))
    indices, rng = torch.arange(4), torch.Generator()
    photos = task.pairs.batch(indices, rng.manual_seed(0))
    outputs = task.pairs.resizer.up(task.pairs.resizer.down(photos))  # an untrained generator's

    def judge(images: Tensor, _: Tensor) -> Tensor:
        return 3 * images[:, :1, ::4, ::4] + 40 * (images - outputs).abs().mean()

    monkeypatch.setattr(task, "critic", judge)
    losses = dict(task.losses(0, indices, rng.manual_seed(0)))
    real, fake = judge(photos, outputs), judge(outputs, outputs)
    if relativistic:
        real, fake = real - fake.mean(), fake - real.mean()
        mistaken = (bce(real, 0) + bce(fake, 1)) / 2
    else:
        mistaken = bce(fake, 1)
    torch.testing.assert_close(losses["critic"], (bce(real, 1) + bce(fake, 0)) / 2, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(losses["network"], mistaken, atol=1e-4, rtol=1e-4)
    assert abs(float(real.mean() - fake.mean())) > 0.5


def test_perception_is_lpips() -> None:
    """Distances of features that were computed before are those of the network itself, but for half precision."""
    x, y = 2 * torch.rand((2, 2, 3, 32, 32), generator=torch.Generator().manual_seed(0)) - 1
    y[1] = 0.8 * x[1]
    perception = student.Perception()
    with torch.no_grad():
        expected = lpips_network("vgg")(x, y).flatten()
        ours = perception.distances(perception.features(x), perception.features(y))
    torch.testing.assert_close(ours, expected, atol=0, rtol=0.02)


def student_task(**weights: float) -> student.StudentTask:
    """A student without pretraining, and without the losses that are not named."""
    none = {
        "teacher": "teacher",
        "sampler_steps": 2,
        "pretrain": 0,
        "pixel": 0,
        "perceptual": 0,
        "critic": 0,
        "spread": 0,
    }
    return student.StudentTask(config(**STUDENT | {"distillation": none | weights | {"critic_channels": 4}}))


@pytest.mark.usefixtures("folder")
def test_a_student_pays_for_samples_closer_than_its_teachers() -> None:
    """The spread loss is what an image misses of the teacher's distance; more of it in another makes up for nothing."""
    first, second = 2 * torch.rand((2, 2, 3, 16, 16), generator=torch.Generator().manual_seed(0)) - 1
    ours = torch.stack([first[0], second[1]])
    with torch.no_grad():
        apart = lpips_network("vgg")(first, second).flatten() * torch.tensor([1, 0.5])
        both = torch.cat([first, ours])
        loss = student_task(spread=1, share=1)._distances(both, both, first, apart)
    torch.testing.assert_close(loss, apart[0] / 2, atol=0, rtol=0.02)
    assert float(apart.min()) > 0.05


@pytest.mark.usefixtures("folder")
def test_a_share_of_the_teachers_distance_may_be_enough() -> None:
    """Two samples pay for what they miss of that share only; nothing if they have it."""
    x, y = (2 * torch.rand((2, 3, 16, 16), generator=torch.Generator().manual_seed(0)) - 1)[:, None]
    nearer, lpips = 0.5 * x + 0.5 * y, lpips_network("vgg")
    losses = []
    with torch.no_grad():
        wanted, apart = lpips(x, y).flatten(), float(lpips(x, nearer))
        for share in (1.0, 0.9 * apart / float(wanted)):
            distances = student_task(spread=1, share=share)._distances
            losses += [float(distances(pair, pair, x, wanted)) for pair in (torch.cat([x, nearer]), torch.cat([x, x]))]
    assert losses == pytest.approx([float(wanted) - apart, float(wanted), 0, 0.9 * apart], rel=0.05)
    assert min(apart, float(wanted) - apart) > 0.02


@pytest.mark.usefixtures("folder")
def test_both_faces_of_a_student_are_held_against_the_photo_and_the_teacher() -> None:
    """The perceptual loss is the mean LPIPS-VGG of both to their own photo, the other L1 to their own sample."""
    task, lpips = student_task(perceptual=1), lpips_network("vgg")
    one, other, far = 2 * torch.rand((3, 1, 3, 16, 16), generator=torch.Generator().manual_seed(0)) - 1
    photos, near = torch.cat([one, other]), 0.5 * (other + far)
    ours = torch.cat([one, other, one, near])
    with torch.no_grad():
        loss = task._distances(ours, ours, photos, torch.zeros(2))
        expected, crossed = (lpips(ours, x).mean() for x in (photos.repeat(2, 1, 1, 1), photos[[0, 0, 1, 1]]))
        pixel = student_task(pixel=1)._distances(ours, torch.cat([far, far, one, far]), photos, torch.zeros(2))
    torch.testing.assert_close(loss, expected, atol=0, rtol=0.02)
    assert crossed > 2 * expected
    torch.testing.assert_close(pixel, torch.cat([one - far, other - far, near - far]).abs().sum() / ours.numel())


@pytest.mark.usefixtures("folder")
def test_a_students_critic_tells_photos_from_its_faces(monkeypatch: pytest.MonkeyPatch) -> None:
    """Photos are real to it, both faces of an input are not, and the student learns to have them mistaken."""
    task = student_task(critic=1)
    photos = to_model(task.pairs.images[:4])
    judge = Critic(4).eval()
    seen: list[tuple[Tensor, Tensor]] = []

    def remember(images: Tensor, up: Tensor) -> Tensor:
        seen.append((images, up))
        logits: Tensor = judge(images, up)
        return logits

    monkeypatch.setattr(task, "critic", remember)
    losses = dict(task.losses(0, torch.arange(4), torch.Generator()))
    (real, up), (fake, twice), (again, _) = seen
    torch.testing.assert_close(real, photos)
    torch.testing.assert_close(up, task.pairs.resizer.up(task.pairs.resizer.down(photos)))
    torch.testing.assert_close([twice[:4], twice[4:]], [up, up])
    torch.testing.assert_close(fake, again)
    assert (len(fake), fake.requires_grad, again.requires_grad) == (8, False, True)
    torch.testing.assert_close(losses["critic"], (bce(judge(real, up), 1) + bce(judge(fake, twice), 0)) / 2)
    torch.testing.assert_close(losses["network"], bce(judge(fake, twice), 1))


@pytest.mark.usefixtures("folder")
def test_a_student_is_given_the_noise_of_each_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher makes the sample of that noise and photo, whatever the part that it was drawn in."""
    monkeypatch.setattr(student, "PART", 4)
    task = student_task()
    chosen = torch.tensor([7, 2])
    photos = to_model(task.pairs.images[chosen.numpy()])
    up = task.pairs.resizer.up(task.pairs.resizer.down(photos))
    z, targets = task._draw(chosen)
    samples = task.teacher.sample(torch.cat([up, up]), z).clamp(-1, 1)
    torch.testing.assert_close(samples, targets, atol=0.02, rtol=0)
    assert (targets - targets.roll(1, 0)).abs().mean(dim=(1, 2, 3)).min() > 0.03


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_distances_of_a_teachers_samples_are_taken_once(
    folder: Path, monkeypatch: pytest.MonkeyPatch, lost: int
) -> None:
    """LPIPS-VGG between the two samples of each image, kept part by part; what is there is not taken again."""
    monkeypatch.setattr(student, "PART", 4)
    task = student_task()
    first, second = (to_model(task.samples[:, k]) for k in (0, 1))
    with torch.no_grad():
        expected = lpips_network("vgg")(first, second).flatten()
    torch.testing.assert_close(task.apart, expected, atol=1e-5, rtol=0.03)
    parts = sorted((folder / ".cache/training").glob("distances-*/*.npy"))
    written = [part.stat().st_mtime_ns for part in parts]
    parts[lost].unlink()
    torch.testing.assert_close(student_task().apart, task.apart, atol=0, rtol=0)
    kept = [part.stat().st_mtime_ns == t for part, t in zip(parts, written, strict=True)]
    assert kept == [part != lost for part in range(3)]


def test_a_student_draws_its_teachers_samples_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are kept beside the decoded images, part by part, and what is there is not drawn again."""
    monkeypatch.setattr(student, "PART", 4)
    samples = student.StudentTask(config(**STUDENT)).samples
    assert samples.shape == (10, 2, 16, 16, 3)
    assert len(np.unique(samples.reshape(20, -1), axis=0)) == 20
    parts = sorted((folder / ".cache/training").glob("samples-*/*.npy"))
    assert len(parts) == 3
    written = [part.stat().st_mtime_ns for part in parts]
    parts[1].unlink()
    np.testing.assert_array_equal(student.StudentTask(config(**STUDENT)).samples, samples)
    assert [part.stat().st_mtime_ns == t for part, t in zip(parts, written, strict=True)] == [True, False, True]


@pytest.mark.usefixtures("folder")
def test_a_student_learns_its_teachers_answers() -> None:
    """Its squared error against the teacher's samples of photos that it was not trained on falls."""
    task = student.StudentTask(config(**STUDENT))
    with torch.no_grad():
        before = task.validate(task.network.eval())["validation_loss"]
    changes = STUDENT | {"distillation": {"teacher": "teacher", "sampler_steps": 2, "pretrain": 60}}
    trainer = train(config(**changes, steps=60, checkpoint_every=60, learning_rate=3e-3, ema=0.9))
    with torch.no_grad():
        assert trainer.task.validate(trainer.average)["validation_loss"] < 0.9 * before


@pytest.mark.usefixtures("folder")
def test_a_student_of_fewer_blocks_begins_with_its_teachers() -> None:
    """It takes the first and the last blocks of each level, which are as wide as its own, and all else."""
    torch.manual_seed(1)
    teacher, student_ = (UNet(c_in=6, channels=8, multipliers=(1, 2), blocks=blocks, patch=2) for blocks in (2, 1))
    assert start_from(student_, teacher) == set()
    theirs, ours = teacher.state_dict(), student_.state_dict()
    for name, source in {
        "down.0": "down.0",
        "down.1": "down.2",
        "down.2": "down.3",
        "up.1": "up.2",
        "up.4": "up.6",
    }.items():
        torch.testing.assert_close(ours[f"{name}.conv1.weight"], theirs[f"{source}.conv1.weight"])
    torch.testing.assert_close(ours["middle.1.qkv.weight"], theirs["middle.1.qkv.weight"])


@pytest.mark.usefixtures("folder")
def test_a_training_starts_from_what_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GAN for a larger factor begins with the layers of one for a smaller; weights that are no help are named."""
    small = config(name="small", task="gan", network=SRRESNET, steps=1, adversarial={"pretrain": 1})
    trainer = train(small)
    monkeypatch.setattr(warm, "FOLDER", card.export(small, *trainer.task.export()).parent)
    larger = build(SRRESNET | {"scale": 8})
    warm.start(larger, "small")
    torch.testing.assert_close(
        larger.state_dict()["trunk.0.conv1.weight"],
        trainer.average.state_dict()["trunk.0.conv1.weight"].half().float(),
    )
    with pytest.raises(ConfigError, match="start: nothing of small fits"):
        warm.start(nn.Linear(3, 3), "small")
    with pytest.raises(ConfigError, match=r"start: nobody\.safetensors"):
        warm.start(larger, "nobody")


@pytest.mark.usefixtures("folder")
def test_the_backend_serves_an_exported_student(monkeypatch: pytest.MonkeyPatch) -> None:
    """One step from the trained weights, whatever their name: another seed is another face, the same the same bytes."""
    settings = config(**STUDENT | {"name": "somebodys-own"})
    trainer = train(settings)
    monkeypatch.setattr("backends.checkpoint.FOLDER", card.export(settings, *trainer.task.export()).parent)
    images = np.random.default_rng(0).integers(0, 256, (1, 4, 4, 3), dtype=np.uint8).repeat(3, axis=0)
    batch = Batch(images, 4, ("a", "b", "c"), (1, 2, 1))
    outputs = backend.SR3Fast(weights="somebodys-own").upscale(batch, lambda _done, _total: None)
    assert outputs.shape == (3, 16, 16, 3)
    np.testing.assert_array_equal(outputs[0], outputs[2])
    assert np.abs(outputs[0] - outputs[1]).mean() > 0.1


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"distillation": {"teacher": "nobody", "pretrain": 1}}, "teacher: nobody.safetensors"),
        ({"high": 32}, "teacher enlarges 4 to 16"),
        ({"network": TINY["network"] | {"channels": 16}}, "network: not that of the teacher"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_teacher_that_does_not_fit_is_named(changes: dict[str, object], named: str) -> None:
    """It is missing, or made for other sizes, or another network."""
    with pytest.raises(ConfigError, match=named):
        student.StudentTask(config(**STUDENT | changes))


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    ("said", "message"),
    [
        ({"target": "eps"}, "teacher does not predict v of the residual"),
        ({"residual": "false"}, "teacher does not predict v of the residual"),
        ({"augmentation": "0.3", "level": "0.1"}, "teacher wants noise on its inputs"),
    ],
)
def test_a_teacher_of_another_kind_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: dict[str, str], message: str
) -> None:
    """A student learns v of the residual from inputs as they are: a teacher of anything else would be misread."""
    source, others = tmp_path / "weights" / "teacher.safetensors", tmp_path / "others"
    others.mkdir()
    _, metadata = load_network(source, UNet)
    save_file(load_file(source), others / "teacher.safetensors", metadata | said)
    monkeypatch.setattr(student, "FOLDER", others)
    with pytest.raises(ConfigError, match=message):
        student.StudentTask(config(**STUDENT))


@pytest.mark.usefixtures("folder")
def test_classes_are_the_labels_that_the_config_names() -> None:
    """An image's class is the place of its labels among all that there may be, seen in a split or not."""
    assert class_names(["gender", "race"])[5:7] == ("female white", "female black")
    names = class_names(["race", "gender"])
    assert [names[i] for i in load_classes("parquet:faces#train", ["race", "gender"])[:2]] == [
        "asian male",
        "asian female",
    ]
    assert load_classes("parquet:faces#validation", ["gender"]).tolist() == [0, 1, 0]


@pytest.mark.usefixtures("folder")
def test_the_backend_serves_the_trained_base() -> None:
    """From its weights file it makes the images that the training's validation drew."""
    settings = config(**BASE, learning_rate=3e-3, steps=2)
    trainer = train(settings)
    ours = CDMBase(str(card.export(settings, *trainer.task.export())))
    place = ours.description.classes.index("asian female")
    options: dict[str, Value] = {"steps": cdm.STEPS, "sampler": "dpm++2m", "schedule": 1.0}
    made = ours.generate(SampleBatch(16, ("a",), (1,), options, (place,)), lambda _done, _total: None)
    assert isinstance(trainer.task, cdm.CDMBaseTask)
    labels = trainer.task.data.one_hot(torch.tensor([place]))
    with torch.no_grad():
        drawn = to_images(trainer.task._sample(trainer.average, labels, torch.Generator().manual_seed(1)))
    assert np.abs(made - drawn).mean() < 0.05 * drawn.std()  # the training's validation computes in bfloat16


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("augmentation", [0.5, 0.0])
def test_the_backend_serves_the_trained_stage(augmentation: float) -> None:
    """The level of the config is that at which the stage enlarges: noise first, then the sampler's, from one seed."""
    settings = config(**STAGE | {"augmentation": augmentation, "level": augmentation / 2}, learning_rate=3e-3, steps=2)
    trainer = train(settings)
    ours = CDMStage(str(card.export(settings, *trainer.task.export())))
    assert isinstance(trainer.task, cdm.CDMStageTask)
    task = trainer.task
    first = task.data.photos(torch.tensor([0]))
    low = ((task.resizer.down(first) + 1) * 127.5).round().permute(0, 2, 3, 1).numpy().astype(np.uint8)
    options: dict[str, Value] = {"steps": cdm.STEPS, "sampler": "dpm++2m", "schedule": 1.0}
    place = int(task.data.held_out_classes[0])
    given = Batch(low, 4, ("a",), (1,), options, (place,), (None,))
    made = ours.upscale(given, lambda _done, _total: None)
    with torch.no_grad():
        drawn = to_images(task._sample(trainer.average, torch.tensor([0]), torch.Generator().manual_seed(1)))
    assert np.abs(made - drawn).mean() < 0.05 * drawn.std()
    assert ours.description.classes == task.data.names


@pytest.mark.usefixtures("folder")
def test_the_backend_serves_the_trained_generator() -> None:
    """The weights of the file are those under spectral norm, and the statistics those of the averaged network."""
    settings = config(**BIGGAN, steps=4)
    trainer = train(settings)
    path = card.export(settings, *trainer.task.export())
    assert card._operations(settings, path).endswith("GFLOP a pass and image of 16 x 16 pixels")
    ours = BigGAN(str(path))
    made = ours.generate(SampleBatch(16, ("a", "b"), (1, 2), {}, (0, 3)), lambda _done, _total: None)
    z = torch.stack([torch.randn(ours.latents, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)])
    average = trainer.average
    with torch.no_grad():
        expected = to_images(average(z, torch.tensor([0, 3])))
    assert np.abs(made - expected).mean() < 0.02 * expected.std()
    means = [buffer for name, buffer in average.named_buffers() if name.endswith("running_mean")]
    live = [b for name, b in trainer.parts["network"].named_buffers() if name.endswith("running_mean")]
    assert all(not torch.equal(a, b) for a, b in zip(means, live, strict=True))


def test_a_finished_training_is_left_as_it_is(folder: Path) -> None:
    """Run again, the command has nothing to train."""
    train(config())
    path = folder / "runs/training/tiny/checkpoint.safetensors"
    before = path.read_bytes()
    train(config())
    assert path.read_bytes() == before
    assert logged_steps() == [3, 6]


@contextmanager
def full_disk(limit: int = 20_000) -> Iterator[None]:
    """No file can grow beyond `limit` bytes, less than a checkpoint and more than a log."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextmanager
def bad_disk() -> Iterator[None]:
    """What is written does not reach the disk."""

    def fail(_: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        yield


@pytest.mark.parametrize("failure", [full_disk, bad_disk])
def test_a_failed_write_leaves_the_last_good_checkpoint(
    folder: Path, monkeypatch: pytest.MonkeyPatch, failure: Callable[[], AbstractContextManager[None]]
) -> None:
    """When the disk fails at step 6, the checkpoint of step 3 stays, and the training goes on from there."""
    trainer = Trainer(config(steps=9), Path("runs/training/tiny"))
    write = trainer._checkpoint

    def write_on_failing_disk() -> None:
        with failure() if trainer.step == 6 else nullcontext():
            write()

    monkeypatch.setattr(trainer, "_checkpoint", write_on_failing_disk)
    with pytest.raises((OSError, SafetensorError)):
        trainer.train()
    path = folder / "runs/training/tiny/checkpoint.safetensors"
    assert path.stat().st_size > 100_000
    assert Trainer(config(steps=9), path.parent).step == 3
    train(config(steps=9))
    resumed = checkpoint()
    path.unlink()
    train(config(steps=9))
    torch.testing.assert_close(checkpoint(), resumed, atol=1e-6, rtol=1e-6)


def test_a_full_disk_spoils_no_log(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row that does not fit on the disk leaves the rows before it, and the training logs on from there."""
    train(config(steps=3))
    path, log = write_config(folder), folder / "runs/training/tiny/log.jsonl"
    with full_disk(log.stat().st_size + 20):
        assert run_main(monkeypatch, command.main, path) == 1
    assert capsys.readouterr().err.startswith("error: ")
    assert logged_steps() == [3]
    assert run_main(monkeypatch, command.main, path) == 0
    assert logged_steps() == [3, 6]


def test_a_full_disk_gets_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The command says what happened and how to go on."""
    path = write_config(folder)
    load_images("parquet:faces#train", 16)
    with full_disk():
        assert run_main(monkeypatch, command.main, path) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error.endswith("the same command continues from runs/training/tiny\n")
    assert error.count("\n") == 1


def test_a_training_that_diverges_stops(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """At the first loss that is not finite: one line, the last checkpoint, and no weights."""
    path = write_config(folder, steps=9, learning_rate=1e-3, final_learning_rate=1e30)
    assert run_main(monkeypatch, command.main, path) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: tiny: step 5: the loss of network or its gradient is not finite; ")
    assert error.count("\n") == 1
    assert logged_steps() == [3]
    assert all(value.isfinite().all() for value in checkpoint().values())
    assert not (folder / "backends/weights").exists()


@pytest.mark.usefixtures("folder")
def test_a_network_of_too_many_weights_is_not_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    """Weights of more bytes than can be loaded are refused before the first step."""
    size = 2 * sum(parameter.numel() for parameter in Trainer(config(), Path("runs/a")).average.parameters())
    monkeypatch.setattr(loop, "MAX_BYTES", size - 1)
    with pytest.raises(ConfigError, match=f"tiny: network: {size} bytes of weights; at most {size - 1}"):
        Trainer(config(), Path("runs/b"))


def test_a_checkpoint_without_all_moments_is_refused(folder: Path) -> None:
    """A moment of the optimiser that is missing, or of another shape, is found when the checkpoint is read."""
    train(config(steps=3))
    path = folder / "runs/training/tiny/checkpoint.safetensors"
    tensors, metadata, name = load_file(path), read_metadata(path), "optimizer.network.0.exp_avg"
    others = {k: v for k, v in tensors.items() if k != name}
    without = {k: v for k, v in tensors.items() if not k.startswith("optimizer.network.0.")}
    for changed in (others | {name: torch.zeros(1)}, others, without):
        save_file(changed, path, metadata)
        with pytest.raises(ConfigError, match=r"is damaged .*moments of (parameter 0|a parameter)"):
            Trainer(config(), path.parent)


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize(
    "change", [{"target": "eps"}, {"validation": "parquet:faces#train"}, {"learning_rate": 0.1}], ids=str
)
def test_a_checkpoint_of_another_config_is_refused(change: dict[str, object]) -> None:
    """What a network has been trained for stays the same to the end, but the number of steps may grow."""
    train(config(steps=3))
    with pytest.raises(ConfigError, match=f"is of another config: {next(iter(change))} differs"):
        train(config(**change))
    assert train(config(steps=4)).step == 4


@pytest.mark.parametrize("damage", ["truncated", "other network", "no step", "no config", "older"])
def test_a_checkpoint_that_does_not_fit_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    """A damaged checkpoint, or one of another network, is named and kept."""
    train(config(steps=3))
    path = folder / "runs/training/tiny/checkpoint.safetensors"
    changes: dict[str, object] = {}
    if damage == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif damage == "no step":
        path.write_bytes(path.read_bytes().replace(b'"step":', b'"stop":'))
    elif damage == "no config":
        tensors, metadata = load_file(path), read_metadata(path)
        save_file(tensors, path, metadata | {"config": "[1]"})
    elif damage == "older":
        save_file(load_file(path), path, {"step": "3"})
    else:
        changes["network"] = {"kind": "unet", "channels": 16, "multipliers": [1, 2], "blocks": 1, "patch": 2}
    before = path.read_bytes()
    assert run_main(monkeypatch, command.main, write_config(folder, **changes)) == 2
    error = capsys.readouterr().err
    others = {"other network": "is of another config: network differs", "older": "does not say of which config it is"}
    kind = others.get(damage, "is damaged or of another network")
    assert error.startswith(f"error: runs/training/tiny/checkpoint.safetensors {kind}")
    assert error.count("\n") == 1
    assert path.read_bytes() == before


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"train": "parquet:faces#nothing"}, "nothing"),
        ({"validation": "parquet:absent#train"}, "absent"),
        ({"train": "folder:empty"}, "no images"),
        ({"validation": "parquet:bare#validation"}, "bare"),
        ({"batch": 11}, "batch: 11 is more than the 10 training images"),
    ],
)
def test_data_that_do_not_fit_get_one_line(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    changes: dict[str, object],
    named: str,
) -> None:
    """Missing data, data without images, or fewer of them than a batch, end the command before it trains."""
    (folder / "empty").mkdir()
    write_faces(folder / "bare", "validation", 0)
    assert run_main(monkeypatch, command.main, write_config(folder, **changes)) == 2
    error = capsys.readouterr().err
    assert named in error
    assert error.count("\n") == 1


def start(folder: Path, *arguments: str) -> "subprocess.Popen[str]":
    """The command in a process of its own."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "backends.training", *arguments],
        cwd=folder,
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["absent.yaml"], "error: absent.yaml: No such file or directory"),
        ([], "usage: python -m backends.training CONFIG.yaml"),
    ],
)
def test_a_wrong_command_line_gets_one_line(tmp_path: Path, arguments: list[str], message: str) -> None:
    """Exit status 2, and one line that says what is wrong."""
    with start(tmp_path, *arguments) as process:
        output, error = process.communicate()
    assert (process.returncode, output, error) == (2, "", message + "\n")


def test_ctrl_c_stops_and_says_how_to_continue(folder: Path) -> None:
    """An interrupt ends the command with status 130, says so, and what was trained so far can be resumed."""
    path = write_config(folder, steps=10**6, checkpoint_every=1)
    with start(folder, str(path)) as process:
        assert process.stdout is not None
        for _ in range(3):
            assert "validation_loss" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        _, error = process.communicate()
    assert process.returncode == 130
    assert error == (
        "stopping after this step; Ctrl-C once more stops at once\n"
        "stopped; the same command continues from runs/training/tiny\n"
    )
    assert Trainer(load_config(path), Path("runs/training/tiny")).step >= 2


def test_ctrl_c_before_the_first_step_gets_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An interrupt while the libraries are imported ends the command like any other."""

    class Interrupted:
        def __getattr__(self, _: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "backends.training.loop", Interrupted())
    assert run_main(monkeypatch, command.main, write_config(folder)) == 130
    assert capsys.readouterr().err == "stopped; the same command continues from runs/training/tiny\n"


# Weights and card


@pytest.mark.parametrize(("task", "channels"), [("sr3", 6), ("portraits", 3)])
def test_the_command_writes_weights_that_load(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    task: str,
    channels: int,
) -> None:
    """The averaged weights, as half precision, make the network that was trained."""
    path = write_config(folder, task=task, learning_rate=0.05, ema=0.5)
    assert run_main(monkeypatch, command.main, path) == 0
    path = folder / "backends/weights/tiny.safetensors"
    assert capsys.readouterr().out.endswith("weights: backends/weights/tiny.safetensors\n")
    assert {t.dtype for t in load_file(path).values()} == {torch.float16}
    network, metadata = load_network(path, UNet)
    average = {k.removeprefix("average."): v for k, v in checkpoint().items() if k.startswith("average.")}
    torch.testing.assert_close(dict(network.state_dict()), average, atol=1e-3, rtol=1e-3)
    assert network(torch.zeros(2, channels, 16, 16), torch.tensor([0.1, 0.9])).shape == (2, 3, 16, 16)
    assert (task == "sr3") == ({"std", "low", "high"} <= set(metadata))


def test_weights_of_an_experiment_stay_in_its_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recipe writes nothing to where the product's own weights lie."""
    assert run_main(monkeypatch, command.main, write_config(folder, recipe=True, steps=1)) == 0
    assert capsys.readouterr().out.endswith("weights: runs/training/tiny/tiny.safetensors\n")
    assert not (folder / "backends/weights").exists()


def make_run(folder: Path) -> Path:
    """The parts of a run folder that a card quotes."""
    run = folder / "run"
    (run / "tables").mkdir(parents=True)
    record = {"command": "harness run", "dataset": {"images": 24, "spec": "utkface:x#test"}}
    (run / "run.json").write_text(json.dumps(record))
    rows = [{"backend": "tiny", "metric": "psnr", "n": 24, "mean": 26.1234, "low": 25.0, "high": 27.0}]
    pd.DataFrame(rows).to_parquet(run / "tables" / "summary.parquet")
    sets = [{"backend": "tiny", "metric": "kid_alexnet", "n": 23, "value": 1.25, "low": 1.0, "high": 1.5, "note": ""}]
    pd.DataFrame(sets).to_parquet(run / "tables" / "sets.parquet")
    made = {"backend": "chain", "network": "alexnet", "measure": "kid", "n": 30, "value": 1.5, "low": 1.0, "high": 2.0}
    kinds = [("all", "test", "ok"), ("red", "test", "ok"), ("all", "training", "ok"), ("all", "test", "insufficient")]
    generated = [made | dict(zip(("class", "against", "status"), kind, strict=True)) for kind in kinds]
    pd.DataFrame(generated).to_parquet(run / "tables" / "generated.parquet")
    return run


def test_a_card_is_made_from_the_log(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The card holds its text, the training's revision and figures once for each step, and a run's table.

    If the model was trained again for its curve, it has that, too.
    """
    (folder / "texts").mkdir()
    (folder / "texts" / "tiny.md").write_text("# tiny: a test\n\n√γ\n", encoding="utf-8")
    monkeypatch.setattr(card, "TEXTS", folder / "texts")
    monkeypatch.setattr(card, "_revision", lambda: "1234567")
    path = write_config(folder)
    assert run_main(monkeypatch, command.main, path) == 0
    monkeypatch.setattr(card, "_revision", lambda: "89abcde")
    log = folder / "runs/training/tiny/log.jsonl"
    lines = log.read_text().splitlines()
    log.write_text("\n".join([lines[0], lines[0], lines[1]]) + "\n")
    assert run_main(monkeypatch, card.main, path, make_run(folder)) == 0
    text = (folder / "backends/weights/tiny.md").read_text(encoding="utf-8")
    assert text.startswith("# tiny: a test\n\n√γ\n")
    assert "| images seen | 24 in 6 steps of 4 |" in text
    assert "| git revision of the training | 1234567 |\n| git revision when this card was written | 89abcde |\n" in text
    assert text.count("| 12 | ") == 1
    assert "| time | 0.00 core-hours, 0.00 h by the clock, other work beside it |" in text
    assert "GFLOP a pass and image of 16 x 16 pixels" in text
    assert f"| computation | {operations.computation(config())} |" in text
    assert "Wh, at an assumed 5 W a core" in text
    first, last = (json.loads(line)["validation_loss"] for line in lines)
    assert f"| loss on validation images | {last:.4f} |" in text
    assert f"| at the end | steps 3 to 6: validation loss {first:.4g} to {last:.4g} |" in text
    assert "24 images of `utkface:x#test`" in text
    assert "| tiny | psnr | 24 | 26.12 | 25 to 27 |" in text
    assert "| tiny | kid_alexnet | 23 | 1.25 | 1 to 1.5 |" in text
    assert "chain" not in text
    assert "Trained again" not in text
    (folder / "texts" / "tiny-again.jsonl").write_text(lines[0].replace('"images": 12', '"images": 77') + "\n")
    assert run_main(monkeypatch, card.main, path, folder / "run", "chain") == 0
    text = (folder / "backends/weights/tiny.md").read_text(encoding="utf-8")
    assert [line for line in text.splitlines() if "chain" in line] == ["| chain | kid (alexnet) | 30 | 1.5 | 1 to 2 |"]
    assert text.partition("## Trained again\n")[2].count("\n| 77 | ") == 1
    assert run_main(monkeypatch, card.main, path, folder / "run", "none") == 2


@pytest.mark.parametrize(
    "log", [None, "", "no json\n", "[1]\n", "{}\n", '{"step": 3, "images": 12}\n', '{"step": 6, "images": 96}\n']
)
def test_a_card_without_a_log_gets_one_line(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], log: str | None
) -> None:
    """A missing, empty or damaged log is named, and so is that of half a training or of another one."""
    (folder / "texts").mkdir()
    (folder / "texts" / "tiny.md").write_text("# tiny: a test\n")
    monkeypatch.setattr(card, "TEXTS", folder / "texts")
    if log is not None:
        (folder / "runs/training/tiny").mkdir(parents=True)
        (folder / "runs/training/tiny/log.jsonl").write_text(log)
    assert run_main(monkeypatch, card.main, write_config(folder)) == 2
    error = capsys.readouterr().err
    assert "log.jsonl" in error
    assert error.count("\n") == 1


# Operations


@pytest.mark.usefixtures("folder")
def test_operations_are_counted_forward_and_backward() -> None:
    """A convolution costs two operations a multiply-add, thrice in training; the first has no input to go back to.

    Of each phase one step stands for all: pretraining is the generator alone.
    """
    settings = config(**GAN)
    forward: list[int] = []

    def count(layer: nn.Module, _inputs: object, output: Tensor) -> None:
        assert isinstance(layer, nn.Conv2d)
        forward.append(2 * output.numel() * layer.weight[0].numel())

    network = GANTask(settings).network
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.register_forward_hook(count)
    network(torch.zeros(settings.batch, 3, settings.low, settings.low))
    phases = operations.measure(settings)
    assert [phase.steps for phase in phases] == [2, 4]
    assert all(phase.seconds > 0 for phase in phases)
    pretraining, adversarial = (phase.operations for phase in phases)
    low, high = settings.low, settings.high
    resizes = 2 * 2 * settings.batch * 3 * low * high * (low + high)  # down and up again, each two matrix products
    assert pretraining == resizes + 3 * sum(forward) - forward[0]
    assert adversarial > 2 * pretraining


def test_a_trainings_operations_are_printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row a config: images seen, operations of all steps, of one; what cannot be counted gets one line.

    The training itself is not begun by that.
    """
    path, other = write_config(folder), folder / "other.yaml"
    other.write_text(yaml.safe_dump(TINY | {"train": "parquet:none#train"}))
    ((steps, each, _),) = operations.measure(config())
    cells = f"| tiny | 24 in 6 steps of 4 | {steps * each / 1e15:.3g} | {steps} steps of {each / 1e12:.4g} TFLOP | "
    assert run_main(monkeypatch, operations.main, path, other) == 2
    output = capsys.readouterr()
    (row,) = output.out.splitlines()[2:]
    assert row.startswith(cells)
    assert float(row.removeprefix(cells).removesuffix(" |")) > 0
    assert output.err.startswith("error: ")
    assert output.err.count("\n") == 1
    assert not (folder / "runs/training/tiny").exists()
    for arguments, line in (([], "usage: "), ([folder / "none.yaml"], f"error: {folder / 'none.yaml'}: No such file")):
        assert run_main(monkeypatch, operations.main, *arguments) == 2
        assert capsys.readouterr().err.startswith(line)


def test_operations_of_grouped_convolutions() -> None:
    """Backward each gradient costs what forward does, with groups, strides and transposed as well."""
    x = torch.zeros(2, 8, 6, 6, requires_grad=True)
    for layer in (
        nn.Conv2d(8, 8, 3, padding=1, groups=8),
        nn.Conv2d(8, 4, 3, stride=2, padding=1, groups=2),
        nn.ConvTranspose2d(8, 4, 2, stride=2, groups=4),
    ):
        with FlopCounterMode(display=False) as forward:
            layer(x)
        with FlopCounterMode(display=False, custom_mapping=operations.COUNTS) as both:
            layer(x).sum().backward()
        assert both.get_total_flops() == 3 * forward.get_total_flops() > 0


def test_the_end_of_a_log_is_at_least_its_last_tenth() -> None:
    """Figures that either row lacks are left out, and a log of one row has no such end."""
    rows = [{"step": step, "validation_loss": 1 / step, "lpips_alex": 0.1 * step} for step in (2, 7, 8, 9, 10)]
    rows[3] |= {"kid_alexnet": 2.0}
    rows[4] |= {"kid_alexnet": 1.0}
    assert card._ending(rows) == [
        ("at the end", "steps 9 to 10: validation loss 0.1111 to 0.1, lpips alex 0.9 to 1, kid alexnet 2 to 1")
    ]
    assert card._ending([*rows[:3], rows[4]])[0][1].startswith("steps 8 to 10: validation loss 0.125 to 0.1, lpips")
    assert "kid" not in card._ending([*rows[:3], rows[4]])[0][1]
    assert card._ending(rows[:1]) == []


def test_starting_anew_begins_a_new_log(folder: Path) -> None:
    """Rows of a training whose checkpoint was moved away are not those of the next one."""
    train(config())
    (folder / "runs/training/tiny/checkpoint.safetensors").rename(folder / "kept.safetensors")
    train(config(steps=3, batch=2))
    assert logged_steps() == [3]
    rows = [json.loads(line) for line in (folder / "runs/training/tiny/log.jsonl").read_text().splitlines()]
    assert [row["images"] for row in rows] == [6]


@pytest.mark.usefixtures("folder")
def test_a_step_draws_the_same_dropout_whatever_was_drawn_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """A layer that takes no generator is as random in a step of a continued training as in that of a straight one."""
    trainer = Trainer(config(), Path("runs/training/tiny"))
    losses, drawn = trainer.task.losses, []

    def recorded(step: int, indices: Tensor, rng: torch.Generator) -> Iterator[tuple[str, Tensor]]:
        drawn.append(F.dropout(torch.ones(64)))
        return losses(step, indices, rng)

    monkeypatch.setattr(trainer.task, "losses", recorded)
    for step in (4, 5, 4):
        trainer.one_step(step, torch.arange(4))
    torch.testing.assert_close(drawn[2], drawn[0])
    assert not torch.equal(drawn[1], drawn[0])
