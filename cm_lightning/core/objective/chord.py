"""The loss of neighbours on a trajectory, at a finite distance."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor

from cm_lightning.core.coupling import Coupling
from cm_lightning.core.curriculum import Clock, Curriculum
from cm_lightning.core.distance import Distance
from cm_lightning.core.noise import expand
from cm_lightning.core.objective.base import FlowMap, Objective
from cm_lightning.core.path import VE
from cm_lightning.core.random import Replay
from cm_lightning.core.residual import Residual
from cm_lightning.core.trajectory import Trajectory
from cm_lightning.core.weighting import Weighting, edm_weight
from cm_lightning.errors import ConfigError


class Chord(Objective):
    """Mean w(t, q) d(X(x_t, t, r), sg X_target(x_q, q, r)), x_q on the trajectory through x_t (CM, Algorithms 2 and 3).

    Both passes draw the same dropout mask.

    Args:
        curriculum: draws the levels.
        trajectory: leads from t to q, and has the path.
        distance: distance between the two ends.
        weighting: weight of t and q.
        coupling: pairs noise and data; they are independent if None.
        denoising: the loss of (X - x) sqrt(lambda(t)) while the target is the data, with EDM's lambda, which is that of
            the VE path; the distance and the weighting if None.

    Raises:
        ConfigError: ``denoising`` on another path.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        trajectory: Trajectory,
        distance: Distance,
        weighting: Weighting,
        coupling: Coupling | None = None,
        denoising: Residual | None = None,
    ) -> None:
        if denoising is not None and not isinstance(trajectory.path, VE):
            raise ConfigError(f"denoising is EDM's loss, of the VE path, not of {type(trajectory.path).__name__}")
        super().__init__()
        self.curriculum, self.trajectory, self.distance, self.weighting = curriculum, trajectory, distance, weighting
        self.coupling, self.denoising = coupling, denoising

    def loss(
        self, map: FlowMap, target: FlowMap, x: Tensor, c: Any, clock: Clock, generator: torch.Generator | None = None
    ) -> Tensor:
        (t, q, r), z, x_t = self.draw(x, c, clock, generator)
        same_dropout = Replay(x.device)
        here = map(x_t, t, r, c)
        if self.denoising is not None and self.curriculum.target_is_data(clock):
            self.show(difference := here - x)
            return cast(Tensor, self.denoising(expand(edm_weight(t).sqrt(), x) * difference, t, r))
        with torch.no_grad(), same_dropout:
            if self.curriculum.target_is_data(clock):
                there = x  # X is the identity at q = r = 0: no need to evaluate the network
            else:
                x_q = self.trajectory.advance(x, z, x_t, t, q, c)
                there = target(x_q, q, r, c)
        self.show(here - there)
        return (self.weighting(t, q) * self.distance(here, there)).mean()
