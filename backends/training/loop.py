"""The training loop: EMA, warm-up and cosine, deterministic order, checkpoints that the same command resumes."""

import copy
import json
import math
import os
import time
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from backends.training.config import ConfigError, TrainingConfig
from backends.training.data import batches
from backends.training.tasks import TASKS, Task
from harness.errors import one_line


def learning_rate(config: TrainingConfig, step: int) -> float:
    """Linear warm-up, then a cosine from the first to the final learning rate."""
    if step < config.warmup:
        return config.learning_rate * (step + 1) / config.warmup
    done = (step - config.warmup) / max(1, config.steps - config.warmup)
    span = config.learning_rate - config.final_learning_rate
    return config.final_learning_rate + span * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


class Trainer:
    """One training run in the folder `runs/training/NAME`: `train()` continues where the last one stopped.

    Raises:
        ConfigError: the images are fewer than a batch, or the folder's checkpoint is damaged or of another network.
        FileNotFoundError: the data set is not there.
    """

    def __init__(self, config: TrainingConfig, folder: Path) -> None:
        self.config, self.folder = config, folder
        torch.manual_seed(config.seed)
        self.task: Task = TASKS[config.task](config)
        if self.task.count < config.batch:
            raise ConfigError(
                f"{config.name}: batch: {config.batch} is more than the {self.task.count} training images"
            )
        self.network = self.task.network.to(memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.network).eval().requires_grad_(requires_grad=False)
        self.optimizer = torch.optim.AdamW(self.network.parameters(), lr=config.learning_rate, weight_decay=1e-3)
        self.step, self.seconds = 0, 0.0
        self._resume()

    def train(self) -> None:
        """Train to the configured number of steps, printing progress with an ETA and writing checkpoints."""
        started, first, losses = time.monotonic(), self.step, []
        for step, indices in batches(self.task.count, self.config.batch, self.config.seed, self.step):
            if step >= self.config.steps:
                break
            losses.append(self._one_step(step, indices))
            self.step = step + 1
            if self.step % self.config.checkpoint_every == 0 or self.step == self.config.steps:
                elapsed = time.monotonic() - started
                self.seconds, started = self.seconds + elapsed, time.monotonic()
                self._log(sum(losses) / len(losses), (self.step - first) * self.config.batch / elapsed)
                self._checkpoint()
                losses, first = [], self.step

    def _one_step(self, step: int, indices: torch.Tensor) -> float:
        rng = torch.Generator().manual_seed(self.config.seed * 1_000_003 + step)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, step)
        loss = self.task.loss(self.network, indices, rng)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self._update_average(step)
        return float(loss.detach())

    @torch.no_grad()
    def _update_average(self, step: int) -> None:
        decay = min(self.config.ema, (1 + step) / (10 + step))
        for slow, fast in zip(self.average.parameters(), self.network.parameters(), strict=True):
            slow.lerp_(fast, 1 - decay)

    @torch.no_grad()
    def _log(self, loss: float, speed: float) -> None:
        row = {
            "step": self.step,
            "images": self.step * self.config.batch,
            "hours": round(self.seconds / 3600, 4),
            "loss": round(loss, 6),
            "validation_loss": round(self.task.validation_loss(self.average), 6),
        }
        left = (self.config.steps - self.step) * self.config.batch / speed / 60
        print(f"{self.config.name} {row} {speed:.0f} images/s, {left:.0f} min left", flush=True)
        with (self.folder / "log.jsonl").open("a") as log:
            log.write(json.dumps(row) + "\n")

    def _checkpoint(self) -> None:
        state = {"network": self.network.state_dict(), "average": self.average.state_dict()}
        tensors = {f"{part}.{k}": v.contiguous() for part, values in state.items() for k, v in values.items()}
        for i, entry in enumerate(self.optimizer.state_dict()["state"].values()):
            tensors |= {f"optimizer.{i}.{k}": v.contiguous() for k, v in entry.items()}
        partial = self.folder / "checkpoint.part"
        save_file(tensors, partial, {"step": str(self.step), "seconds": str(self.seconds)})
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
        except (SafetensorError, RuntimeError, KeyError, ValueError) as error:
            reason = one_line(str(error))
            raise ConfigError(
                f"{path} is damaged or of another network: move it away to start anew ({reason})"
            ) from error
        print(f"{self.config.name}: resuming at step {self.step}", flush=True)

    def _load(self, path: Path) -> None:
        tensors = load_file(path)
        for part, module in (("network", self.network), ("average", self.average)):
            module.load_state_dict({k[len(part) + 1 :]: v for k, v in tensors.items() if k.startswith(part + ".")})
        state = self.optimizer.state_dict()
        count = len(state["param_groups"][0]["params"])
        state["state"] = {
            i: {k: tensors[f"optimizer.{i}.{k}"] for k in ("step", "exp_avg", "exp_avg_sq")} for i in range(count)
        }
        self.optimizer.load_state_dict(state)
        meta = read_metadata(path)
        self.step, self.seconds = int(meta["step"]), float(meta["seconds"])


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata block of a safetensors file."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
        header: dict[str, dict[str, str]] = json.loads(file.read(size))
    return header.get("__metadata__", {})
