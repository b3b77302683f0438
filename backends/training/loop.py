"""The training loop: EMA, warm-up and cosine, deterministic order, checkpoints that the same command resumes."""

import copy
import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from backends.checkpoint import MAX_BYTES
from backends.training import warm
from backends.training.config import ConfigError, TrainingConfig
from backends.training.data import batches
from backends.training.tasks import load_task
from harness.errors import one_line

LOG = "log.jsonl"
"""The file of a training's folder with its figures at each checkpoint."""


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Linear warm-up, then a cosine from the first to the final learning rate; anew in each phase of the training."""
    first, last = next((a, b) for a, b in config.phases if step < b or b == config.steps)
    step, steps = step - first, last - first
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, steps - config.warmup)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Trainer:
    """One training run in the folder `runs/training/NAME`: `train()` continues where the last one stopped.

    Raises:
        ConfigError: the images are fewer than a batch, the weights to start from do not fit, the network is too large
            to be loaded, the folder's log is damaged, or its checkpoint is, or of another network or config.
        DatasetError: the data set is not there.
    """

    def __init__(self, config: TrainingConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        torch.manual_seed(config.seed)
        self.task = load_task(config.task)(config)
        if self.task.count < config.batch:
            raise ConfigError(
                f"{config.name}: batch: {config.batch} is more than the {self.task.count} training images"
            )
        if config.start:
            warm.start(self.task.parts["network"], config.start)
        self.parts = {name: part.to(memory_format=torch.channels_last) for name, part in self.task.parts.items()}
        size = 2 * sum(parameter.numel() for parameter in self.parts["network"].parameters())
        if size > MAX_BYTES:
            raise ConfigError(f"{config.name}: network: {size} bytes of weights; at most {MAX_BYTES} can be loaded")
        self.average = copy.deepcopy(self.parts["network"]).eval().requires_grad_(requires_grad=False)
        self.optimizers = {
            name: torch.optim.AdamW(
                part.parameters(), lr=config.learning_rate, betas=(config.momentum, 0.999), weight_decay=1e-3
            )
            for name, part in self.parts.items()
        }
        self.step, self.seconds, self.core_seconds = 0, 0.0, 0.0
        self._resume()
        self.rows = [row for row in read_log(folder / LOG) if row["step"] <= self.step] if self.step else []

    def train(self) -> None:
        """Train to the configured number of steps, printing progress with an ETA and writing checkpoints.

        Ctrl-C ends it after the step at hand, with a checkpoint of that step; once more, at once and without.

        Raises:
            KeyboardInterrupt: so it was ended.
        """
        clock, first, losses = _clock(), self.step, []
        with _interrupts_noted() as interrupts:
            for step, indices in batches(self.task.count, self.config.batch, self.config.seed, self.step):
                if step >= self.config.steps:
                    break
                losses.append(self.one_step(step, indices))
                self.step = step + 1
                due = self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps
                if due or interrupts:
                    elapsed, worked = (now - then for now, then in zip(_clock(), clock, strict=True))
                    self.seconds, self.core_seconds = self.seconds + elapsed, self.core_seconds + worked
                    if due:
                        self._log(losses, (self.step - first) * self.config.batch / elapsed)
                    self._checkpoint()
                    clock, losses, first = _clock(), [], self.step
                if interrupts:
                    raise KeyboardInterrupt

    def one_step(self, step: int, indices: torch.Tensor) -> dict[str, float]:
        """Train all parts on the images of these indices (batch,); returns the loss of each part.

        Raises:
            ConfigError: a loss or its gradient is not finite.
        """
        seed = self.config.seed * 1_000_003 + step
        torch.manual_seed(seed)  # of dropout, which takes no generator
        rng = torch.Generator().manual_seed(seed)
        values = {}
        for name, loss in self.task.losses(step, indices, rng):
            rate = self.config.rate(name) * learning_rate(self.config, step)
            norm = self._update(self.optimizers[name], loss, rate)
            values[name] = float(loss.detach())
            if not math.isfinite(values[name] + norm):
                raise ConfigError(
                    f"{self.config.name}: step {step + 1}: the loss of {name} or its gradient is not finite; the last "
                    "checkpoint is kept: lower the learning rate and start anew"
                )
        self._update_average(step)
        return values

    def _update(self, optimizer: torch.optim.Optimizer, loss: torch.Tensor, rate: float) -> float:
        """One step of the optimiser; returns the norm of the gradient before it was clipped."""
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], 1.0)
        optimizer.step()
        return float(norm)

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        network, decay = self.parts["network"], min(self.config.ema, (1 + step) / (10 + step))
        for slow, fast in zip(self.average.parameters(), network.parameters(), strict=True):
            slow.lerp_(fast, 1 - decay)
        for kept, buffer in zip(self.average.buffers(), network.buffers(), strict=True):
            kept.copy_(buffer)

    @torch.no_grad()
    def _log(self, losses: list[dict[str, float]], speed: float) -> None:
        row: dict[str, float] = {
            "step": self.step,
            "images": self.step * self.config.batch,
            "hours": round(self.seconds / 3600, 4),
            "core_hours": round(self.core_seconds / 3600, 4),
        }
        for name in self.parts:
            values = [each[name] for each in losses if name in each]
            row[f"{name}_loss"] = round(sum(values) / len(values), 6) if values else math.nan
        row |= {name: round(value, 6) for name, value in self.task.validate(self.average).items()}
        left = (self.config.steps - self.step) * self.config.batch / speed / 60
        print(f"{self.config.name} {row} {speed:.0f} images/s, {left:.0f} min left", flush=True)
        self.rows.append(row)
        partial = self.folder / "log.part"
        partial.write_text("".join(f"{json.dumps(each)}\n" for each in self.rows))
        partial.rename(self.folder / LOG)

    def _checkpoint(self) -> None:
        states = {name: part.state_dict() for name, part in (*self.parts.items(), ("average", self.average))}
        tensors = {f"{name}.{k}": v.contiguous() for name, state in states.items() for k, v in state.items()}
        for name, optimizer in self.optimizers.items():
            for i, entry in optimizer.state_dict()["state"].items():
                tensors |= {f"optimizer.{name}.{i}.{k}": v.contiguous() for k, v in entry.items()}
        partial = self.folder / "checkpoint.part"
        progress = {"step": self.step, "seconds": self.seconds, "core_seconds": self.core_seconds}
        save_file(tensors, partial, {"config": self._course(), **{k: str(v) for k, v in progress.items()}})
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.rename(self.folder / "checkpoint.safetensors")

    def _resume(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / "checkpoint.safetensors"
        if not path.exists():
            return
        try:
            self._load(path)
        except (SafetensorError, RuntimeError, LookupError, TypeError, ValueError) as error:
            reason = one_line(str(error))
            raise ConfigError(
                f"{path} is damaged or of another network: move it away to start anew ({reason})"
            ) from error
        print(f"{self.config.name}: resuming at step {self.step}", flush=True)

    def _course(self) -> str:
        """The fields of the config that decide how the network is trained, all but for how long, as JSON."""
        return self.config.model_dump_json(exclude={"name", "recipe", "steps", "checkpoint_every"})

    def _load(self, path: Path) -> None:
        tensors, meta = load_file(path), read_metadata(path)
        if "config" not in meta:
            raise ConfigError(f"{path} does not say of which config it is: move it away to start anew")
        before, now = dict(json.loads(meta["config"])), json.loads(self._course())
        if changed := [name for name in now if before.get(name) != now[name]]:
            raise ConfigError(f"{path} is of another config: {changed[0]} differs; move it away to start anew")
        for name, module in (*self.parts.items(), ("average", self.average)):
            module.load_state_dict({k[len(name) + 1 :]: v for k, v in tensors.items() if k.startswith(name + ".")})
        for name, optimizer in self.optimizers.items():
            state = optimizer.state_dict()
            state["state"] = _optimizer_state(tensors, f"optimizer.{name}.")
            _check_moments(state["state"], list(self.parts[name].parameters()))
            optimizer.load_state_dict(state)
        self.step = int(meta["step"])
        self.seconds, self.core_seconds = float(meta["seconds"]), float(meta["core_seconds"])


@contextmanager
def _interrupts_noted() -> Iterator[list[int]]:
    """The first Ctrl-C meanwhile, which is not raised, so that what is at hand can be finished."""
    noted: list[int] = []
    before = signal.getsignal(signal.SIGINT)

    def note(number: int, _frame: FrameType | None) -> None:
        noted.append(number)
        signal.signal(signal.SIGINT, before)
        print("stopping after this step; Ctrl-C once more stops at once", file=sys.stderr, flush=True)

    signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _clock() -> tuple[float, float]:
    """Wall time, and processor time of this process over all its threads, in seconds."""
    return time.monotonic(), time.process_time()


def _optimizer_state(tensors: dict[str, torch.Tensor], prefix: str) -> dict[int, dict[str, torch.Tensor]]:
    """Index of the parameter -> its moments, from the tensors whose names begin with `prefix`."""
    state: dict[int, dict[str, torch.Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith(prefix):
            index, name = key.removeprefix(prefix).split(".")
            state.setdefault(int(index), {})[name] = value
    return state


def _check_moments(state: dict[int, dict[str, torch.Tensor]], parameters: list[nn.Parameter]) -> None:
    """Raises ValueError where Adam has not both moments of each parameter, in its shape, and their step.

    A part that has not been trained yet has none at all.
    """
    if state and state.keys() != set(range(len(parameters))):
        raise ValueError("the optimizer's moments of a parameter are missing")
    for index, entry in state.items():
        shape = parameters[index].shape
        expected = {"step": torch.Size(), "exp_avg": shape, "exp_avg_sq": shape}
        if {name: value.shape for name, value in entry.items()} != expected:
            raise ValueError(f"the optimizer's moments of parameter {index} do not fit")


def read_log(path: Path) -> list[dict[str, float]]:
    """The rows of a training's log by step, of a repeated step the later one; none if there is no log yet.

    Raises:
        ConfigError: it is damaged.
    """
    try:
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        by_step: dict[int, dict[str, float]] = {int(row["step"]): row for row in rows}
    except FileNotFoundError:
        return []
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{path}: not a training log: {one_line(str(error))}") from error
    return [by_step[step] for step in sorted(by_step)]


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata block of a safetensors file."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, dict[str, str]] = json.loads(file.read(size))
    return header.get("__metadata__", {})
