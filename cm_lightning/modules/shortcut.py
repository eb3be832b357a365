"""Shortcut models: flow maps on dyadic grids, whose networks are conditioned on the size of the step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from cm_lightning.core.dyadic_times import POWER_OF_TWO, DyadicTimes, EvenSteps
from cm_lightning.core.flow_matching import FlowMatching, Split
from cm_lightning.core.parameterization import AverageVelocity
from cm_lightning.core.path import Linear
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.core.target_rate import TargetRate
from cm_lightning.core.trajectory import Itself, SameNoise
from cm_lightning.core.velocity_chord import VelocityChord
from cm_lightning.domains import INNER
from cm_lightning.modules.flow_map import FlowMapModule


class ShortcutModel(FlowMapModule):
    """A step of d ends where two steps of d/2 end (Frans et al. 2024), for d = 1, 1/2, ..., 2/finest.

    It is :class:`~cm_lightning.modules.self_distillation.ProgressiveSelfDistillation` at the midpoint, on dyadic
    grids; flow matching teaches the step 1/finest. Every image is used in each training step, for one loss or the
    other; targets are not clipped.

    Args:
        finest: number of steps of the finest grid, a power of 2; more steps than that do not sample well.
        share: the part of a batch for flow matching, in (0, 1).
        backbone, image_shape, parameterization, sampling_sigmas, target_rate: see :class:`FlowMapModule`; the paper's
            target network has the rate 0.999.
        label_dropout, optimizer, lr_scheduler, start_from: see its bases.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int] | None = None,
        finest: int = 128,
        share: float = 0.875,
        parameterization: AverageVelocity | None = None,
        sampling_sigmas: Mapping[int, Sequence[float]] | None = None,
        target_rate: TargetRate | None = None,
        label_dropout: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        POWER_OF_TWO.check(self, finest=finest)
        INNER.check(self, share=share)
        chord = VelocityChord(DyadicTimes(finest), SameNoise(Linear()))
        super().__init__(
            backbone, image_shape, Split(FlowMatching(EvenSteps(finest)), chord, share), parameterization,
            sampling_sigmas, label_dropout, optimizer, lr_scheduler, start_from, target_rate,
        )  # fmt: skip
        chord.trajectory = Itself(self.target_map(), Linear())
