"""CTM, consistency trajectory models: a teacher's trajectories as jumps between any two of their levels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from cm_lightning.core.distance import L2, Distance
from cm_lightning.core.guidance import guided_jump
from cm_lightning.core.noise import SIGMA_MAX, SIGMA_MIN, LogNormal, unit_noise
from cm_lightning.core.parameterization import DenoiserJump
from cm_lightning.core.sampler import Renewal, follow
from cm_lightning.core.schedule import RateSchedule
from cm_lightning.core.soft_consistency import JumpTimes, SoftConsistency
from cm_lightning.core.target_rate import ConstantRate, TargetRate
from cm_lightning.core.trajectory import Teacher
from cm_lightning.core.weighting import Uniform, Weighting
from cm_lightning.domains import NON_NEGATIVE
from cm_lightning.modules.base import Generators
from cm_lightning.modules.consistency import ConsistencyModule
from cm_lightning.modules.diffusion import DiffusionModule
from cm_lightning.modules.teacher import Distilled


class TrajectoryDistillation(Distilled, ConsistencyModule):
    """CTM (Kim et al. 2023) without its discriminator: jumps between any two levels, by soft consistency matching.

    One network jumps from t to any r below it, and denoises where r = t. It is sampled along a grid of levels; with
    ``gamma`` a share of the noise is redrawn at each level. At 1 all of it is redrawn, as in the sampling of a
    consistency model.

    Noise levels are sigma, as in the other distillations. The teacher is frozen. A checkpoint holds only its path:
    training needs the file again, but sampling does not.

    Args:
        teacher, start_from_teacher, trust: see :class:`~cm_lightning.modules.distillation.ConsistencyDistillation`. To
            start as the teacher, the network needs a ``JumpEmbedding`` whose ``start`` is the teacher's embedding.
        solver: the ODE solver of the teacher's steps.
        curriculum: draws the levels of a jump and the number of the teacher's steps.
        distance: distance between the clean ends; the mean squared difference if None, LPIPS in the paper.
        weighting: weight of a jump; uniform if None.
        density: density of the levels at which the network learns to denoise.
        denoising_weight, balanced: see :class:`~cm_lightning.core.soft_consistency.SoftConsistency`; as published, the
            denoising loss is scaled to the gradient of the other loss.
        target_rate: mu(k) of the target network, which this method always has; 0.999, as published, if None.
        backbone, image_shape, parameterization, sigma_max, sampling_sigmas: see :class:`ConsistencyModule`; the network
            takes two noise labels (B, 2).
        label_dropout, optimizer, lr_scheduler, start_from: see its bases.
    """

    objective: SoftConsistency
    noise_labels_given = 2
    #: The share of the noise that is redrawn between two jumps, in [0, 1]; see :class:`Renewal`.
    gamma = 0.0

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int],
        teacher: str | DiffusionModule,
        solver: Literal["euler", "heun"] = "heun",
        start_from_teacher: bool = True,
        trust: Sequence[str] = (),
        curriculum: JumpTimes | None = None,
        distance: Distance | None = None,
        weighting: Weighting | None = None,
        density: LogNormal | None = None,
        denoising_weight: float = 1.0,
        balanced: bool = True,
        parameterization: DenoiserJump | None = None,
        target_rate: TargetRate | None = None,
        sigma_max: float = SIGMA_MAX,
        sampling_sigmas: Mapping[int, Sequence[float]] | None = None,
        label_dropout: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        NON_NEGATIVE.check(self, denoising_weight=denoising_weight)
        times = curriculum or JumpTimes()
        objective = SoftConsistency(
            times,
            Teacher(self.denoised, solver=solver, lowest=SIGMA_MIN, rho=times.rho),
            distance or L2(),
            weighting or Uniform(),
            density,
            denoising_weight,
            balanced,
        )
        super().__init__(
            backbone, image_shape, objective, parameterization or DenoiserJump(), target_rate or ConstantRate(0.999),
            sigma_max, sampling_sigmas, label_dropout, optimizer, lr_scheduler, start_from,
        )  # fmt: skip
        self.hold_teacher(teacher, trust, start_from_teacher)

    def forward_one(self) -> None:
        passes = 3 if self.objective.denoising_weight else 2  # the gradient passes through the target's jump, too
        for _ in range(passes):
            super().forward_one()

    def flow_map(self, x: Tensor, t: Tensor, r: Tensor, labels: Tensor | None = None) -> Tensor:
        """X(x, t, r) with the weights that the module holds: (B, ...), (B,), (B,), (B,) or None -> (B, ...)."""
        return self.parameterization(self.backbone, x, t, labels, r)

    def generate(
        self, z: Tensor, labels: Tensor | None, sigmas: Sequence[float], generator: Generators, guidance: float = 0.0
    ) -> Tensor:
        def fresh(x: Tensor) -> Tensor:
            return unit_noise(x.shape, generator, x.device, x.dtype)

        path, sigma_min = self.objective.trajectory.path, self.parameterization.sigma_min
        to = guided_jump(self.flow_map, labels, self.num_classes, guidance)
        return follow(to, sigmas[0] * z, [*sigmas, 0.0], Renewal(self.gamma, path, sigma_min, fresh))
