"""Continuous-time consistency models: sCT and sCD, which differ only in the trajectory (sCM, Lu & Song 2024)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from cm_lightning.core.curriculum import Curriculum
from cm_lightning.core.limit_times import OneTime
from cm_lightning.core.noise import SIGMA_MAX
from cm_lightning.core.objective import Tangent
from cm_lightning.core.parameterization import Trigonometric
from cm_lightning.core.path import TrigFlow
from cm_lightning.core.residual import Learned, Residual
from cm_lightning.core.schedule import Ramp, RateSchedule
from cm_lightning.core.trajectory import SameNoise, Teacher, of_ve
from cm_lightning.domains import NON_NEGATIVE
from cm_lightning.modules.consistency import ConsistencyModule
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.teacher import Distilled


class ContinuousConsistencyTraining(ConsistencyModule):
    """sCT (sCM, Algorithm 1): the tangent along the data's own noise, on the TrigFlow path.

    The defaults are as published: the tangent is normalised by its l2 norm, and the weight is learned.

    Args:
        curriculum: draws t.
        residual: weight of the loss.
        warm_up: schedule of the tangent's terms with the network's derivative; in sCM it takes 10,000 steps.
        normalize, c, derivative: see :class:`~cm_lightning.core.objective.Tangent`.
        parameterization: with a ``noise_scale`` of None the network takes t itself.
        backbone, image_shape, sigma_max, sampling_sigmas: see :class:`ConsistencyModule`; noise levels are sigma, as
            everywhere: t = arctan(sigma / sigma_data).
        label_dropout, optimizer, lr_scheduler, start_from: see its bases.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int] | None = None,
        curriculum: Curriculum | None = None,
        residual: Residual | None = None,
        warm_up: Ramp | None = None,
        normalize: Literal["l2", "rms"] | None = "l2",
        c: float = 0.1,
        derivative: Literal["forward_mode", "difference"] = "forward_mode",
        parameterization: Trigonometric | None = None,
        sigma_max: float = SIGMA_MAX,
        sampling_sigmas: Mapping[int, Sequence[float]] | None = None,
        label_dropout: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        NON_NEGATIVE.check(self, c=c)
        own = parameterization or Trigonometric()
        path = TrigFlow(own.sigma_data)
        objective = Tangent(
            curriculum or OneTime(path=path), SameNoise(path), residual or Learned(), warm_up, normalize, c, derivative
        )
        super().__init__(
            backbone, image_shape, objective, own, None, sigma_max, sampling_sigmas,
            label_dropout, optimizer, lr_scheduler, start_from,
        )  # fmt: skip


class ContinuousConsistencyDistillation(Distilled, ContinuousConsistencyTraining):
    """sCD (sCM, Algorithm 1): the same along the velocity of a diffusion teacher.

    Args:
        teacher, start_from_teacher, trust: see :class:`~cm_lightning.modules.distillation.ConsistencyDistillation`.
        The others are those of :class:`ContinuousConsistencyTraining`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int],
        teacher: str | DiffusionModule,
        start_from_teacher: bool = True,
        trust: Sequence[str] = (),
        curriculum: Curriculum | None = None,
        residual: Residual | None = None,
        warm_up: Ramp | None = None,
        normalize: Literal["l2", "rms"] | None = "l2",
        c: float = 0.1,
        derivative: Literal["forward_mode", "difference"] = "forward_mode",
        parameterization: Trigonometric | None = None,
        sigma_max: float = SIGMA_MAX,
        sampling_sigmas: Mapping[int, Sequence[float]] | None = None,
        label_dropout: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        super().__init__(
            backbone, image_shape, curriculum, residual, warm_up, normalize, c, derivative, parameterization,
            sigma_max, sampling_sigmas, label_dropout, optimizer, lr_scheduler, start_from,
        )  # fmt: skip
        self.hold_teacher(teacher, trust, start_from_teacher)
        path = self.objective.trajectory.path
        self.objective.trajectory = Teacher(of_ve(self.denoised, path), path)
