"""iMF, improved MeanFlow: the derivative is taken along the velocity that the network predicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from cm_lightning.core.curriculum import Curriculum
from cm_lightning.core.limit_times import TwoTimes
from cm_lightning.core.noise import expand
from cm_lightning.core.objective import Tangent
from cm_lightning.core.parameterization import AverageVelocity
from cm_lightning.core.path import Linear
from cm_lightning.core.residual import Adaptive, Residual
from cm_lightning.core.schedule import Ramp, RateSchedule
from cm_lightning.core.trajectory import GuidedNoise, Itself, SameNoise
from cm_lightning.domains import FROM_ONE
from cm_lightning.errors import ConfigError
from cm_lightning.modules.flow_map import FlowMapModule


class ImprovedMeanFlow(FlowMapModule):
    """iMF (Geng et al. 2025, arXiv 2512.02012): u + (t - r) sg du/dt learns v; du/dt is along the network's velocity.

    That velocity is u(x_t, t, t). So the target of the regression does not depend on the network, and the variance of
    MeanFlow, which comes from the velocity of single samples in the derivative, disappears. With ``omega`` above 1 the
    target is the guided velocity v + (1 - 1/omega) (v_c - v_null), from the network's own two estimates: sampling then
    costs one evaluation per step. Labels are dropped throughout the batch, for samples with r below t as well.

    Args:
        curriculum: draws t and r; half of the samples have r below t if None.
        residual: the weight; ``Adaptive(1.0, 0.01)`` if None.
        omega: strength of the guidance, at least 1; 1 means no guidance.
        interval: the lowest and the highest t that are guided; all if None.
        warm_up, derivative: see :class:`~cm_lightning.core.objective.Tangent`.
        backbone, image_shape, parameterization, sampling_sigmas: see :class:`FlowMapModule`; label_dropout, optimizer,
            lr_scheduler, start_from: see its bases.

    Raises:
        ConfigError: guidance without classes or without dropped labels.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int] | None = None,
        curriculum: Curriculum | None = None,
        residual: Residual | None = None,
        omega: float = 1.0,
        interval: Sequence[float] | None = None,
        warm_up: Ramp | None = None,
        derivative: Literal["forward_mode", "difference"] = "forward_mode",
        parameterization: AverageVelocity | None = None,
        sampling_sigmas: Mapping[int, Sequence[float]] | None = None,
        label_dropout: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        FROM_ONE.check(self, omega=omega)
        classes = int(getattr(backbone, "num_classes", 0))
        if omega > 1 and not (classes and label_dropout):
            raise ConfigError(
                "omega needs a class-conditional backbone and label_dropout above 0: set both, or omega to 1"
            )
        guided = GuidedNoise(self.estimate, classes, 1 - 1 / omega, Linear(), interval)
        objective = Tangent(
            curriculum or TwoTimes(different=0.5),
            guided if omega > 1 else SameNoise(Linear()),
            residual or Adaptive(),
            warm_up,
            derivative=derivative,
        )
        super().__init__(
            backbone, image_shape, objective, parameterization, sampling_sigmas,
            label_dropout, optimizer, lr_scheduler, start_from,
        )  # fmt: skip
        objective.direction = Itself(self.target_map(), Linear())

    def estimate(self, x_t: Tensor, t: Tensor, labels: Tensor) -> Tensor:
        """The network's own estimates of the clean images, x_t - t u(x_t, t, t): (B, ...)."""
        return x_t - expand(t, x_t).to(x_t.dtype) * self.map().velocity(x_t, t, labels)
