"""The number of optimizer steps that training has taken."""

from __future__ import annotations

import lightning as L


def steps_taken(trainer: L.Trainer) -> int:
    """The module's own count, one per step for any number of optimizers; the Trainer's if the module has none."""
    return int(getattr(trainer.lightning_module, "trained_steps", trainer.global_step))
