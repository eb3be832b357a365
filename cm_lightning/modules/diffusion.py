"""EDM: the diffusion model that serves as a baseline and as a teacher."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from cm_lightning.core.guidance import guided_function
from cm_lightning.core.noise import LogNormal, add_noise, expand, unit_noise
from cm_lightning.core.ode_sampler import Heun, ODESampler
from cm_lightning.core.parameterization import EDM
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.core.weighting import edm_weight
from cm_lightning.modules.base import GenerativeModule, Generators


class DiffusionModule(GenerativeModule):
    """A denoiser D(x, sigma), trained and sampled as in Karras et al. 2022.

    Args:
        backbone, image_shape, label_dropout, optimizer, lr_scheduler, start_from: see :class:`GenerativeModule`.
        parameterization: makes the denoiser from the network.
        density: density of the noise levels; EDM's ln sigma ~ N(-1.2, 1.2^2) if None.
        sampler: the ODE solver of :meth:`sample`; EDM's Heun if None.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int] | None = None,
        parameterization: EDM | None = None,
        density: LogNormal | None = None,
        sampler: ODESampler | None = None,
        label_dropout: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        super().__init__(backbone, image_shape, label_dropout, optimizer, lr_scheduler, start_from)
        self.parameterization = parameterization or EDM()
        self.density = density or LogNormal(-1.2, 1.2)
        self.sampler = sampler or Heun()
        self.default_steps = self.sampler.default_nfe

    def loss(self, x: Tensor, labels: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
        """Mean lambda(sigma) (D(x + sigma z, sigma) - x)^2 over samples and pixels: EDM, Eq. 2 and Table 1."""
        sigma = self.density.sample(len(x), x.device, generator)
        z = unit_noise(x.shape, generator, x.device, x.dtype)
        denoised = self.denoiser(add_noise(x, sigma, z), sigma, labels)
        weight = edm_weight(sigma, self.parameterization.sigma_data)
        return (expand(weight, x) * (denoised - x).square()).mean()

    def denoiser(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """D(x, sigma) with the weights that the module holds: (B, ...), (B,), (B,) or None -> (B, ...)."""
        return self.parameterization(self.backbone, x, sigma, labels)

    def generate(
        self, z: Tensor, labels: Tensor | None, sigmas: Sequence[float], generator: Generators, guidance: float = 0.0
    ) -> Tensor:
        denoiser = guided_function(self.denoiser, labels, self.num_classes, guidance)
        return self.sampler(denoiser, z, torch.tensor(sigmas, dtype=torch.float64))

    def trained_levels(self) -> tuple[float, float]:
        return self.density.sigma_min, self.density.sigma_max

    def default_sigmas(self, steps: int) -> list[float]:
        return [float(sigma) for sigma in self.sampler.sigmas(steps)]
