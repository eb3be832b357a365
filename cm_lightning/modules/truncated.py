"""TCM, truncated consistency models: a second stage of consistency training, on the high noise levels alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from cm_lightning.core.coupling import Coupling
from cm_lightning.core.curriculum import Clock, Curriculum
from cm_lightning.core.distance import Distance, PseudoHuber
from cm_lightning.core.noise import SIGMA_MAX
from cm_lightning.core.objective import Chord
from cm_lightning.core.parameterization import BoundaryShifted
from cm_lightning.core.sampler import spread_sigmas
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.core.target_rate import ConstantRate
from cm_lightning.core.trajectory import SameNoise
from cm_lightning.core.truncated import TruncatedCurriculum, TruncatedTarget, TruncatedWeighting
from cm_lightning.core.weighting import Weighting
from cm_lightning.domains import COUNT, NON_NEGATIVE
from cm_lightning.errors import ConfigError
from cm_lightning.modules.consistency import ConsistencyModule
from cm_lightning.modules.target import TargetNetwork


class FirstStage(TargetNetwork):
    """The weights that the student starts with, which do not change.

    Args:
        student: the network that is trained.
        curriculum: the curriculum.
    """

    def __init__(self, student: nn.Module, curriculum: Curriculum) -> None:
        super().__init__(student, ConstantRate(0.0), curriculum)

    def follow(self, clock: Clock) -> None:
        """Keep the weights."""


class TruncatedConsistencyTraining(ConsistencyModule):
    """The second stage of TCM (Lee et al. 2024): the network gives up the noise levels below t' and improves above.

    The first stage, an ECT run that ``start_from`` names, is frozen and stays in the checkpoint as ``first_stage``, so
    a run is resumed without that file. It answers where q is below t'; a part of each batch lies at t' itself, where
    this alone keeps the student from becoming constant, which is self-consistent too. Sampling starts at sigma_max, and
    no later level may lie below t'.

    Args:
        curriculum: draws t and q.
        distance: distance between the two outputs; the norm of their difference if None.
        weighting: weight of the pair of noise levels; 1/(t - q) if None.
        boundary: weight of the samples at t' relative to that of the others.
        coupling: pairs the noise of a batch with its images; independent if None.
        start_from: the first stage.
        backbone, image_shape, parameterization, sigma_max, sampling_sigmas: see :class:`ConsistencyModule`;
            label_dropout, optimizer, lr_scheduler: see its bases.

    Raises:
        ConfigError: the first stage is missing.
    """

    objective: Chord

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int],
        start_from: str,
        curriculum: TruncatedCurriculum | None = None,
        distance: Distance | None = None,
        weighting: Weighting | None = None,
        boundary: float = 0.1,
        coupling: Coupling | None = None,
        parameterization: BoundaryShifted | None = None,
        sigma_max: float = SIGMA_MAX,
        sampling_sigmas: Mapping[int, Sequence[float]] | None = None,
        label_dropout: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
    ) -> None:
        NON_NEGATIVE.check(self, boundary=boundary)
        if not start_from:
            raise ConfigError("the second stage needs the first: set start_from to a ConsistencyTraining's checkpoint")
        curriculum = curriculum or TruncatedCurriculum()
        low = curriculum.density.low
        objective = Chord(
            curriculum,
            SameNoise(),
            distance or PseudoHuber(0.0),
            TruncatedWeighting(low, curriculum.share, boundary, weighting),
            coupling,
        )
        super().__init__(
            backbone, image_shape, objective, parameterization, None, sigma_max, sampling_sigmas,
            label_dropout, optimizer, lr_scheduler, start_from,
        )  # fmt: skip
        self.low = low
        first = FirstStage(backbone, curriculum)
        self.first_stage, self.followers = first.network, (first,)

    def loss(self, x: Tensor, labels: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
        map = self.map()
        target = TruncatedTarget(map, self.map(self.first_stage), self.low)
        return self.objective.loss(map, target, x, labels, self.clock, generator)

    def trained_levels(self) -> tuple[float, float]:
        return self.low, self.sigma_max

    def default_sigmas(self, steps: int) -> list[float]:
        COUNT.check(steps=steps)
        return self.sampling_sigmas.get(steps) or spread_sigmas(steps, self.low, self.sigma_max)
