"""Latent diffusion, which trains a text-to-image base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as nnf
from diffusers import DiffusionPipeline
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from cm_lightning.core.noise import unit_noise
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.domains import FRACTION
from cm_lightning.latent.base import TextToImageBase
from cm_lightning.modules.latent import LatentModule
from cm_lightning.quiet import quiet


class LatentDiffusionModule(LatentModule):
    """Trains the network of a base on captioned images, from scratch or its weights (Rombach et al. 2022, Eq. 3).

    Args:
        base: the model whose network is trained; its autoencoder and text encoders stay as they are.
        caption_dropout: probability of training on a sample without its caption; guidance needs it.
        cache, offload_encoders: see :class:`LatentModule`; optimizer, lr_scheduler, start_from: see
            :class:`TrainedModule`.
    """

    def __init__(
        self,
        base: TextToImageBase,
        caption_dropout: float = 0.1,
        cache: str | None = None,
        offload_encoders: bool = False,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        FRACTION.check(self, caption_dropout=caption_dropout)
        super().__init__(base, base.unet, cache, offload_encoders, optimizer, lr_scheduler, start_from)
        self.caption_dropout = caption_dropout

    def batch_loss(self, batch: Any, batch_idx: int, generator: torch.Generator | None = None) -> Tensor:
        """Mean squared error of the predicted noise, or of v, at timesteps drawn uniformly."""
        z_0, c = self.latents_and_conditions(batch)
        schedule, device = self.base.schedule, z_0.device
        if self.training and self.caption_dropout:
            c = self.no_prompt(z_0).where(torch.rand(len(z_0), device=device) < self.caption_dropout, c)
        t = torch.randint(len(schedule), (len(z_0),), device=device, generator=generator)
        epsilon = unit_noise(z_0.shape, generator, device, z_0.dtype)
        output = self.base.output(self.backbone, schedule.point(z_0, epsilon, t), t, c)
        return nnf.mse_loss(output.float(), schedule.target(z_0, t, epsilon).float())

    def pipeline(self) -> DiffusionPipeline:
        return self.base.pipe

    def export(self, directory: Path) -> None:
        with quiet():
            self.base.pipe.save_pretrained(directory)
