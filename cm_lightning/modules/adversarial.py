"""Progressive adversarial distillation in pixels, from an EDM teacher."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from cm_lightning.core.guidance import guided_function
from cm_lightning.core.noise import SIGMA_MAX, expand, karras_sigmas
from cm_lightning.core.ode_sampler import integrate
from cm_lightning.core.parameterization import EDM
from cm_lightning.core.path import VE
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.core.solver import euler_step
from cm_lightning.core.stages import Ladder, Stage, Stages
from cm_lightning.core.turns import Turns
from cm_lightning.domains import POSITIVE
from cm_lightning.errors import ConfigError
from cm_lightning.modules.base import Generators
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.discriminator import Discriminator, bottleneck_width
from cm_lightning.modules.staged import StagedDistillation
from cm_lightning.modules.teacher import Distilled


class AdversarialDistillation(StagedDistillation, Distilled):
    """SDXL-Lightning (Lin et al. 2024) in pixels: fewer and fewer steps, by squared error and by discriminators.

    The network stays a denoiser. N of its steps are Euler's (DDIM's) on the VE path, on every (T / N)-th of T levels.

    Args:
        stages: the stages, in order; see :class:`Stage`. The first teacher's steps are T, the levels of the Karras
            grid.
        teacher, start_from_teacher, trust: see :class:`~cm_lightning.modules.distillation.ConsistencyDistillation`.
        discriminator_levels: noise levels under which the discriminator sees clean images.
        critic_lr: learning rate of the discriminator; that of the student if None.
        turns: which network trains at a step; both at every step if None.
        parameterization: makes the denoiser from the network.
        sigma_max: the level at which sampling starts.
        backbone, image_shape: see :class:`~cm_lightning.modules.base.GenerativeModule`; label_dropout, optimizer,
            lr_scheduler, start_from: see its bases. The learning rate's schedule restarts in each stage.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int],
        teacher: str | DiffusionModule,
        stages: Sequence[Stage],
        start_from_teacher: bool = True,
        trust: Sequence[str] = (),
        discriminator_levels: Sequence[float] = (0.05, 0.5, 1.6, 5.5),
        critic_lr: float | None = None,
        turns: Turns | None = None,
        parameterization: EDM | None = None,
        sigma_max: float = SIGMA_MAX,
        label_dropout: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        POSITIVE.check(self, sigma_max=sigma_max)
        if critic_lr is not None:
            POSITIVE.check(self, critic_lr=critic_lr)
        POSITIVE.check_each(self, discriminator_levels=discriminator_levels)
        super().__init__(backbone, image_shape, label_dropout, optimizer, lr_scheduler, start_from)
        self.parameterization, self.sigma_max = parameterization or EDM(), sigma_max
        in_turn = Stages(stages)
        ladder = Ladder(VE(), karras_sigmas(in_turn.first.teacher_steps, sigma_max=sigma_max).float())
        critic = Discriminator(copy.deepcopy(backbone), bottleneck_width(backbone))
        sigma_data = self.parameterization.sigma_data
        self.hold_stages(in_turn, ladder, sigma_data, critic, discriminator_levels, turns, critic_lr)
        self.default_steps = self.stages.stages[-1].student_steps
        self.hold_teacher(teacher, trust, start_from_teacher)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if stage == "fit":
            if any(part.guidance for part in self.stages.stages) and not self.teacher.label_dropout:
                raise ConfigError(
                    "guidance needs a teacher that was trained with label_dropout: set every stage's to 0"
                )
            self.critic.restart(self.fresh_encoder(), seed=0)

    def loss(self, x: Tensor, labels: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
        return self.joined(self.losses(x, labels, generator))

    @property
    def most_steps(self) -> int:
        """The student's steps in the stage in which it takes the most."""
        return max(stage.student_steps for stage in self.stages.stages)

    def denoiser(self, x: Tensor, sigma: Tensor, labels: Tensor | None = None) -> Tensor:
        """The student's estimate of the clean image: (B, ...), (B,), (B,) or None -> (B, ...)."""
        return self.parameterization(self.backbone, x, sigma, labels)

    def clean(self, x_t: Tensor, t: Tensor, c: Any, stage: Stage) -> Tensor:
        return self.denoiser(x_t, t, c)

    def taught(self, x_t: Tensor, t: Tensor, c: Any, index: int) -> Tensor:
        if self.stages.learns_from_student(index):
            return self.parameterization(self.before, x_t, t, c)
        return guided_function(self.denoised, c, self.num_classes, self.stages.stages[index].guidance)(x_t, t)

    def features(self, x_t: Tensor, t: Tensor, c: Any) -> Tensor:
        _, _, c_in, c_noise = self.parameterization.coefficients(t)
        encoder: Any = self.critic.encoder
        features: Tensor = encoder.bottleneck(expand(c_in, x_t) * x_t, c_noise, c)
        return features

    def fresh_encoder(self) -> dict[str, Tensor]:
        return self.teacher.backbone.state_dict() if self.start_from_teacher else self.backbone.state_dict()

    def generate(
        self, z: Tensor, labels: Tensor | None, sigmas: Sequence[float], generator: Generators, guidance: float = 0.0
    ) -> Tensor:
        denoiser = guided_function(self.denoiser, labels, self.num_classes, guidance)
        return integrate(euler_step, denoiser, z, torch.tensor(sigmas, dtype=torch.float64))

    def trained_levels(self) -> tuple[float, float]:
        return float(self.ladder.levels[-1]), self.sigma_max

    def default_sigmas(self, steps: int) -> list[float]:
        return [float(sigma) for sigma in self.ladder.levels[:: self.ladder.stride(steps)]]
