"""The limit of the chord for neighbours that approach one another: the derivative along the trajectory."""

from __future__ import annotations

from typing import Any, Literal, cast

import torch
from torch import Tensor
from torch.func import jvp

from cm_lightning.core.curriculum import Clock, Curriculum
from cm_lightning.core.noise import expand
from cm_lightning.core.objective.base import Differentiable, Objective
from cm_lightning.core.random import Replay
from cm_lightning.core.residual import Residual, SquaredError
from cm_lightning.core.schedule import Ramp
from cm_lightning.core.trajectory import Trajectory
from cm_lightning.domains import NON_NEGATIVE, POSITIVE


class Tangent(Objective):
    """The limit q -> t of the chord: the network's output F learns F + g, g along the map's derivative (sCM, Eq. 8).

    With X = a x + b F, v = dx_t/dt on the trajectory, dF/dt along it, and s the parameterization's sigma_data,

        g = -b'/s [a v + b' F + warm (a' x_t + b dF/dt)],

    which vanishes where X is constant along trajectories. On the TrigFlow path it is sCM's; on the linear one, where
    a = 1 and b = r - t, it is MeanFlow's v - u - (t - r) du/dt.

    The derivative is taken without gradients, without autocast, under the dropout mask of F.

    Args:
        curriculum: draws t and r; its q is not used.
        trajectory: gives the velocity v, and has the path.
        residual: the loss of F - sg(F + g): a weight and a norm.
        warm_up: schedule of the factor ``warm``; 1 throughout if None. While it is 0, F learns the velocity alone: the
            regression of diffusion models, without the factor b' that damps g at high noise, and not normalised.
        normalize: g / (||g|| + c): ``l2``, the norm of a sample as in the paper; ``rms``, that of its elements; None.
        c: constant of the normalisation.
        derivative: ``forward_mode``, exact, for networks that have it; ``difference``, central differences along
            the trajectory, for those that do not, and on a CPU in less than half of the time.
        h: half the distance in t of the two points of a difference.
        direction: gives the velocity along which the derivative is taken, where that is not v (iMF).
    """

    def __init__(
        self,
        curriculum: Curriculum,
        trajectory: Trajectory,
        residual: Residual | None = None,
        warm_up: Ramp | None = None,
        normalize: Literal["l2", "rms"] | None = None,
        c: float = 0.1,
        derivative: Literal["forward_mode", "difference"] = "forward_mode",
        h: float = 0.005,
        direction: Trajectory | None = None,
    ) -> None:
        NON_NEGATIVE.check(self, c=c)
        POSITIVE.check(self, h=h)
        super().__init__()
        self.curriculum, self.trajectory, self.residual = curriculum, trajectory, residual or SquaredError()
        self.warm_up, self.normalize, self.c = warm_up or Ramp(), normalize, c
        self.derivative, self.h, self.direction = derivative, h, direction
        self.forward_mode = derivative == "forward_mode"

    def phase(self, clock: Clock) -> str:
        warm, own = self.warm_up(*clock), super().phase(clock)
        name = own if warm == 1 else f"tangent at {warm:.0%}" if warm else "velocity"
        return f"{name}, {own}" if own and warm < 1 else name

    def loss(
        self,
        map: Differentiable,
        target: Differentiable,
        x: Tensor,
        c: Any,
        clock: Clock,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        (t, _, r), z, x_t = self.draw(x, c, clock, generator)
        same_dropout = Replay(x.device)
        F = map.output(x_t, t, r, c)
        with torch.no_grad():
            v = self.trajectory.velocity(x, z, x_t, t, c).to(x_t.dtype)
            if (warm := self.warm_up(*clock)) == 0:
                goal = self.velocity_output(map, t, r, v)
            else:
                value = F.detach().to(x_t.dtype) if target is map else None
                with same_dropout:
                    along = self.direction.velocity(x, z, x_t, t, c).to(x_t.dtype) if self.direction else v
                with same_dropout, torch.autocast(x.device.type, enabled=False):
                    g = self.tangent(target, x_t, t, r, v, c, warm, value, along)
                goal = F.detach() + self._normalized(g)
        difference = F.to(torch.promote_types(F.dtype, torch.float32)) - goal
        self.show(difference)
        return cast(Tensor, self.residual(difference, t, r))

    def velocity_output(self, map: Differentiable, t: Tensor, r: Tensor, v: Tensor) -> Tensor:
        """The F for which a v + b' F is 0: the output of a network that knows the velocity v (B, ...)."""
        a = map.parameterization.coefficients(t, r).c_skip
        _, b_rate = map.parameterization.slopes(t, r)
        return expand(-a / b_rate, v).to(v.dtype) * v

    def tangent(
        self,
        map: Differentiable,
        x_t: Tensor,
        t: Tensor,
        r: Tensor,
        v: Tensor,
        c: Any = None,
        warm: float = 1.0,
        value: Tensor | None = None,
        along: Tensor | None = None,
    ) -> Tensor:
        """G before its normalisation, at x_t (B, ...), for the velocity v (B, ...) there.

        ``value`` is F where it is known already, which spares a difference one evaluation of three. The derivative is
        taken along ``along``, v if None.
        """
        a, b, _, _ = map.parameterization.coefficients(t, r)
        a_rate, b_rate = map.parameterization.slopes(t, r)
        scale = -b_rate / map.parameterization.sigma_data

        def by(factor: Tensor) -> Tensor:
            return expand(scale * factor, x_t).to(x_t.dtype)

        # dF/dt itself may grow without bound where its factor goes to 0, so the direction carries the factor
        F, factor_dF = self._derivative(map, x_t, t, r, c, by(b) * (v if along is None else along), scale * b, value)
        return by(a) * v + by(b_rate) * F + warm * (by(a_rate) * x_t + factor_dF)

    def _derivative(
        self,
        map: Differentiable,
        x: Tensor,
        t: Tensor,
        r: Tensor,
        c: Any,
        dx: Tensor,
        dt: Tensor,
        value: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        """F, ``value`` where it is known, and its derivative along (dx, dt, 0)."""

        def F(x: Tensor, t: Tensor) -> Tensor:
            return map.output(x, t, r, c).to(x.dtype)

        if self.derivative == "forward_mode":
            return cast(tuple[Tensor, Tensor], jvp(F, (x, t), (dx, dt)))
        same_dropout = Replay(x.device)
        ends = []
        for h in (self.h, -self.h):
            with same_dropout:
                ends.append(F(x + h * dx, t + h * dt))
        return F(x, t) if value is None else value, (ends[0] - ends[1]) / (2 * self.h)

    def _normalized(self, g: Tensor) -> Tensor:
        if self.normalize is None:
            return g
        norm = torch.linalg.vector_norm(g.flatten(1), dim=1)
        if self.normalize == "rms":
            norm = norm / g[0].numel() ** 0.5
        return g / expand(norm + self.c, g)
