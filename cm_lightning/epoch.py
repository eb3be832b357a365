"""Images and optimizer steps of an epoch, which is of whole steps."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cm_lightning.data.stream import Stream

if TYPE_CHECKING:
    import lightning as L

    from cm_lightning.data.base import GenerativeDataModule


@dataclass(frozen=True)
class Epoch:
    """About one pass over the training images.

    Args:
        images: in the training set, mirror images counted too.
        steps: of the optimizer.
    """

    images: int
    steps: int

    @classmethod
    def of(cls, data: GenerativeDataModule, trainer: L.Trainer) -> Epoch:
        """The epoch of a run. Raises DataError if the data cannot be read; nothing is downloaded."""
        images: int = len(data.training_set())  # type: ignore[arg-type]
        share = max(1, data.batch_size // trainer.world_size)
        accumulate = trainer.accumulate_grad_batches
        batches = len(Stream(range(images), share, world_size=trainer.world_size, multiple=accumulate)) // share
        limit = trainer.limit_train_batches
        limited = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        return cls(images, max(1, limited // accumulate))
