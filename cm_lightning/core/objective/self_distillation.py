"""Losses of a flow map's derivative in one of its times, against the velocity that it learns itself."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.func import jvp

from cm_lightning.core.curriculum import Clock, Curriculum
from cm_lightning.core.objective.base import Differentiable, Objective
from cm_lightning.core.random import Replay
from cm_lightning.core.residual import Residual, SquaredError
from cm_lightning.core.trajectory import Trajectory
from cm_lightning.domains import POSITIVE


class SelfDistillation(Objective):
    """Base of the losses that compare a derivative of the map, in one of its times, with the map's own velocity.

    The gradient passes through that derivative alone; what it is compared with, the velocity dX/dr at r = t included,
    is the target's own. So something else must teach the velocity: flow matching beside it, see
    :class:`~cm_lightning.core.flow_matching.Split`. The map must be one of average velocities.

    Args:
        curriculum: draws t and r; its q is not used.
        trajectory: has the path.
        residual: the loss of the difference.
        derivative: ``forward_mode``, exact, for networks that have it; ``difference``, central differences.
        h: half the distance of the two points of a difference.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        trajectory: Trajectory,
        residual: Residual | None = None,
        derivative: Literal["forward_mode", "difference"] = "forward_mode",
        h: float = 0.005,
    ) -> None:
        POSITIVE.check(self, h=h)
        super().__init__()
        self.curriculum, self.trajectory, self.residual = curriculum, trajectory, residual or SquaredError()
        self.derivative, self.h = derivative, h
        self.forward_mode = derivative == "forward_mode"

    def loss(
        self,
        map: Differentiable,
        target: Differentiable,
        x: Tensor,
        c: Any,
        clock: Clock,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        (t, _, r), _, x_t = self.draw(x, c, clock, generator)
        with torch.autocast(x.device.type, enabled=False):
            difference = self.difference(map, target, x_t, t, r, c)
        self.show(difference)
        return cast(Tensor, self.residual(difference, t, r))

    @abstractmethod
    def difference(
        self, map: Differentiable, target: Differentiable, x_t: Tensor, t: Tensor, r: Tensor, c: Any = None
    ) -> Tensor:
        """What must vanish at x_t (B, ...), t and r (B,): (B, ...)."""

    def along(self, f: Callable[[Tensor], Tensor], at: Tensor, direction: Tensor) -> tuple[Tensor, Tensor]:
        """The value of f, and its derivative along a direction; from differences, both are right up to h^2."""
        if self.derivative == "forward_mode":
            return cast(tuple[Tensor, Tensor], jvp(f, (at,), (direction,)))
        same_dropout = Replay(at.device)
        above = f(at + self.h * direction)
        with same_dropout:
            below = f(at - self.h * direction)
        return (above + below) / 2, (above - below) / (2 * self.h)


class Lagrangian(SelfDistillation):
    """dX/dr at r must be the velocity there: the map's end moves as the trajectory does (Boffi et al. 2025, Eq. 13)."""

    def difference(
        self, map: Differentiable, target: Differentiable, x_t: Tensor, t: Tensor, r: Tensor, c: Any = None
    ) -> Tensor:
        """dX(x_t, t, r)/dr - sg v(X, r), (B, ...)."""
        same_dropout = Replay(x_t.device)
        end, along_r = self.along(lambda r: map(x_t, t, r, c), r, torch.ones_like(r))
        with torch.no_grad(), same_dropout:
            velocity = target.velocity(end.detach(), r, c)
        return along_r - velocity


class Eulerian(SelfDistillation):
    """dX/dt along the trajectory must vanish: partial_t X + (grad_x X) v = 0 (Boffi et al. 2025, ESD).

    The gradient passes through the derivative in t alone, as in the published runs: the other term, a derivative of the
    network in its image, is the target's own.
    """

    def difference(
        self, map: Differentiable, target: Differentiable, x_t: Tensor, t: Tensor, r: Tensor, c: Any = None
    ) -> Tensor:
        """dX(x_t, t, r)/dt + sg (grad_x X) v(x_t, t), (B, ...)."""
        same_dropout = Replay(x_t.device)
        _, along_t = self.along(lambda t: map(x_t, t, r, c), t, torch.ones_like(t))
        with torch.no_grad(), same_dropout:
            velocity = target.velocity(x_t, t, c).to(x_t.dtype)
        with torch.no_grad(), same_dropout:
            _, along_x = self.along(lambda x: target(x, t, r, c), x_t, velocity)
        return along_t + along_x
