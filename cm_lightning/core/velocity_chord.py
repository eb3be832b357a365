"""The chord between average velocities on the linear path: the loss of flow maps that takes no derivative."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cm_lightning.core.curriculum import Clock, Curriculum, Times
from cm_lightning.core.noise import expand
from cm_lightning.core.objective import Differentiable, Objective
from cm_lightning.core.random import Replay
from cm_lightning.core.residual import Residual, SquaredError
from cm_lightning.core.trajectory import Trajectory
from cm_lightning.domains import NON_NEGATIVE


class VelocityChord(Objective):
    """u(x_t, t, r) learns the mean of the velocities on both parts of the way, p v + (1 - p) sg u(x_q, q, r).

    Here p = (t - q) / (t - r), v is the trajectory's average velocity from t to q, and x_q = x_t - (t - q) v. Where r
    is t, p is 1, which is flow matching. The difference is that of the two ends, divided by t - r; as q tends to t, it
    tends to p times MeanFlow's. All passes draw the same dropout mask.

    Args:
        curriculum: draws t, q and r.
        trajectory: leads from t to q: along the velocity of the data, or the map itself.
        residual: the loss of the difference, which is first divided by a power of p.
        quotient: that power; 0 compares velocities, 1 makes the difference a quotient that does not vanish with p.
        weight: power of p that multiplies the loss of a sample.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        trajectory: Trajectory,
        residual: Residual | None = None,
        quotient: float = 0.0,
        weight: float = 0.0,
    ) -> None:
        NON_NEGATIVE.check(self, quotient=quotient, weight=weight)
        super().__init__()
        self.curriculum, self.trajectory, self.residual = curriculum, trajectory, residual or SquaredError()
        self.quotient, self.weight = quotient, weight

    def loss(
        self,
        map: Differentiable,
        target: Differentiable,
        x: Tensor,
        c: Any,
        clock: Clock,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        (t, q, r), z, x_t = self.draw(x, c, clock, generator)
        same_dropout = Replay(x.device)
        u = map.output(x_t, t, r, c)
        goal = self.goal(target, x, z, x_t, Times(t, q, r), c, same_dropout)
        difference, p = u.to(goal.dtype) - goal, _part(t, q, r)
        self.show(difference)
        losses = self.residual.each(difference / expand(p**self.quotient, x), t, r)
        return (p**self.weight * losses).mean()

    @torch.no_grad()
    def goal(
        self, target: Differentiable, x: Tensor, z: Tensor, x_t: Tensor, times: Times, c: Any, same_dropout: Replay
    ) -> Tensor:
        """The sum p v + (1 - p) u_target(x_q, q, r), (B, ...), in single precision or better."""
        t, q, r = times
        with same_dropout:
            v = self.trajectory.average_velocity(x, z, x_t, t, q, c).to(x_t.dtype)
        x_q = x_t - expand(t - q, x_t).to(x_t.dtype) * v
        with same_dropout:
            rest = target.output(x_q, q, r, c)
        p = expand(_part(t, q, r), x_t)
        return p * v + (1 - p) * rest


def _part(t: Tensor, q: Tensor, r: Tensor) -> Tensor:
    """(t - q) / (t - r), (B,); 1 where r is t."""
    return torch.where(t == r, 1.0, (t - q) / torch.where(t == r, 1.0, t - r))
