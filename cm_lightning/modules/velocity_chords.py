"""MeanFlow without a derivative: a short step along the data's velocity, then the network for the rest of the way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from cm_lightning.core.curriculum import Curriculum
from cm_lightning.core.gap import ExponentialGap, Gap, SigmoidGap, Through
from cm_lightning.core.limit_times import TwoTimes
from cm_lightning.core.parameterization import AverageVelocity
from cm_lightning.core.path import Linear
from cm_lightning.core.residual import Adaptive, Residual
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.core.target_rate import TargetRate
from cm_lightning.core.trajectory import SameNoise
from cm_lightning.core.velocity_chord import VelocityChord
from cm_lightning.modules.flow_map import FlowMapModule


class AlphaFlow(FlowMapModule):
    """alpha-Flow (Zhang et al. 2025): u learns alpha v + (1 - alpha) sg u(x_q, q, r), q = t - alpha (t - r).

    It goes from flow matching, alpha = 1, through shortcut models to MeanFlow, alpha -> 0; here alpha stays above 0
    to the end, so no derivative is taken. The loss of a sample is weighted by alpha.

    Args:
        curriculum: draws t and r; half of the samples have r below t if None.
        gap: alpha.
        residual: the weight; ``Adaptive(1.0, 0.01)`` if None.
        backbone, image_shape, parameterization, sampling_sigmas, target_rate: see :class:`FlowMapModule`;
            label_dropout, optimizer, lr_scheduler, start_from: see its bases.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int] | None = None,
        curriculum: Curriculum | None = None,
        gap: Gap | None = None,
        residual: Residual | None = None,
        parameterization: AverageVelocity | None = None,
        sampling_sigmas: Mapping[int, Sequence[float]] | None = None,
        target_rate: TargetRate | None = None,
        label_dropout: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        times = Through(curriculum or TwoTimes(different=0.5), gap or SigmoidGap())
        objective = VelocityChord(times, SameNoise(Linear()), residual or Adaptive(), weight=1.0)
        super().__init__(
            backbone, image_shape, objective, parameterization, sampling_sigmas,
            label_dropout, optimizer, lr_scheduler, start_from, target_rate,
        )  # fmt: skip


class SoFlow(FlowMapModule):
    """SoFlow (Luo et al. 2025): both ways must end alike; their difference is divided by the length of the first step.

    With the same points it differs from :class:`AlphaFlow` in the weights, and in the schedule of q.

    Args:
        curriculum: draws t and r; all samples have r below t if None.
        gap: (t - q) / (t - r).
        residual: the weight; ``Adaptive(0.75, 1e-3)`` if None.
        backbone, image_shape, parameterization, sampling_sigmas, target_rate: see :class:`FlowMapModule`;
            label_dropout, optimizer, lr_scheduler, start_from: see its bases.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int] | None = None,
        curriculum: Curriculum | None = None,
        gap: Gap | None = None,
        residual: Residual | None = None,
        parameterization: AverageVelocity | None = None,
        sampling_sigmas: Mapping[int, Sequence[float]] | None = None,
        target_rate: TargetRate | None = None,
        label_dropout: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        times = Through(curriculum or TwoTimes(different=1.0), gap or ExponentialGap())
        objective = VelocityChord(times, SameNoise(Linear()), residual or Adaptive(0.75, 1e-3), quotient=1.0)
        super().__init__(
            backbone, image_shape, objective, parameterization, sampling_sigmas,
            label_dropout, optimizer, lr_scheduler, start_from, target_rate,
        )  # fmt: skip
