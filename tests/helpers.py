"""Small things that several tests build on."""

from __future__ import annotations

import importlib.util
import os
import signal
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers.logger import Logger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from cm_lightning.backbones.mlp import ResidualMLP
from cm_lightning.backbones.unet import UNet
from cm_lightning.data.digits import embedded_digits
from cm_lightning.data.mnist import MNIST
from cm_lightning.errors import ConfigError
from cm_lightning.modules.training import ConsistencyTraining


def points(n: int = 64, batch_size: int = 16) -> DataLoader[Any]:
    x = 0.5 * torch.randn(n, 2, generator=torch.Generator().manual_seed(5))
    return DataLoader(TensorDataset(x, torch.zeros(n).long()), batch_size=batch_size)


def images(shape: tuple[int, ...], n: int = 4, batch_size: int = 2, classes: int = 1) -> DataLoader[Any]:
    x = torch.randn(n, *shape, generator=torch.Generator().manual_seed(6)).clamp(-1, 1)
    return DataLoader(TensorDataset(x, torch.arange(n) % classes), batch_size=batch_size)


def few_digits(patch: Any, every: int = 8) -> None:
    """Reduce the embedded digits to some of each class, because many measurements take all of them."""
    patch.setattr(
        "cm_lightning.data.mnist.embedded_digits", lambda split: [part[::every] for part in embedded_digits(split)]
    )


def trainer(tmp_path: Any, **options: Any) -> L.Trainer:
    quiet = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "enable_checkpointing": False, "max_steps": 5, "log_every_n_steps": 1, "num_sanity_val_steps": 0,
        "default_root_dir": str(tmp_path),
    }  # fmt: skip
    return L.Trainer(**{**quiet, **options})


def digits_checkpoint(path: Path) -> Path:
    """The checkpoint of a tiny network after one step on digits, written to a path."""
    run = trainer(path.parent, max_steps=1, limit_train_batches=1, limit_val_batches=0)
    run.fit(ConsistencyTraining(UNet(1, 8, (1,), 1, (), num_classes=10, patch=4), (1, 28, 28)), MNIST(batch_size=8))
    run.save_checkpoint(path)
    return path


def script(path: Path) -> ModuleType:
    """A script as a module, which is not run."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


def module(**options: Any) -> ConsistencyTraining:
    torch.manual_seed(1)
    return ConsistencyTraining(**{"backbone": ResidualMLP(2, 16, 2), "image_shape": (2,), **options})


class OwnMLP(ResidualMLP):
    """A network from another package."""


class Dropout(nn.Module):
    """A network that returns its dropout mask."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.masks: list[Tensor] = []

    def forward(self, x: Tensor, noise_label: Tensor, class_label: Tensor | None = None) -> Tensor:
        mask = nn.functional.dropout(torch.ones_like(x), 0.5, self.training)
        self.masks.append(mask)
        return mask * self.weight


class KillAt(L.Callback):
    """Kills its own process, as a scheduler would, after a number of steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class InterruptAt(L.Callback):
    """Sends its own process SIGTERM, as a scheduler would, after a number of steps."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.should_stop = True


class RaiseRate(L.Callback):
    """Makes the training fail after its fourth step."""

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step >= 4:
            trainer.optimizers[0].param_groups[0]["lr"] = 1e30


class _At(L.Callback):
    """Does something in a hook at a step, once."""

    def __init__(self, hook: str = "on_train_batch_end", step: int = 0) -> None:
        self.step, self.done = step, False
        setattr(self, hook, self._called)

    def _called(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step and not self.done:
            self.done = True
            self.act()

    def act(self) -> None:
        """The action at the step."""


class FailAt(_At):
    """Ends the run with an error."""

    def act(self) -> None:
        raise ConfigError("as asked")


class SignalAt(_At):
    """Sends a signal to its own process, as Ctrl-C in a terminal does."""

    def __init__(self, hook: str, step: int, number: int = 2) -> None:
        super().__init__(hook, step)
        self.number = number

    def act(self) -> None:
        os.kill(os.getpid(), self.number)


class NoFiles(Logger):
    """A logger that does not write files."""

    name, version = "no files", None

    def log_metrics(self, metrics: Any, step: Any = None) -> None:
        pass

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        pass
