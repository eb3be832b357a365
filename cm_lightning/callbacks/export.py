"""Exports the trained model at the end of a run, in the format that other programs read."""

from __future__ import annotations

import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.rank_zero import rank_zero_info

from cm_lightning.callbacks.ema import EMA
from cm_lightning.callbacks.run_directory import run_directory
from cm_lightning.errors import ConfigError


class Export(Callback):
    """Writes ``export/`` into the run's directory at the end of training, with averaged weights if there are any."""

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not callable(getattr(pl_module, "export", None)):
            raise ConfigError(
                f"Export: {type(pl_module).__name__} does not export to another format: remove the callback"
            )

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        ema = next((c for c in callbacks if isinstance(c, EMA) and c.evaluate), None)
        with ema.applied(pl_module) if ema else nullcontext():
            write_folder(run_directory(trainer) / "export", pl_module)
        rank_zero_info(f"exported to {run_directory(trainer) / 'export'}")


def write_folder(folder: Path, module: Any) -> None:
    """Have a module export itself to a folder, which appears complete or not at all."""
    temporary = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    module.export(temporary)
    shutil.rmtree(folder, ignore_errors=True)
    temporary.rename(folder)
