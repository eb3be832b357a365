"""Progressive distillation: a diffusion model whose number of steps halves in each stage."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from typing_extensions import Self

from cm_lightning.core.curriculum import Clock
from cm_lightning.core.distance import L2, Distance
from cm_lightning.core.halving import HalvingLevels, StepMap, TruncatedSNR, WholeSteps, stay
from cm_lightning.core.noise import SIGMA_MAX, SIGMA_MIN, check_levels
from cm_lightning.core.objective import Chord
from cm_lightning.core.ode_sampler import Euler
from cm_lightning.core.parameterization import EDM
from cm_lightning.core.sampler import spread_sigmas
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.core.trajectory import Teacher
from cm_lightning.core.weighting import Weighting
from cm_lightning.domains import COUNT
from cm_lightning.errors import ConfigError
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.target import StudentOfBefore


class ProgressiveDistillation(DiffusionModule):
    """One step of the student ends where two steps of its teacher, the student of the previous stage, end.

    Steps are deterministic DDIM on EDM's grid (Salimans & Ho 2022, Algorithm 2); the first teacher is the diffusion
    model that ``start_from`` names. The teacher of a stage is in the checkpoint, so a run is resumed without that
    file. After the last stage the model is sampled in the student's final number of steps.

    Args:
        steps: the student's steps in the first stage; the first teacher takes twice as many.
        stages: number of stages, each of which halves the steps.
        distance: distance between the ends of the steps, the mean squared difference if None.
        weighting: weight of a step; max(SNR, 1) of the denoisers' difference if None.
        sigma_min: the level at which the last step ends.
        sigma_max: the level at which sampling starts.
        start_from: the first teacher.
        backbone, image_shape, parameterization: see :class:`DiffusionModule`; label_dropout, optimizer, lr_scheduler:
            see its bases. The published learning rate is a ``StagedDecay``.

    Raises:
        ConfigError: a teacher is missing, or the steps cannot be halved so often.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int],
        start_from: str,
        steps: int = 16,
        stages: int = 5,
        distance: Distance | None = None,
        weighting: Weighting | None = None,
        sigma_min: float = SIGMA_MIN,
        sigma_max: float = SIGMA_MAX,
        parameterization: EDM | None = None,
        label_dropout: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
    ) -> None:
        check_levels(self, sigma_min, sigma_max)
        COUNT.check(self, steps=steps, stages=stages)
        if not start_from:
            raise ConfigError("a distillation needs a teacher: set start_from to a DiffusionModule's checkpoint")
        curriculum = WholeSteps(HalvingLevels(steps, stages), sigma_min=sigma_min, sigma_max=sigma_max)
        teacher = Teacher(self.taught, solver="euler", steps=2, rho=curriculum.rho)
        super().__init__(
            backbone, image_shape, parameterization, None, Euler(sigma_min, sigma_max),
            label_dropout, optimizer, lr_scheduler, start_from,
        )  # fmt: skip
        self.objective = Chord(curriculum, teacher, distance or L2(), weighting or TruncatedSNR())
        self.most_steps = steps
        self.default_steps = steps // 2 ** (stages - 1)
        self.sigma_min, self.sigma_max = sigma_min, sigma_max
        before = StudentOfBefore(backbone, curriculum.begins)
        self.stage_teacher, self.followers = before.network.eval(), (before,)

    def taught(self, x: Tensor, sigma: Tensor, labels: Tensor | None) -> Tensor:
        """The estimate of the clean image by the teacher of the stage, at x (B, ...), sigma (B,)."""
        return self.parameterization(self.stage_teacher, x, sigma, labels)

    def loss(self, x: Tensor, labels: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
        return self.objective.loss(StepMap(self.denoiser), stay, x, labels, self.clock, generator)

    def progress(self, clock: Clock) -> dict[str, float]:
        return {"steps": self.objective.curriculum.progress(clock)["N"] - 1}

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all networks but the teacher, which stays in eval mode, without dropout."""
        super().train(mode)
        self.stage_teacher.eval()
        return self

    def trained_levels(self) -> tuple[float, float]:
        return self.sigma_min, self.sigma_max

    def default_sigmas(self, steps: int) -> list[float]:
        return spread_sigmas(steps, self.sigma_min, self.sigma_max)
