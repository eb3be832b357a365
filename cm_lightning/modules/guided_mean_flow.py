"""iMF whose network takes the guidance as an input: any strength and any interval, in one evaluation per step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from torch import Tensor, nn

from cm_lightning.core.curriculum import Curriculum
from cm_lightning.core.guidance import Guidance, GuidanceInput, GuidanceLaw
from cm_lightning.core.parameterization import AverageVelocity, Map
from cm_lightning.core.path import Linear
from cm_lightning.core.residual import Residual
from cm_lightning.core.schedule import Ramp, RateSchedule
from cm_lightning.core.trajectory import GivenGuidance, checked_interval
from cm_lightning.domains import FRACTION
from cm_lightning.errors import ConfigError
from cm_lightning.modules.base import Generators
from cm_lightning.modules.improved_mean_flow import ImprovedMeanFlow


class GuidedMeanFlow(ImprovedMeanFlow):
    """iMF under guidance that is drawn for each sample and given to the network (Geng et al. 2025, arXiv 2512.02012).

    ``sample`` with ``guidance`` w then draws at omega = 1 + w, which costs one evaluation per step. Labels are
    dropped throughout the batch, for samples with r below t as well.

    Args:
        law: draws omega and the interval of each sample.
        interval: the lowest and the highest t at which sampling is guided; all if None.
        label_dropout: above 0.
        curriculum, residual, warm_up, derivative: see :class:`ImprovedMeanFlow`.
        backbone, image_shape, parameterization, sampling_sigmas: see :class:`FlowMapModule`; the network takes five
            noise labels (B, 5): its ``noise_embedding`` is a
            :class:`~cm_lightning.backbones.embedding.GuidedTimesEmbedding`.
        optimizer, lr_scheduler, start_from: see its bases.

    Raises:
        ConfigError: the network does not have classes, or no labels are dropped.
    """

    noise_labels_given = 5

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int] | None = None,
        curriculum: Curriculum | None = None,
        residual: Residual | None = None,
        law: GuidanceLaw | None = None,
        interval: Sequence[float] | None = None,
        warm_up: Ramp | None = None,
        derivative: Literal["forward_mode", "difference"] = "forward_mode",
        parameterization: AverageVelocity | None = None,
        sampling_sigmas: Mapping[int, Sequence[float]] | None = None,
        label_dropout: float = 0.1,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: RateSchedule | LRSchedulerCallable | None = None,
        start_from: str | None = None,
    ) -> None:
        FRACTION.check(self, label_dropout=label_dropout)
        super().__init__(
            backbone, image_shape, curriculum, residual, 1.0, None, warm_up, derivative, parameterization,
            sampling_sigmas, label_dropout, optimizer, lr_scheduler, start_from,
        )  # fmt: skip
        if not self.num_classes or not label_dropout:
            raise ConfigError("guidance needs a class-conditional backbone and label_dropout above 0: set both")
        self.law, self.interval = law or GuidanceLaw(), checked_interval(interval or (0.0, 1.0))
        self.objective.trajectory = GivenGuidance(self.estimate, self.num_classes, Linear())

    def map(self, network: nn.Module | None = None) -> Map:
        """The flow map of a network under the guidance of its condition; plain classes (B,) are not guided."""
        scale = self.parameterization.noise_scale
        return Map(self.parameterization, GuidanceInput(network or self.backbone, self.num_classes, scale))

    def loss(self, x: Tensor, labels: Tensor | None, generator: torch.Generator | None = None) -> Tensor:
        given: Any = self.law.draw(cast(Tensor, labels), generator)
        return super().loss(x, given, generator)

    def generate(
        self, z: Tensor, labels: Tensor | None, sigmas: Sequence[float], generator: Generators, guidance: float = 0.0
    ) -> Tensor:
        given: Any = Guidance.of(cast(Tensor, labels), 1 + guidance, *self.interval)
        return super().generate(z, given, sigmas, generator)

    def check_guidance(self, guidance: float) -> None:
        super().check_guidance(guidance)
        if not 0 <= guidance <= self.law.largest - 1:
            raise ConfigError(
                f"guidance must lie in 0 ... {self.law.largest - 1:g}, where the network was trained, got {guidance:g}"
            )
