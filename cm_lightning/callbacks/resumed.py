"""Resuming a run with other options, which replace what the checkpoint restores."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.rank_zero import rank_zero_info
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from cm_lightning.modules.trained import TrainedModule
from cm_lightning.resume import Change
from cm_lightning.steps import steps_taken

_RATES = ("model.optimizer", "model.lr_scheduler", "trainer.max_steps", "trainer.max_epochs")
_BATCHES = ("data", "trainer.accumulate_grad_batches", "trainer.limit_train_batches", "trainer.overfit_batches")


class Resumed(Callback):
    """Applies the changes of a resumed run, and prints them.

    The optimizer keeps its moments and takes the configured learning rate, betas and the like; its schedule continues
    at the same step. Without such changes nothing is modified, and the run equals the uninterrupted one to the bit.

    Args:
        changes: the changes, from :func:`cm_lightning.resume.allowed_changes`.
    """

    def __init__(self, changes: Sequence[Change]) -> None:
        self.changes = changes

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # callbacks may change, and the changes are printed below
        warnings.filterwarnings("ignore", "Be aware that when using `ckpt_path`")
        warnings.filterwarnings("ignore", "The dirpath has changed")

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if self._concern(_RATES):
            checkpoint["lr_schedulers"] = []
        loops = checkpoint["loops"]["fit_loop"]
        progress = loops["epoch_loop.batch_progress"]
        at_an_epochs_end = (
            progress["is_last_batch"] and progress["total"]["completed"] == progress["total"]["processed"]
        )
        within_a_step = progress["current"]["ready"] % trainer.accumulate_grad_batches
        if at_an_epochs_end or within_a_step or self._concern(_BATCHES):
            _begin_an_epoch(progress, checkpoint["global_step"] * trainer.accumulate_grad_batches)
        if not progress["is_last_batch"]:
            _end_within_a_batch(loops, checkpoint["global_step"])

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._concern(_RATES):
            assert isinstance(pl_module, TrainedModule)
            _apply_rates(trainer, pl_module)
        changed = "; changed: " + ", ".join(map(str, self.changes)) if self.changes else ""
        rank_zero_info(f"resumed at step {steps_taken(trainer)}{changed}")

    def _concern(self, names: Sequence[str]) -> bool:
        return any(c.option == name or c.option.startswith(f"{name}.") for c in self.changes for name in names)


def _begin_an_epoch(progress: dict[str, Any], batches: int) -> None:
    """Make the next batch the first of an epoch: Lightning's counts refer to the old sizes of batches and epochs."""
    progress["total"] = dict.fromkeys(progress["total"], batches)
    progress["current"] = dict.fromkeys(progress["current"], 0)
    progress["is_last_batch"] = False


def _end_within_a_batch(loops: dict[str, Any], step: int) -> None:
    """Give a checkpoint from the end of training the state of those that are saved during it.

    Otherwise Lightning counts a step twice if a validation follows it, and the logs lose every row.
    """
    for progress in (loops["epoch_loop.batch_progress"]["total"], loops["epoch_loop.batch_progress"]["current"]):
        progress["completed"] = progress["processed"] - 1
    loops["epoch_loop.state_dict"]["_batches_that_stepped"] = step - 1


def _apply_rates(trainer: L.Trainer, module: TrainedModule) -> None:
    optimizer = trainer.optimizers[0]
    configured = module.configure_optimizers()
    fresh, schedulers = (configured, []) if isinstance(configured, Optimizer) else _parts(configured)
    for scheduler in schedulers:
        _advance(scheduler, steps_taken(trainer))
        scheduler.optimizer = optimizer
    for config, scheduler in zip(trainer.lr_scheduler_configs, schedulers, strict=True):
        config.scheduler = scheduler
    for group, new in zip(optimizer.param_groups, fresh.param_groups, strict=True):
        group.pop("initial_lr", None)
        group.update({name: value for name, value in new.items() if name != "params"})


def _parts(configured: Any) -> tuple[Optimizer, list[LRScheduler]]:
    return configured["optimizer"], [configured["lr_scheduler"]["scheduler"]]


def _advance(scheduler: LRScheduler, steps: int) -> None:
    """Advance a new schedule, and the rate of its optimizer, to the state after a number of steps."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the optimizer that it was made with does not step
        if type(scheduler) is LambdaLR and steps:  # its rate depends only on the step
            scheduler.last_epoch, steps = steps - 1, 1
        for _ in range(steps):
            scheduler.step()
