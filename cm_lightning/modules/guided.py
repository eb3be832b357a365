"""Consistency training under classifier-free guidance, by a denoiser that the same run trains first."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn
from typing_extensions import Self

from cm_lightning.core.coupling import Coupling
from cm_lightning.core.curriculum import Clock, ContinuousCurriculum, Curriculum, WarmUp
from cm_lightning.core.distance import Distance, PseudoHuber
from cm_lightning.core.noise import SIGMA_MAX
from cm_lightning.core.objective import Chord
from cm_lightning.core.parameterization import BoundaryShifted
from cm_lightning.core.residual import Adaptive, Residual
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.core.target_rate import ConstantRate, TargetRate
from cm_lightning.core.trajectory import GuidedNoise
from cm_lightning.core.weighting import InverseGap, Weighting
from cm_lightning.domains import BELOW_ONE, COUNT, NON_NEGATIVE
from cm_lightning.errors import ConfigError
from cm_lightning.modules.consistency import ConsistencyModule
from cm_lightning.modules.target import TargetNetwork


class Guide(TargetNetwork):
    """The average of the student during the warm-up, which is frozen when the warm-up ends.

    Args:
        student: the network that is trained.
        decay: decay of the average, in [0, 1); at step k it is at most (1 + k) / (10 + k), as in :class:`EMA`, so that
            the initial weights are forgotten.
        curriculum: the curriculum, whose target is the data during the warm-up.
    """

    def __init__(self, student: nn.Module, decay: float, curriculum: Curriculum) -> None:
        super().__init__(student, ConstantRate(decay), curriculum)

    def mu(self, clock: Clock) -> float:
        if not self.curriculum.target_is_data(clock):
            return 1.0
        return min(super().mu(clock), (1 + clock.step) / (10 + clock.step))


class GuidedConsistencyTraining(ConsistencyModule):
    """Consistency training whose trajectories are guided: one step draws what guided sampling of many steps would.

    A warm-up trains a class-conditional denoiser. When it ends, the average of its weights is frozen as ``guide``, and
    the training continues as in :class:`~cm_lightning.modules.training.ConsistencyTraining`, except that each image is
    moved by w (D(x_t, c) - D(x_t, null)) of the guide, see :class:`~cm_lightning.core.trajectory.GuidedNoise`. A
    training step takes two more evaluations without gradients; sampling takes none.

    Args:
        w: strength of the guidance, at least 0; 0.5 makes classes clearer, 2 costs variety.
        guide_decay: decay of the guide's average, in [0, 1).
        denoising: the loss of the warm-up; ``Adaptive(0.75, 0.01 D)`` if None, where D is the dimension of an image.
        curriculum: draws the noise levels t > q, and begins with a :class:`WarmUp`; without one the guide is the
            diffusion model that ``start_from`` names.
        distance, weighting, coupling: see :class:`~cm_lightning.modules.training.ConsistencyTraining`.
        backbone, image_shape, parameterization, target_rate, sigma_max, sampling_sigmas, contrast: see
            :class:`ConsistencyModule`; label_dropout, optimizer, lr_scheduler, start_from: see its bases.

    Raises:
        ConfigError: the network does not have classes, no labels are dropped, or nothing trains a guide.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int],
        w: float = 0.5,
        guide_decay: float = 0.998,
        denoising: Residual | None = None,
        curriculum: Curriculum | None = None,
        distance: Distance | None = None,
        weighting: Weighting | None = None,
        coupling: Coupling | None = None,
        parameterization: BoundaryShifted | None = None,
        target_rate: TargetRate | None = None,
        sigma_max: float = SIGMA_MAX,
        sampling_sigmas: Mapping[int, Sequence[float]] | None = None,
        label_dropout: float = 0.1,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
        contrast: Mapping[int, float] | None = None,
    ) -> None:
        NON_NEGATIVE.check(self, w=w)
        BELOW_ONE.check(self, guide_decay=guide_decay)
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
            label_dropout, optimizer, lr_scheduler, start_from, contrast,
        )  # fmt: skip
        if not self.num_classes or not label_dropout:
            raise ConfigError("guidance needs a class-conditional backbone and label_dropout above 0: set both")
        if not isinstance(curriculum, WarmUp) and not start_from:
            raise ConfigError("nothing trains a guide: let the curriculum begin with WarmUp, or set start_from")
        guide = Guide(backbone, guide_decay, curriculum)
        self.guide = guide.network.eval()
        self.followers = (*self.followers, guide)

    def pass_beside(self) -> None:
        self.backbone(*(torch.cat([part, part]) for part in self.one_sample()))  # with its class, and without

    def estimate(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The guide's estimates of the clean images, (B, ...)."""
        return self.parameterization(self.guide, x_t, t, labels)

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all networks but the guide, which stays in eval mode, without dropout."""
        super().train(mode)
        self.guide.eval()
        return self
