"""How many optimizer steps a training has taken."""

from __future__ import annotations

import lightning as L


def steps_taken(trainer: L.Trainer) -> int:
    """The module's own count, which is one a step however many optimizers there are; the Trainer's if it keeps none."""
    return int(getattr(trainer.lightning_module, "trained_steps", trainer.global_step))
