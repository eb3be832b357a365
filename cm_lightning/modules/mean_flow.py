"""MeanFlow: average velocities from data alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from cm_lightning.core.curriculum import Curriculum
from cm_lightning.core.limit_times import TwoTimes
from cm_lightning.core.objective import Tangent
from cm_lightning.core.parameterization import AverageVelocity
from cm_lightning.core.path import Linear
from cm_lightning.core.residual import Adaptive, Residual
from cm_lightning.core.schedule import Ramp, RateSchedule
from cm_lightning.core.trajectory import SameNoise
from cm_lightning.modules.flow_map import FlowMapModule


class MeanFlow(FlowMapModule):
    """MeanFlow (Geng et al. 2025, Algorithm 1): u learns v - (t - r) du/dt, the tangent on the linear path.

    The defaults are the paper's for ImageNet: a quarter of the samples with r below t, p = 1. The weighted loss is then
    near 1 throughout; watch ``train/raw``, the squared error, instead.

    Args:
        curriculum: draws t and r.
        residual: the weight.
        warm_up, derivative: see :class:`~cm_lightning.core.objective.Tangent`.
        backbone, image_shape, parameterization, sampling_sigmas: see :class:`FlowMapModule`; label_dropout, optimizer,
            lr_scheduler, start_from: see its bases.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int] | None = None,
        curriculum: Curriculum | None = None,
        residual: Residual | None = None,
        warm_up: Ramp | None = None,
        derivative: Literal["forward_mode", "difference"] = "forward_mode",
        parameterization: AverageVelocity | None = None,
        sampling_sigmas: Mapping[int, Sequence[float]] | None = None,
        label_dropout: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        objective = Tangent(
            curriculum or TwoTimes(), SameNoise(Linear()), residual or Adaptive(), warm_up, derivative=derivative
        )
        super().__init__(
            backbone, image_shape, objective, parameterization, sampling_sigmas,
            label_dropout, optimizer, lr_scheduler, start_from,
        )  # fmt: skip
