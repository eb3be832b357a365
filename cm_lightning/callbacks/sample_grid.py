"""A sheet of samples, drawn from the same noise every time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers import WandbLogger
from torch import Tensor

from cm_lightning.callbacks.progress import tell
from cm_lightning.callbacks.run_directory import run_directory
from cm_lightning.core.noise import generators
from cm_lightning.domains import COUNT, SEED
from cm_lightning.errors import ConfigError
from cm_lightning.images import sheet, write_png
from cm_lightning.modules.base import GenerativeModule
from cm_lightning.steps import steps_taken


class SampleGrid(Callback):
    """Writes ``samples/step_000500_nfe1.png`` into the run's directory at each validation, and to W&B if it is on.

    The noise comes from a separate generator with a fixed seed, so drawing samples never changes the training.

    Args:
        num_samples: number of images on a sheet, the classes in turn.
        nfe: numbers of sampling steps, with one sheet for each.
        columns: number of images in a row; if it is that of the classes, each column shows one class.
        seed: seed of the noise.
        scale: factor by which the sheet is enlarged.
        batch_size: number of images drawn at a time; it affects only the memory that is needed.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(
        self,
        num_samples: int = 100,
        nfe: Sequence[int] = (1,),
        columns: int = 10,
        seed: int = 0,
        scale: int = 1,
        batch_size: int = 100,
    ) -> None:
        options = {"num_samples": num_samples, "columns": columns, "scale": scale, "batch_size": batch_size}
        COUNT.check(self, **options)
        COUNT.check_each(self, nfe=nfe)
        SEED.check(self, seed=seed)
        self.num_samples, self.nfe, self.columns, self.seed, self.scale = num_samples, nfe, columns, seed, scale
        self.batch_size = batch_size

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not isinstance(pl_module, GenerativeModule) or len(pl_module.image_shape) != 3:
            raise ConfigError("SampleGrid shows images: remove the callback for other data and other modules")
        for steps in self.nfe:
            pl_module.default_sigmas(steps)  # raises for a number of steps that its sampler cannot take

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking and trainer.is_global_zero:
            self._draw(trainer, pl_module)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.is_global_zero:
            self._draw(trainer, pl_module)

    def _draw(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, GenerativeModule)
        for number, steps in enumerate(self.nfe):
            tell(trainer, "samples", number, len(self.nfe))
            pixels = sheet(torch.cat(list(self._images(pl_module, steps))), self.columns, self.scale)
            path = run_directory(trainer) / "samples" / f"step_{pl_module.trained_steps:06d}_nfe{steps}.png"
            write_png(path, pixels)
            to_wandb(trainer, path, f"samples/nfe{steps}")

    def _images(self, pl_module: GenerativeModule, steps: int) -> Iterator[Tensor]:
        labels = pl_module.sample_labels(self.num_samples, None)
        for rows in torch.split(torch.arange(self.num_samples), self.batch_size):
            chosen = None if labels is None else labels[rows]
            yield pl_module.sample(len(rows), steps, chosen, generators(self.seed, rows.tolist()))


def to_wandb(trainer: L.Trainer, path: Path, name: str) -> None:
    """Send an image to Weights & Biases if it is on."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [str(path)], step=steps_taken(trainer))
