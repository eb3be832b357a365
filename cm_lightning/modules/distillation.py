"""Consistency distillation: a diffusion teacher supplies the trajectory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from cm_lightning.core.curriculum import ConstantLevels, Curriculum, GridCurriculum
from cm_lightning.core.distance import L2, Distance
from cm_lightning.core.noise import SIGMA_MAX, SIGMA_MIN
from cm_lightning.core.objective import Chord
from cm_lightning.core.parameterization import BoundaryShifted
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.core.target_rate import TargetRate
from cm_lightning.core.trajectory import Teacher
from cm_lightning.core.weighting import Uniform, Weighting
from cm_lightning.modules.consistency import ConsistencyModule
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.teacher import Distilled


class ConsistencyDistillation(Distilled, ConsistencyModule):
    """CD (CM, Algorithm 2): the earlier point is one step of the teacher's probability-flow ODE from x_t.

    The defaults are the paper's for CIFAR-10: 18 levels, l2, uniform weights, Heun, target = student.

    The teacher is frozen. A checkpoint holds only its path: training needs the file again, but sampling does not.

    Args:
        teacher: a diffusion module that holds its weights, or a checkpoint of one, from which the averaged weights are
            taken; or ``openai:FILE``, ``edm:FILE``, ``diffusers:FOLDER``.
        solver: the ODE solver of the teacher's step.
        start_from_teacher: whether the student starts with the teacher's weights.
        trust: packages besides this one from which the teacher's checkpoint may take classes.
        curriculum, distance, weighting: see :class:`~cm_lightning.modules.training.ConsistencyTraining`.
        backbone, image_shape, parameterization, target_rate, sigma_max, sampling_sigmas: see
            :class:`ConsistencyModule`; label_dropout, optimizer, lr_scheduler, start_from: see its bases.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int],
        teacher: str | DiffusionModule,
        solver: Literal["euler", "heun"] = "heun",
        start_from_teacher: bool = True,
        trust: Sequence[str] = (),
        curriculum: Curriculum | None = None,
        distance: Distance | None = None,
        weighting: Weighting | None = None,
        parameterization: BoundaryShifted | None = None,
        target_rate: TargetRate | None = None,
        sigma_max: float = SIGMA_MAX,
        sampling_sigmas: Mapping[int, Sequence[float]] | None = None,
        label_dropout: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        objective = Chord(
            curriculum or GridCurriculum(ConstantLevels(18)),
            Teacher(self.denoised, solver=solver, lowest=SIGMA_MIN),
            distance or L2(),
            weighting or Uniform(),
        )
        super().__init__(
            backbone, image_shape, objective, parameterization, target_rate, sigma_max, sampling_sigmas,
            label_dropout, optimizer, lr_scheduler, start_from,
        )  # fmt: skip
        self.hold_teacher(teacher, trust, start_from_teacher)
