"""Distribution matching distillation in latents: DMD2, for SD 1.5, 2.1 and XL."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor

from cm_lightning.core.few_step import trailing_timesteps
from cm_lightning.core.latent import lcm_sample
from cm_lightning.core.noise import unit_noise
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.core.turns import Turns
from cm_lightning.domains import NON_NEGATIVE, POSITIVE
from cm_lightning.errors import ConfigError
from cm_lightning.latent.base import TextToImageBase
from cm_lightning.latent.encoder import encoder_of, features_width
from cm_lightning.latent.few_step import FewStep
from cm_lightning.latent.recompute import recompute_activations
from cm_lightning.latent.student import Student
from cm_lightning.modules.latent_student import FewStepModule
from cm_lightning.modules.matching import DistributionMatching, Divergence, FakeScore


class LatentDistributionMatching(DistributionMatching, FewStepModule):
    """DMD2 (Yin et al. 2024b) of a text-to-image model: a generator of one step, or of several with noise between.

    Args:
        timesteps: timesteps of the generator's steps, descending; 399 in one step of SDXL as published.
        guidance: w = guidance_scale - 1 of the teacher; as published, 7 for SDXL and 0.75 for SD 1.5.
        gan_weight, critic_gan_weight: weights of the adversarial losses; with ``gan_weight`` 0 there are none, and only
            the captions of the data are used.
        divergence: the divergence between samples and data. ``reverse_kl`` is DMD's; the others are f-distill (Xu et
            al. 2025) and need a ``gan_weight`` above 0.
        critic_lr: learning rate of the fake score; that of the generator if None.
        turns: which network trains at a step; the generator at every fifth if None; as published, at every tenth for SD
            1.5.
        base, student, gradient_checkpointing: see :class:`~cm_lightning.modules.latent_student.StudentModule`; cache,
            offload_encoders, optimizer, lr_scheduler, start_from: see its bases.
    """

    method = "DMD2"

    def __init__(
        self,
        base: TextToImageBase,
        student: Student,
        timesteps: Sequence[int] = (999, 749, 499, 249),
        guidance: float = 7.0,
        gan_weight: float = 5e-3,
        critic_gan_weight: float = 1e-2,
        divergence: Divergence = "reverse_kl",
        critic_lr: float | None = None,
        turns: Turns | None = None,
        gradient_checkpointing: bool = False,
        cache: str | None = None,
        offload_encoders: bool = False,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        NON_NEGATIVE.check(self, guidance=guidance, gan_weight=gan_weight, critic_gan_weight=critic_gan_weight)
        if critic_lr is not None:
            POSITIVE.check(self, critic_lr=critic_lr)
        total = len(base.schedule)
        descend = all(high > low for high, low in pairwise(timesteps))
        if not timesteps or not descend or any(t not in range(total) for t in timesteps):
            raise ConfigError(f"timesteps must descend within 0 ... {total - 1}, got {list(timesteps)}")
        critic = FakeScore(copy.deepcopy(base.unet).float().train(), features_width(base.unet))
        super().__init__(
            base, student, gradient_checkpointing, cache, offload_encoders, optimizer, lr_scheduler, start_from
        )
        if gradient_checkpointing:
            recompute_activations(critic.network)
        self.timesteps, self.guidance = [int(t) for t in timesteps], guidance
        self.hold_matching(
            base.schedule, torch.arange(total), 1.0, critic, gan_weight, critic_gan_weight, divergence, turns, critic_lr
        )
        self.__dict__["_encoder"] = encoder_of(critic.network)

    @property
    def steps(self) -> int:
        return len(self.timesteps)

    def batch_loss(self, batch: Any, batch_idx: int, generator: torch.Generator | None = None) -> Tensor:
        return self.joined(self.losses(*self.latents_and_conditions(batch), generator))

    def generator(self, x_t: Tensor, t: Tensor, c: Any) -> Tensor:
        """G(x_t, t): the clean latents."""
        return self.base.schedule.clean(self.base.output(self.student.unet, x_t, t, c), x_t, t)

    def samples(self, z: Tensor, c: Any, steps: int, generator: torch.Generator | None) -> Tensor:
        # backward simulation (DMD2, section 4.5): the input of a step is the generator's own output under noise
        t = torch.full((len(z),), self.timesteps[steps - 1], device=z.device)
        x_t = z
        if steps > 1:
            with torch.no_grad():
                before = lcm_sample(
                    lambda x, t: self.generator(x, t, c), self.base.schedule, z, self.timesteps[: steps - 1],
                    lambda x: unit_noise(x.shape, generator, x.device, x.dtype),
                )  # fmt: skip
            x_t = self.base.schedule.point(before, unit_noise(z.shape, generator, z.device, z.dtype), t)
        return self.generator(x_t, t, c)

    def real(self, x_t: Tensor, t: Tensor, c: Any) -> Tensor:
        return self.guided_teacher(x_t, t, c, x_t.new_full((len(x_t),), self.guidance))

    def fake(self, x_t: Tensor, t: Tensor, c: Any) -> Tensor:
        return self.base.schedule.clean(self.base.output(self.critic.network, x_t, t, c), x_t, t)

    def features(self, x_t: Tensor, t: Tensor, c: Any) -> Tensor:
        return self.base.output(self.__dict__["_encoder"], x_t, t, c)

    def few_step(self) -> FewStep:
        trailing = self.timesteps == trailing_timesteps(self.steps, len(self.base.schedule))
        return FewStep(self.steps, "lcm", None, () if trailing else tuple(self.timesteps))
