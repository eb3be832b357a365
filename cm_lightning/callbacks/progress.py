"""The progress bar."""

from __future__ import annotations

from lightning.pytorch.callbacks import RichProgressBar


class RunProgress(RichProgressBar):
    """Lightning's rich bar, titled by the optimizer step: these runs are as long as max_steps says, not epochs."""

    def _get_train_description(self, current_epoch: int) -> str:
        return f"Epoch {current_epoch}, from step {self.trainer.global_step} of {self.trainer.max_steps}"
