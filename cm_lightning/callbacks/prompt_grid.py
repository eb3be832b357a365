"""A sheet of images drawn from the data's prompts, and their scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning_utilities.core.rank_zero import rank_zero_info

from cm_lightning.callbacks.progress import tell
from cm_lightning.callbacks.run_directory import run_directory
from cm_lightning.callbacks.sample_grid import to_wandb
from cm_lightning.data.captions import CaptionedDataModule
from cm_lightning.domains import COUNT, NON_NEGATIVE, SEED, Domain
from cm_lightning.errors import ConfigError
from cm_lightning.images import sheet, to_unit_range, write_png

_SHOWN = 100
_SCORED = Domain("0, or a whole number of at least 2", lambda value: value == 0 or value >= 2, whole=True)


class PromptGrid(Callback):
    """Draws images from held-out prompts at each validation, and scores digits with a classifier.

    Writes ``samples/step_000500_steps4.png`` and logs ``val/frechet_mnist_steps4`` and ``val/accuracy_steps4``.

    Args:
        steps: numbers of sampling steps, with a sheet and a score for each.
        guidance: guidance_scale of the pipeline.
        num_samples: number of images for a score; 0 for no score. The first hundred are shown.
        seed: seed of the noise.
        scale: factor by which the sheet is enlarged.

    Raises:
        ConfigError: a number is out of range.
    """

    def __init__(
        self, steps: Sequence[int] = (1, 2, 4), guidance: float = 1.0, num_samples: int = 500, seed: int = 0,
        scale: int = 1,
    ) -> None:  # fmt: skip
        COUNT.check_each(self, steps=steps)
        NON_NEGATIVE.check(self, guidance=guidance)
        _SCORED.check(self, num_samples=num_samples)
        SEED.check(self, seed=seed)
        COUNT.check(self, scale=scale)
        self.steps, self.guidance, self.num_samples, self.seed, self.scale = steps, guidance, num_samples, seed, scale
        self._scores: Any = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if not callable(getattr(pl_module, "pipeline", None)):
            raise ConfigError(f"PromptGrid: {type(pl_module).__name__} does not draw from prompts: remove the callback")
        if not isinstance(trainer.datamodule, CaptionedDataModule):  # type: ignore[attr-defined]
            raise ConfigError(
                "PromptGrid takes its prompts from CaptionedMNIST or a similar data module: remove the callback"
            )

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking and trainer.is_global_zero:
            self._draw(trainer, pl_module)

    def _draw(self, trainer: L.Trainer, pl_module: Any) -> None:
        from cm_lightning.latent.draw import draw_all
        from cm_lightning.metrics.prompts import PromptScores

        data: CaptionedDataModule = trainer.datamodule  # type: ignore[attr-defined]
        prompts, labels = data.prompts(max(self.num_samples, _SHOWN))
        if self._scores is None and self.num_samples and data.digits:
            self._scores = PromptScores.of_digits(data.digits, data.labelled("train")[0], device=pl_module.device)
        size = (data.image_shape[1], data.image_shape[2])
        pl_module.base.encoders_to(pl_module.device)
        pipe = pl_module.pipeline()
        for number, steps in enumerate(self.steps):
            tell(trainer, "prompts", number, len(self.steps))
            with pl_module.base.drawing(pl_module.device):
                pixels = draw_all(pipe, prompts, steps, self.guidance, self.seed, _SHOWN, size=size)
            path = run_directory(trainer) / "samples" / f"step_{pl_module.trained_steps:06d}_steps{steps}.png"
            write_png(path, sheet(to_unit_range(pixels[:_SHOWN]), 10, self.scale))
            to_wandb(trainer, path, f"samples/steps{steps}")
            if self._scores is not None:
                n = self.num_samples
                scores = self._scores(pixels[:n], prompts[:n], labels[:n])
                shown = "  ".join(f"{name} {value:.4g}" for name, value in scores.items())
                rank_zero_info(f"step {pl_module.trained_steps}, {steps} sampling step(s): {shown}")
                pl_module.log_dict({f"val/{name}_steps{steps}": value for name, value in scores.items()},
                                   rank_zero_only=True)  # fmt: skip
        pl_module.place_encoders()
