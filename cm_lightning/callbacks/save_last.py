"""The checkpoint that a run is resumed from, and that the other commands read."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from cm_lightning.callbacks.rows import write_row
from cm_lightning.callbacks.stopping import Stopping
from cm_lightning.checkpoint_io import write_atomically
from cm_lightning.domains import COUNT
from cm_lightning.errors import CmError
from cm_lightning.files import remove_leftovers
from cm_lightning.slurm import requeue


class SaveLast(ModelCheckpoint):
    """Writes ``checkpoints/last.ckpt`` at intervals and at the end; Lightning's own callback omits the last steps.

    At Ctrl-C and SIGTERM the run finishes the current step and saves it; a signal to one of several ranks ends all of
    them after the same step. The exit status after SIGTERM, 75, tells a scheduler to queue the job again.

    Args:
        every_n_train_steps: optimizer steps between two checkpoints, at least 1; each replaces the previous one.
    """

    def __init__(self, every_n_train_steps: int = 1000) -> None:
        COUNT.check(self, every_n_train_steps=every_n_train_steps)
        # one file, even if a run is resumed in its own folder, where Lightning would start numbering
        super().__init__(
            save_last=True, save_top_k=0, every_n_train_steps=every_n_train_steps, enable_version_counter=False
        )
        self._stopping = Stopping()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        write_atomically(trainer)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing: a resumed run writes into another folder."""

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stopping.listen(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        if trainer.is_global_zero and self.dirpath:
            remove_leftovers(Path(self.dirpath))
        self._last_global_step_saved = trainer.global_step  # the resumed checkpoint is on disk
        self._stopping.listen(trainer)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stopping.check()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._stopping.begin_step()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        write_row(trainer)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._stopping.end_step()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stopping.check()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        self._stopping.check()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stopping.close()
        self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._stopping.close()
        together = trainer.world_size == 1 or self._stopping.agreed
        if not together or not isinstance(exception, (KeyboardInterrupt, SIGTERMException)):
            return
        try:
            self._save(trainer)
        except CmError as error:  # for example, weights that are not finite
            sys.stderr.write(f"{error}\n")
        if self._stopping.wants_requeue:
            requeue()

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        self._stopping.close()

    def _save(self, trainer: L.Trainer) -> None:
        if trainer.global_step > self._last_global_step_saved and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._save_last_checkpoint(trainer, self._monitor_candidates(trainer))
