"""Consistency training under classifier-free guidance, by a denoiser that the same run trains first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from cm_lightning.core.curriculum import ContinuousCurriculum, Curriculum, TargetRate, UntilWarm, WarmUp
from cm_lightning.core.distance import Distance, PseudoHuber
from cm_lightning.core.noise import SIGMA_MAX
from cm_lightning.core.objective import Chord
from cm_lightning.core.parameterization import BoundaryShifted
from cm_lightning.core.residual import Adaptive, Residual
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.core.trajectory import GuidedNoise
from cm_lightning.core.weighting import InverseGap, Weighting
from cm_lightning.domains import COUNT, NON_NEGATIVE
from cm_lightning.errors import ConfigError
from cm_lightning.modules.consistency import ConsistencyModule
from cm_lightning.modules.coupling import OptimalTransport
from cm_lightning.modules.target import TargetNetwork


class GuidedConsistencyTraining(ConsistencyModule):
    """Consistency training whose trajectories are guided: one step draws what guided sampling of many steps would.

    A warm-up trains a class-conditional denoiser. When it ends, the average of its weights is frozen as ``guide``, and
    the network goes on as in :class:`~cm_lightning.modules.training.ConsistencyTraining`, except that each image is
    moved by w (D(x_t, c) - D(x_t, null)) of the guide, see :class:`~cm_lightning.core.trajectory.GuidedNoise`. A step
    takes two more evaluations without gradients, a sample none.

    Args:
        w: strength of the guidance, at least 0; 0.5 makes classes clearer, 2 costs variety.
        guide_rate: mu(k) of the guide's average.
        denoising: the loss of the warm-up; ``Adaptive(0.75, 0.01 D)`` if None, D the dimension of an image.
        curriculum: draws the noise levels t > q, and begins with a :class:`WarmUp`; without one the guide is the
            diffusion model that ``start_from`` names.
        distance, weighting, coupling: see :class:`~cm_lightning.modules.training.ConsistencyTraining`.
        backbone, image_shape, parameterization, target_rate, sigma_max, sampling_sigmas: see
            :class:`ConsistencyModule`; label_dropout, optimizer, lr_scheduler, start_from: see its bases.

    Raises:
        ConfigError: the network has no classes, no labels are dropped, or nothing trains a guide.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int],
        w: float = 0.5,
        guide_rate: TargetRate | None = None,
        denoising: Residual | None = None,
        curriculum: Curriculum | None = None,
        distance: Distance | None = None,
        weighting: Weighting | None = None,
        coupling: OptimalTransport | None = None,
        parameterization: BoundaryShifted | None = None,
        target_rate: TargetRate | None = None,
        sigma_max: float = SIGMA_MAX,
        sampling_sigmas: Mapping[int, Sequence[float]] | None = None,
        label_dropout: float = 0.1,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        NON_NEGATIVE.check(self, w=w)
        COUNT.check_each(self, image_shape=image_shape)
        curriculum = curriculum or WarmUp(ContinuousCurriculum())
        objective = Chord(
            curriculum,
            GuidedNoise(self.estimate, int(getattr(backbone, "num_classes", 0)), w),
            distance or PseudoHuber(),
            weighting or InverseGap(),
            coupling,
            denoising or Adaptive(0.75, 0.01 * math.prod(image_shape)),
        )
        super().__init__(
            backbone, image_shape, objective, parameterization, target_rate, sigma_max, sampling_sigmas,
            label_dropout, optimizer, lr_scheduler, start_from,
        )  # fmt: skip
        if not self.num_classes or not label_dropout:
            raise ConfigError("guidance needs a class-conditional backbone and label_dropout above 0: set both")
        if not isinstance(curriculum, WarmUp) and not start_from:
            raise ConfigError("nothing trains a guide: let the curriculum begin with WarmUp, or set start_from")
        guide = TargetNetwork(backbone, guide_rate or UntilWarm(), curriculum)
        self.guide = guide.network
        self.followers = (*self.followers, guide)

    def estimate(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The guide's estimates of the clean images, (B, ...), without dropout."""
        return self.parameterization(self.guide.eval(), x_t, t, labels)
