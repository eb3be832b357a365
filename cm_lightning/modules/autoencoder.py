"""The autoencoder of a small latent model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, AutoencoderTiny
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from cm_lightning.core.noise import unit_noise
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.domains import COUNT, NON_NEGATIVE, multiple_of
from cm_lightning.modules.trained import TrainedModule


class AutoencoderModule(TrainedModule):
    """Trains an autoencoder of diffusers on images: l1 + l2 between image and reconstruction, and a slight KL term.

    On export its ``scaling_factor`` is set so that the latents of the last batches have unit variance.

    Args:
        autoencoder: any AutoencoderKL, or an AutoencoderTiny, which has neither a density of latents nor a KL term; if
            None, an AutoencoderKL of the following sizes.
        widths: channels of each level, multiples of 8; each level but the last halves the sides.
        layers: number of residual blocks in a level.
        latent_channels: number of channels of the latents.
        kl_weight: weight of the KL divergence of the latents from N(0, 1), averaged over their elements (Rombach et
            al. 2022: 1e-6 of the sum).
        optimizer, lr_scheduler, start_from: see :class:`TrainedModule`.
    """

    backbone: AutoencoderKL | AutoencoderTiny

    def __init__(
        self,
        autoencoder: AutoencoderKL | AutoencoderTiny | None = None,
        widths: Sequence[int] = (16, 32, 32),
        layers: int = 1,
        latent_channels: int = 4,
        kl_weight: float = 1e-3,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        multiple_of(8).check_each(self, widths=widths)
        COUNT.check(self, layers=layers, latent_channels=latent_channels)
        NON_NEGATIVE.check(self, kl_weight=kl_weight)
        super().__init__(
            autoencoder or _autoencoder(widths, layers, latent_channels), optimizer, lr_scheduler, start_from
        )
        self.kl_weight = kl_weight
        self.variance: Tensor
        self.register_buffer("variance", torch.ones(()))

    def networks(self) -> list[nn.Module]:
        return list(self.backbone.children())  # encode and decode call these

    def forward_one(self) -> None:
        size = self.backbone.config.get("sample_size", 32)
        self.backbone(torch.zeros(1, 3, size, size))

    def batch_loss(self, batch: Any, batch_idx: int, generator: torch.Generator | None = None) -> Tensor:
        x = batch if isinstance(batch, Tensor) else batch[0]
        if isinstance(self.backbone, AutoencoderTiny):
            latents, divergence = self.backbone.encode(x).latents, x.new_zeros(())
        else:
            density = self.backbone.encode(x).latent_dist
            latents = density.mean + density.std * unit_noise(density.mean.shape, generator, x.device, x.dtype)
            divergence = (density.mean.square() + density.var - 1 - density.logvar).mean() / 2
        if self.training:
            self.variance.lerp_(latents.detach().var(), 0.05)
        difference: Tensor = self.backbone.decode(latents).sample - x
        loss: Tensor = difference.abs().mean() + difference.square().mean() + self.kl_weight * divergence
        return loss

    def export(self, directory: Path) -> None:
        """Write the autoencoder to a folder, as diffusers reads it."""
        self.backbone.register_to_config(scaling_factor=float(self.variance) ** -0.5)
        self.backbone.save_pretrained(directory)


def _autoencoder(widths: Sequence[int], layers: int, latent_channels: int) -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(widths),
        up_block_types=("UpDecoderBlock2D",) * len(widths),
        block_out_channels=tuple(widths),
        layers_per_block=layers,
        latent_channels=latent_channels,
        norm_num_groups=8,
    )
