"""How good drawn digits are at each number of sampling steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from rich.console import Console
from rich.table import Table
from torch import Tensor

from cm_lightning.core.noise import generators
from cm_lightning.data.mnist import MNIST
from cm_lightning.errors import ConfigError
from cm_lightning.metrics.frechet import DigitScores
from cm_lightning.metrics.judge import load_judge
from cm_lightning.modules.base import GenerativeModule


class DigitQuality(Callback):
    """Logs ``frechet_mnist`` and label accuracy at validation and test, and prints them as a table.

    The reference is the training split. The held-out images that pass through validation or test give the floor: what
    real digits score. The judge stays outside the module, and so outside its checkpoints.

    Args:
        nfe: numbers of sampling steps to measure.
        num_samples: images drawn for each, the classes in turn.
        batch_size: images drawn at a time.
        seed: of the noise, the same at every call.
    """

    def __init__(
        self, nfe: Sequence[int] = (1, 2, 4), num_samples: int = 1000, batch_size: int = 250, seed: int = 0
    ) -> None:
        self.nfe, self.num_samples, self.batch_size, self.seed = list(nfe), num_samples, batch_size, seed
        self._scores: DigitScores | None = None
        self._held_out: list[tuple[Tensor, Tensor]] = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        self._held_out.append(batch)

    def on_test_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int, *_: int
    ) -> None:
        self._held_out.append(batch)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._measure(trainer, pl_module, "val")

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._measure(trainer, pl_module, "test")

    def _measure(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        held_out, self._held_out = self._held_out, []
        if trainer.sanity_checking:
            return
        assert isinstance(pl_module, GenerativeModule)
        scores = self._scores = self._scores or self._reference(trainer)
        images, labels = (torch.cat(parts) for parts in zip(*held_out, strict=True))
        rows = {"real held-out": scores(images, labels)}
        for steps in self.nfe:
            rows[f"nfe{steps}"] = scores(*self._draw(pl_module, steps))
        for row, values in rows.items():
            suffix = "floor" if row == "real held-out" else row
            pl_module.log_dict({f"{stage}/{name}_{suffix}": value for name, value in values.items()}, sync_dist=True)
        if trainer.is_global_zero:
            title = f"step {pl_module.trained_steps}: {self.num_samples} samples"
            Console().print(_table(title, rows))

    def _reference(self, trainer: L.Trainer) -> DigitScores:
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, MNIST):
            raise ConfigError("DigitQuality judges digits: use data: MNIST, or remove the callback")
        return DigitScores(load_judge(), data.reference_images())

    def _draw(self, pl_module: GenerativeModule, steps: int) -> tuple[Tensor, Tensor | None]:
        labels = pl_module.sample_labels(self.num_samples, None)
        images = []
        for first in range(0, self.num_samples, self.batch_size):
            rows = range(first, min(first + self.batch_size, self.num_samples))
            chosen = None if labels is None else labels[rows.start : rows.stop]
            images.append(pl_module.sample(len(rows), steps, chosen, generators(self.seed, rows)))
        return torch.cat(images), labels


def _table(title: str, rows: dict[str, Any]) -> Table:
    table = Table(title=title)
    names = list(dict.fromkeys(name for values in rows.values() for name in values))
    for column in ["", *names]:
        table.add_column(column, justify="right" if column else "left")
    for row, values in rows.items():
        table.add_row(row, *[f"{values[name]:.3f}" if name in values else "" for name in names])
    return table
