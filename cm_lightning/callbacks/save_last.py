"""The checkpoint that a run goes on from, and that everything else reads."""

from __future__ import annotations

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint


class SaveLast(ModelCheckpoint):
    """``checkpoints/last.ckpt`` every so many steps, and at the end: Lightning's own leaves the last steps out.

    Args:
        every_n_train_steps: optimizer steps between two checkpoints, each of which replaces the former.
    """

    def __init__(self, every_n_train_steps: int = 1000) -> None:
        super().__init__(save_last=True, save_top_k=0, every_n_train_steps=every_n_train_steps)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.global_step > self._last_global_step_saved:
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
