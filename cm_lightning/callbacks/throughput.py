"""Images per second, and the totals of a run: images and seconds."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from cm_lightning.steps import steps_taken


class Throughput(Callback):
    """Logs ``train/images_per_s``, and the totals ``train/images`` and ``train/seconds``, over all ranks.

    Data loading counts, but validation does not. A resumed run continues the totals.
    """

    def __init__(self) -> None:
        self._images, self._seconds, self._since, self._step = 0, 0.0, 0.0, 0
        self._noted = (0, 0.0)

    def state_dict(self) -> dict[str, Any]:
        return {"images": self._images, "seconds": self._seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._images, self._seconds = state_dict["images"], state_dict["seconds"]
        self._noted = (self._images, self._seconds)

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
        n, step = trainer.log_every_n_steps, steps_taken(trainer)  # type: ignore[attr-defined]
        if n and step % n == 0 and step != self._step:
            self._step = step
            images, seconds = self._noted
            self._noted = (self._images, self._seconds)
            rate = (self._images - images) / (self._seconds - seconds)
            pl_module.log("train/images_per_s", rate, prog_bar=True)
            pl_module.log_dict({"train/images": float(self._images), "train/seconds": self._seconds})
