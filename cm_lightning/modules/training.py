"""Consistency training: from data alone, without a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from cm_lightning.core.curriculum import ContinuousCurriculum, Curriculum
from cm_lightning.core.distance import Distance, PseudoHuber
from cm_lightning.core.noise import add_noise
from cm_lightning.core.weighting import InverseGap, Weighting
from cm_lightning.modules.consistency import ConsistencyModule


class ConsistencyTraining(ConsistencyModule):
    """CT (CM, Algorithm 3), iCT and ECT, by the curriculum, weighting and distance they are given.

    By default ECT's: continuous noise levels, a gap that halves from stage to stage of eight, 1/(t - r); and
    pseudo-Huber with iCT's constant.

    Args:
        backbone, image_shape, curriculum, distance, weighting, options: see :class:`ConsistencyModule`.
    """

    def __init__(
        self,
        backbone: nn.Module,
        image_shape: Sequence[int] | None = None,
        curriculum: Curriculum | None = None,
        distance: Distance | None = None,
        weighting: Weighting | None = None,
        **options: Any,
    ) -> None:
        super().__init__(
            backbone,
            image_shape,
            curriculum or ContinuousCurriculum(),
            distance or PseudoHuber(),
            weighting or InverseGap(),
            **options,
        )

    def earlier_point(self, x: Tensor, z: Tensor, x_t: Tensor, t: Tensor, r: Tensor, labels: Tensor | None) -> Tensor:
        """X + r z: the same image and the same noise stand for the trajectory (CM, Theorem 2)."""
        return add_noise(x, r, z)
