"""Leaving out and counting optimizer steps whose gradients are not finite, which would otherwise end the run."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.optim import Optimizer

from cm_lightning.domains import COUNT
from cm_lightning.errors import NonFiniteLossError
from cm_lightning.modules import faults
from cm_lightning.modules.trained import TrainedModule
from cm_lightning.states import are_finite
from cm_lightning.steps import steps_taken


class SkipBadSteps(Callback):
    """Leaves out steps with gradients that are not finite, logs their number as ``train/skipped_steps``.

    A step that is left out changes neither the weights nor the moments of the optimizer, on all ranks; schedules and
    data continue. The run ends if too many are left out in a row. To check its gradients, each step waits for the
    accelerator, so this is not the default.

    Args:
        limit: the largest number of steps that are left out in a row, at least 1.

    Raises:
        NonFiniteLossError: more steps than ``limit`` in a row would have to be left out.
    """

    def __init__(self, limit: int = 10) -> None:
        COUNT.check(self, limit=limit)
        self.limit = limit
        #: The number of steps that were left out, including those before a resume.
        self.skipped = 0
        self._in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped = state_dict["skipped"]

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(pl_module, TrainedModule):
            pl_module.skips_bad_steps = True

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(pl_module, TrainedModule):
            pl_module.skips_bad_steps = False

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        trained = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        bad = not are_finite(p.grad for p in trained)
        if trainer.world_size > 1:  # where gradients are sharded, a rank sees a part of them
            bad = bool(trainer.strategy.reduce(torch.tensor(int(bad), device=pl_module.device), reduce_op="max"))
        if not bad:
            self._in_a_row = 0
            return
        for p in trained:
            p.grad = None
        self._count(trainer, steps_taken(trainer))

    def _count(self, trainer: L.Trainer, step: int) -> None:
        self.skipped, self._in_a_row = self.skipped + 1, self._in_a_row + 1
        if self._in_a_row > self.limit:
            raise NonFiniteLossError(faults.of_the_loss(trainer, step - self.limit))
        rank_zero_warn(faults.of_a_step_left_out(trainer, step, self.skipped))

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        n = trainer.log_every_n_steps  # type: ignore[attr-defined]
        if n and steps_taken(trainer) % n == 0:
            pl_module.log("train/skipped_steps", float(self.skipped))
