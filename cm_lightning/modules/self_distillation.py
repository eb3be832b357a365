"""Flow maps that distil themselves: flow matching on a part of each batch, and on the rest what makes them whole.

All methods train one network for any number of steps (Boffi et al. 2025).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from cm_lightning.core.curriculum import Curriculum
from cm_lightning.core.flow_matching import FlowMatching, Split
from cm_lightning.core.gap import ConstantGap, Gap, Through
from cm_lightning.core.limit_times import TwoTimes
from cm_lightning.core.noise import UniformTime
from cm_lightning.core.objective import Eulerian, Lagrangian, SelfDistillation
from cm_lightning.core.parameterization import AverageVelocity
from cm_lightning.core.path import Linear
from cm_lightning.core.residual import Residual
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.core.target_rate import TargetRate
from cm_lightning.core.trajectory import Itself, SameNoise
from cm_lightning.core.velocity_chord import VelocityChord
from cm_lightning.domains import INNER
from cm_lightning.modules.flow_map import FlowMapModule


class _ByDerivative(FlowMapModule):
    """Base of LSD and ESD: flow matching, and a loss of a derivative of the map beside it.

    Args:
        curriculum: draws t and r; uniform on r < t if None.
        residual: the loss of the difference, by default its square.
        flow_matching: the loss that teaches the velocity; with uniform t and the squared error if None.
        share: the part of a batch for flow matching, in (0, 1).
        derivative: see :class:`~cm_lightning.core.objective.SelfDistillation`.
        backbone, image_shape, parameterization, sampling_sigmas, target_rate: see :class:`FlowMapModule`;
            label_dropout, optimizer, lr_scheduler, start_from: see its bases.
    """

    derivative_loss: type[SelfDistillation]

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int] | None = None,
        curriculum: Curriculum | None = None,
        residual: Residual | None = None,
        flow_matching: FlowMatching | None = None,
        share: float = 0.75,
        derivative: Literal["forward_mode", "difference"] = "forward_mode",
        parameterization: AverageVelocity | None = None,
        sampling_sigmas: Mapping[int, Sequence[float]] | None = None,
        target_rate: TargetRate | None = None,
        label_dropout: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        INNER.check(self, share=share)
        times = curriculum or TwoTimes(UniformTime(), different=1.0)
        rest = self.derivative_loss(times, SameNoise(Linear()), residual, derivative)
        super().__init__(
            backbone, image_shape, Split(flow_matching or FlowMatching(), rest, share), parameterization,
            sampling_sigmas, label_dropout, optimizer, lr_scheduler, start_from, target_rate,
        )  # fmt: skip


class LagrangianSelfDistillation(_ByDerivative):
    """LSD (Boffi et al. 2025, Eq. 13): dX/dr is the velocity that the network itself learns, at X."""

    derivative_loss = Lagrangian


class EulerianSelfDistillation(_ByDerivative):
    """ESD (Boffi et al. 2025): X does not change along the velocity that the network itself learns, at x_t.

    The paper finds it unstable on images, where LSD is not.
    """

    derivative_loss = Eulerian


class ProgressiveSelfDistillation(FlowMapModule):
    """PSD (Boffi et al. 2025): one step from t to r goes where the map's own two steps through q go.

    Args:
        curriculum: draws t and r; uniform on r < t if None.
        gap: where q lies: the midpoint (PSD-M) if None, or uniform in between (PSD-U).
        residual: the loss of the difference of velocities, by default its square.
        flow_matching: the loss that teaches the velocity; with uniform t and the squared error if None.
        share: the part of a batch for flow matching, in (0, 1).
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
        flow_matching: FlowMatching | None = None,
        share: float = 0.75,
        parameterization: AverageVelocity | None = None,
        sampling_sigmas: Mapping[int, Sequence[float]] | None = None,
        target_rate: TargetRate | None = None,
        label_dropout: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        INNER.check(self, share=share)
        times = Through(curriculum or TwoTimes(UniformTime(), different=1.0), gap or ConstantGap())
        chord = VelocityChord(times, SameNoise(Linear()), residual)
        super().__init__(
            backbone, image_shape, Split(flow_matching or FlowMatching(), chord, share), parameterization,
            sampling_sigmas, label_dropout, optimizer, lr_scheduler, start_from, target_rate,
        )  # fmt: skip
        chord.trajectory = Itself(self.target_map(), Linear())
