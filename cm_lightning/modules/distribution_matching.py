"""Distribution matching distillation in pixels, from an EDM teacher."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from cm_lightning.core.guidance import guided_function
from cm_lightning.core.noise import SIGMA_MAX, expand, karras_sigmas, unit_noise
from cm_lightning.core.parameterization import EDM
from cm_lightning.core.path import VE
from cm_lightning.core.sampler import multistep
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.core.turns import Turns
from cm_lightning.domains import NON_NEGATIVE, POSITIVE
from cm_lightning.errors import ConfigError
from cm_lightning.modules.base import Generators, check_descending
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.discriminator import bottleneck_width
from cm_lightning.modules.matching import DistributionMatching, Divergence, FakeScore
from cm_lightning.modules.teacher import Distilled
from cm_lightning.states import difference


class DistributionMatchingDistillation(DistributionMatching, Distilled):
    """DMD2 (Yin et al. 2024b) in pixels: x = G(sigma_max z, sigma_max), or several steps with fresh noise between.

    Args:
        levels: noise levels of the generator's steps, descending.
        guidance: w of the teacher, c + w (c - u).
        gan_weight, critic_gan_weight: weights of the adversarial losses; with ``gan_weight`` 0 there are none, and the
            data are not used.
        divergence: the divergence between samples and data. ``reverse_kl`` is DMD's; the others are f-distill (Xu et
            al. 2025) and need a ``gan_weight`` above 0.
        critic_lr: learning rate of the fake score; that of the generator if None.
        turns: which network trains at a step; the generator at every fifth if None.
        teacher, start_from_teacher, trust: see :class:`~cm_lightning.modules.distillation.ConsistencyDistillation`.
        parameterization: makes generator and denoisers from the networks.
        backbone, image_shape: see :class:`~cm_lightning.modules.base.GenerativeModule`; label_dropout, optimizer,
            lr_scheduler, start_from: see its bases. The published networks do not have dropout.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int],
        teacher: str | DiffusionModule,
        levels: Sequence[float] = (SIGMA_MAX,),
        guidance: float = 0.0,
        gan_weight: float = 3e-3,
        critic_gan_weight: float = 1e-2,
        divergence: Divergence = "reverse_kl",
        critic_lr: float | None = None,
        turns: Turns | None = None,
        start_from_teacher: bool = True,
        trust: Sequence[str] = (),
        parameterization: EDM | None = None,
        label_dropout: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        check_descending(levels, "levels")
        NON_NEGATIVE.check(self, guidance=guidance, gan_weight=gan_weight, critic_gan_weight=critic_gan_weight)
        if critic_lr is not None:
            POSITIVE.check(self, critic_lr=critic_lr)
        super().__init__(backbone, image_shape, label_dropout, optimizer, lr_scheduler, start_from)
        self.parameterization, self.levels, self.guidance = parameterization or EDM(), list(levels), guidance
        critic = FakeScore(copy.deepcopy(backbone), bottleneck_width(backbone))
        grid, sigma_data = karras_sigmas(1000, sigma_max=self.levels[0]).float(), self.parameterization.sigma_data
        self.hold_matching(VE(), grid, sigma_data, critic, gan_weight, critic_gan_weight, divergence, turns, critic_lr)
        self.default_steps = self.steps
        self.hold_teacher(teacher, trust, start_from_teacher)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage != "fit":
            return
        if self.guidance and not self.teacher.label_dropout:
            raise ConfigError("guidance needs a teacher that was trained with label_dropout: set it to 0")
        if differing := difference(state := self.teacher.backbone.state_dict(), self.critic.network.state_dict()):
            raise ConfigError(f"the fake score starts as the teacher, so the backbone must be its network: {differing}")
        self.critic.network.load_state_dict(state)

    @property
    def steps(self) -> int:
        return len(self.levels)

    def loss(self, x: Tensor, labels: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
        return self.joined(self.losses(x, labels, generator))

    def generator(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """G(x, sigma), the clean image: (B, ...), (B,), (B,) or None -> (B, ...)."""
        return self.parameterization(self.backbone, x, sigma, labels)

    def samples(self, z: Tensor, c: Any, steps: int, generator: torch.Generator | None) -> Tensor:
        # backward simulation (DMD2, section 4.5): the input of a step is the generator's own output under noise
        levels = self.levels[:steps]
        if steps == 1:
            x = levels[0] * z
        else:
            with torch.no_grad():
                before = self.generate(z, c, levels[:-1], generator)
            x = before + levels[-1] * unit_noise(z.shape, generator, z.device, z.dtype)
        return self.generator(x, x.new_full((len(x),), levels[-1]), c)

    def real(self, x_t: Tensor, t: Tensor, c: Any) -> Tensor:
        return guided_function(self.denoised, c, self.num_classes, self.guidance)(x_t, t)

    def fake(self, x_t: Tensor, t: Tensor, c: Any) -> Tensor:
        return self.parameterization(self.critic.network, x_t, t, c)

    def features(self, x_t: Tensor, t: Tensor, c: Any) -> Tensor:
        _, _, c_in, c_noise = self.parameterization.coefficients(t)
        network: Any = self.critic.network
        features: Tensor = network.bottleneck(expand(c_in, x_t) * x_t, c_noise, c)
        return features

    def generate(
        self, z: Tensor, labels: Tensor | None, sigmas: Sequence[float], generator: Generators, guidance: float = 0.0
    ) -> Tensor:
        G = guided_function(self.generator, labels, self.num_classes, guidance)
        return multistep(G, z, sigmas, 0.0, lambda x: unit_noise(x.shape, generator, x.device, x.dtype))

    def trained_levels(self) -> tuple[float, float]:
        return self.levels[-1], self.levels[0]

    def default_sigmas(self, steps: int) -> list[float]:
        if steps > self.steps:
            raise ConfigError(f"the generator was trained for {self.steps} step(s), not for {steps}: choose fewer")
        return self.levels[:steps]
