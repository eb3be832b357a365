"""Consistency training from data alone, without a teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import nn

from cm_lightning.core.coupling import Coupling
from cm_lightning.core.curriculum import ContinuousCurriculum, Curriculum
from cm_lightning.core.distance import Distance, PseudoHuber
from cm_lightning.core.noise import SIGMA_MAX
from cm_lightning.core.objective import Chord
from cm_lightning.core.parameterization import BoundaryShifted
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.core.target_rate import TargetRate
from cm_lightning.core.trajectory import SameNoise
from cm_lightning.core.weighting import InverseGap, Weighting
from cm_lightning.modules.consistency import ConsistencyModule


class ConsistencyTraining(ConsistencyModule):
    """CT (CM, Algorithm 3), iCT and ECT, which differ in their curriculum, weighting and distance.

    The same image and the same noise at every level replace the trajectory. The defaults are those of ECT: continuous
    noise levels, a gap that halves in each of eight stages, the weight 1/(t - q), and pseudo-Huber with iCT's constant.

    Args:
        curriculum: draws the noise levels t > q.
        distance: distance between the two outputs.
        weighting: weight of the pair of noise levels.
        coupling: pairs the noise of a batch with its images, such as ``OptimalTransport``; independent if None.
        backbone, image_shape, parameterization, target_rate, sigma_max, sampling_sigmas, contrast: see
            :class:`ConsistencyModule`; label_dropout, optimizer, lr_scheduler, start_from: see its bases.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int] | None = None,
        curriculum: Curriculum | None = None,
        distance: Distance | None = None,
        weighting: Weighting | None = None,
        coupling: Coupling | None = None,
        parameterization: BoundaryShifted | None = None,
        target_rate: TargetRate | None = None,
        sigma_max: float = SIGMA_MAX,
        sampling_sigmas: Mapping[int, Sequence[float]] | None = None,
        label_dropout: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
        contrast: Mapping[int, float] | None = None,
    ) -> None:
        objective = Chord(
            curriculum or ContinuousCurriculum(),
            SameNoise(),
            distance or PseudoHuber(),
            weighting or InverseGap(),
            coupling,
        )
        super().__init__(
            backbone, image_shape, objective, parameterization, target_rate, sigma_max, sampling_sigmas,
            label_dropout, optimizer, lr_scheduler, start_from, contrast,
        )  # fmt: skip
