"""IMM, inductive moment matching: a flow map from data alone, whose loss compares groups of samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from cm_lightning.core.moment_matching import GroupTimes, MomentMatching
from cm_lightning.core.parameterization import AverageVelocity
from cm_lightning.core.path import Linear
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.core.target_rate import TargetRate
from cm_lightning.core.trajectory import SameNoise
from cm_lightning.domains import COUNT, NON_NEGATIVE
from cm_lightning.modules.flow_map import FlowMapModule


class InductiveMomentMatching(FlowMapModule):
    """IMM (Zhou et al. 2025): from t and from q, a step below it, groups of samples arrive at r with equal moments.

    It is the chord along the data's own noise with a distance between groups in place of one between samples; a group
    of one sample makes it consistency training. The map has the paper's Euler form, and the noise unit variance.
    Sampling starts at the highest t that is drawn.

    Args:
        curriculum: draws the levels of the groups.
        a: exponent of 1 - t in the weight.
        b: shift of the weight's sigmoid.
        backbone, image_shape, parameterization, sampling_sigmas, target_rate: see :class:`FlowMapModule`;
            label_dropout, optimizer, lr_scheduler, start_from: see its bases.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int] | None = None,
        curriculum: GroupTimes | None = None,
        a: float = 1.0,
        b: float = 5.0,
        parameterization: AverageVelocity | None = None,
        sampling_sigmas: Mapping[int, Sequence[float]] | None = None,
        target_rate: TargetRate | None = None,
        label_dropout: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        NON_NEGATIVE.check(self, a=a, b=b)
        times = curriculum or GroupTimes()
        super().__init__(
            backbone, image_shape, MomentMatching(times, SameNoise(Linear()), a, b), parameterization, sampling_sigmas,
            label_dropout, optimizer, lr_scheduler, start_from, target_rate,
        )  # fmt: skip
        self.highest = times.high

    def one_step(self, z: Tensor, labels: Tensor | None, network: nn.Module | None = None) -> Tensor:
        t = self.highest * z.new_ones(len(z))
        return self.map(network)(self.highest * z, t, 0 * t, labels)

    def trained_levels(self) -> tuple[float, float]:
        return 0.0, self.highest

    def default_sigmas(self, steps: int) -> list[float]:
        COUNT.check(steps=steps)
        return self.sampling_sigmas.get(steps) or [self.highest * (1 - i / steps) for i in range(steps)]
