"""The directory of a run: where its configuration, checkpoints, metrics and samples lie together."""

from __future__ import annotations

from pathlib import Path

import lightning as L
from lightning.pytorch.loggers import CSVLogger


def run_directory(trainer: L.Trainer) -> Path:
    """The CSV logger's directory, else the trainer's root; unlike ``trainer.log_dir`` it does not synchronise ranks."""
    for logger in trainer.loggers:
        if isinstance(logger, CSVLogger):
            return Path(logger.log_dir)
    return Path(trainer.default_root_dir)
