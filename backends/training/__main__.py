"""`python -m backends.training CONFIG`: train one model, or continue it, then write its weights and card."""

import sys
from pathlib import Path

from backends.training.config import ConfigError, TrainingConfig, load_config
from harness.errors import HarnessError, one_line


def main() -> int:
    """Run the command line; returns the exit status."""
    if len(sys.argv) != 2:
        print("usage: python -m backends.training CONFIG.yaml", file=sys.stderr)
        return 2
    try:
        config = load_config(Path(sys.argv[1]))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    folder = Path("runs/training") / config.name
    try:
        return _train(config, folder)
    except KeyboardInterrupt:
        print(f"stopped; the same command continues from {folder}", file=sys.stderr)
        return 130


def _train(config: TrainingConfig, folder: Path) -> int:
    """Train and write the weights; returns the exit status."""
    from pyarrow import ArrowException
    from safetensors import SafetensorError

    from backends.training.card import export
    from backends.training.loop import Trainer

    try:
        trainer = Trainer(config, folder)
        trainer.train()
        print(f"weights: {export(config, *trainer.task.export())}")
    except (ConfigError, HarnessError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (OSError, SafetensorError, ArrowException) as error:
        print(f"error: {one_line(str(error))}; the same command continues from {folder}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
