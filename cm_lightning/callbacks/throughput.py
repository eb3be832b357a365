"""Images a second, over all ranks."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor


class Throughput(Callback):
    """Logs ``train/images_per_s`` between two logging steps: data loading counts, validation does not."""

    def __init__(self) -> None:
        self._images, self._seconds, self._since, self._step = 0, 0.0, 0.0, 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._since = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        sizes: list[int] = []
        apply_to_collection(batch, Tensor, lambda tensor: sizes.append(len(tensor)))
        self._images += sizes[0] * trainer.world_size
        now = time.perf_counter()
        self._seconds, self._since = self._seconds + now - self._since, now
        n, step = trainer.log_every_n_steps, trainer.global_step  # type: ignore[attr-defined]
        if n and step % n == 0 and step != self._step:
            self._step = step
            pl_module.log("train/images_per_s", self._images / self._seconds, prog_bar=True)
            self._images, self._seconds = 0, 0.0
