"""Images and optimizer steps of an epoch: the optimizer also steps after an epoch's last batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from cm_lightning.data.stream import Stream

if TYPE_CHECKING:
    import lightning as L

    from cm_lightning.data.base import GenerativeDataModule


@dataclass(frozen=True)
class Epoch:
    """One pass over the training images.

    Args:
        images: in the training set, mirror images counted too.
        batches: of all ranks together.
        batch_size: images in each of them.
        accumulate: batches of an optimizer step, except for the last step of an epoch, which takes what is left.
    """

    images: int
    batches: int
    batch_size: int
    accumulate: int

    @classmethod
    def of(cls, data: GenerativeDataModule, trainer: L.Trainer) -> Epoch:
        """The epoch of a run. Raises DataError if the data cannot be read; nothing is downloaded."""
        images: int = len(data.training_set())  # type: ignore[arg-type]
        share = max(1, data.batch_size // trainer.world_size)
        batches = len(Stream(range(images), share, world_size=trainer.world_size)) // share
        limit = trainer.limit_train_batches
        limited = min(batches, limit) if isinstance(limit, int) else int(batches * limit)
        return cls(images, max(1, limited), data.batch_size, trainer.accumulate_grad_batches)

    @property
    def steps(self) -> int:
        """Of the optimizer."""
        return -(-self.batches // self.accumulate)

    @property
    def images_of_a_step(self) -> int:
        """Of each step but an epoch's last."""
        return min(self.batches, self.accumulate) * self.batch_size

    @property
    def images_of_the_last_step(self) -> int:
        """Of the last step of an epoch."""
        return (self.batches - (self.steps - 1) * self.accumulate) * self.batch_size

    def images_of(self, steps: int) -> int:
        """Of a number of steps from the start of a run."""
        epochs, rest = divmod(steps, self.steps)
        return (epochs * self.batches + rest * self.accumulate) * self.batch_size
