"""Making up for an interrupted validation when the run is resumed."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.rank_zero import rank_zero_info

from cm_lightning.steps import steps_taken


class MissedValidation(Callback):
    """Validates once before training continues, and logs at the checkpoint's step, as the validation would have done.

    Lightning assumes that a validation that was due at the step of a checkpoint is done. It must be the last callback.
    """

    def __init__(self) -> None:
        self._epoch = 0

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        self._epoch = checkpoint["epoch"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        rank_zero_info(f"the validation at step {steps_taken(trainer)} was interrupted, so it is run now")
        loop, stage = trainer.fit_loop.epoch_loop, trainer.state.stage
        trainer._logger_connector.reset_results()
        trainer._logger_connector.reset_metrics()
        # the step of its row; Lightning reads the counts of its loops from the checkpoint after this
        loop._batches_that_stepped = steps_taken(trainer) - 1
        trainer.fit_loop.epoch_progress.current.completed = self._epoch
        trainer.validating = True
        loop.val_loop.run()
        trainer.state.stage = stage
        trainer._logger_connector.reset_results()


def is_missing(checkpoint: Mapping[str, Any], path: Path, trainer: L.Trainer) -> bool:
    """Whether a validation was due at the step of a checkpoint but is missing from the log of its run.

    Args:
        checkpoint: the contents of the file at ``path``.
        path: path of the checkpoint; ``metrics.csv`` is searched above its folder.
        trainer: the Trainer of the resumed run.
    """
    log = path.parent.parent / "metrics.csv"
    if not trainer.limit_val_batches or not _is_due(checkpoint, trainer) or not log.is_file():
        return False
    step = str(checkpoint.get("trained_steps", checkpoint["global_step"]) - 1)
    with open(log, newline="", errors="replace") as file:
        at_the_step = [row for row in csv.DictReader(file) if row.get("step") == step]
    return not any(value for row in at_the_step for name, value in row.items() if str(name).startswith("val/"))


def _is_due(checkpoint: Mapping[str, Any], trainer: L.Trainer) -> bool:
    """Whether a validation follows the step of a checkpoint; False for intervals that are fractions of an epoch."""
    progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    interval, epochs = trainer.val_check_interval, trainer.check_val_every_n_epoch
    if epochs is None:
        return isinstance(interval, int) and progress["total"]["ready"] % interval == 0
    ended = checkpoint["epoch"] + (progress["total"]["completed"] < progress["total"]["processed"])
    return interval == 1.0 and bool(progress["is_last_batch"]) and ended % epochs == 0
