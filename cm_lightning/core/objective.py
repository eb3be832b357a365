"""The losses of flow maps: the way from t straight to r must end where the way through q ends.

:class:`Chord` is this condition itself, :class:`Tangent` its limit q -> t, and :class:`Lagrangian` differentiates in r.
An objective is pure: its loss is a function of a map, a batch and the clock, in a Trainer or in your own loop.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias, cast

import torch
from torch import Tensor, nn
from torch.func import jvp

from cm_lightning.core.coupling import Coupling
from cm_lightning.core.curriculum import Clock, Curriculum, Times
from cm_lightning.core.distance import Distance
from cm_lightning.core.noise import expand, unit_noise
from cm_lightning.core.parameterization import Parameterization
from cm_lightning.core.path import VE
from cm_lightning.core.random import Replay
from cm_lightning.core.residual import Residual, SquaredError
from cm_lightning.core.schedule import Ramp
from cm_lightning.core.trajectory import Trajectory
from cm_lightning.core.weighting import Weighting, edm_weight
from cm_lightning.domains import NON_NEGATIVE, POSITIVE
from cm_lightning.errors import ConfigError
from cm_lightning.recording import Recorded

#: x_t (B, ...), t (B,), r (B,), condition -> the point at level r of the trajectory through x_t.
FlowMap: TypeAlias = Callable[[Tensor, Tensor, Tensor, Any], Tensor]


class Objective(Recorded, nn.Module, ABC):
    """Base of the losses. It is a module because it may hold learned weights, a teacher, or the networks of a distance.

    After :meth:`loss`, ``shown`` holds further values that are worth logging, on the device. A loss that compares two
    ends or two velocities has ``raw`` there, see :meth:`show`.
    """

    curriculum: Curriculum
    trajectory: Trajectory
    #: Pairs the noise of a batch with its data; independent if None.
    coupling: Coupling | None = None
    #: Whether the loss takes the network's forward-mode derivative, which not every kernel has.
    forward_mode: bool = False
    #: Whether the loss takes gradients in the network's last layer, before those of the step, through the same graph.
    keeps_graph: bool = False

    def __init__(self) -> None:
        super().__init__()
        self.shown: dict[str, Tensor] = {}

    @abstractmethod
    def loss(
        self, map: Any, target: Any, x: Tensor, c: Any, clock: Clock, generator: torch.Generator | None = None
    ) -> Tensor:
        """The loss on a batch, a scalar.

        Args:
            map: the map that is trained, see :class:`~cm_lightning.core.parameterization.Map`.
            target: the map that takes the rest of the way; ``map`` itself where there is no target network.
            x: data (B, ...).
            c: condition, class labels (B,) or None.
            clock: the clock of the schedules.
            generator: draws levels and noise; torch's global one if None.
        """

    def phase(self, clock: Clock) -> str:
        """The name of this part of the run, in a word or two; empty where all parts are alike."""
        return self.curriculum.phase(clock)

    def show(self, difference: Tensor) -> None:
        """Keep the mean square of what the loss makes small (B, ...), without distance and weight, as ``raw``."""
        self.shown = {"raw": difference.detach().square().mean()}

    def draw(self, x: Tensor, c: Any, clock: Clock, generator: torch.Generator | None) -> tuple[Times, Tensor, Tensor]:
        """The levels of a batch x (B, ...) under the condition c, unit noise z, and the points x_t at t."""
        times = self.curriculum.draw(len(x), clock, x.device, generator)
        z = unit_noise(x.shape, generator, x.device, x.dtype)
        if self.coupling is not None:
            z = self.coupling(x, z, c)
        return times, z, self.trajectory.path.point(x, z, times.t)


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


class Differentiable(Protocol):
    """A map as :class:`Tangent` and :class:`SelfDistillation` need it, with the output F of its network."""

    parameterization: Parameterization

    def __call__(self, x: Tensor, t: Tensor, r: Tensor, c: Any = None) -> Tensor: ...

    def output(self, x: Tensor, t: Tensor, r: Tensor, c: Any = None) -> Tensor: ...

    def velocity(self, x: Tensor, t: Tensor, c: Any = None) -> Tensor: ...


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
