"""Continuations of a trajectory from x_t: by its noise, a teacher, or the model. CT and CD differ in this alone.

A trajectory gives the point at level q, for methods that take steps, and the velocity dx_t/dt, for those that take
the limit of small steps.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from cm_lightning.core.guidance import Guidance, estimates
from cm_lightning.core.noise import expand
from cm_lightning.core.path import VE, Path
from cm_lightning.core.solver import euler_step, heun_step
from cm_lightning.domains import COUNT, NON_NEGATIVE, POSITIVE, check_ascending
from cm_lightning.errors import ConfigError
from cm_lightning.recording import Recorded

#: x_t (B, ...), t (B,), condition -> the estimate of the clean image, (B, ...).
ConditionalDenoiser: TypeAlias = Callable[[Tensor, Tensor, Any], Tensor]

_SOLVERS = {"euler": euler_step, "heun": heun_step}


class Trajectory(Recorded, ABC):
    """The trajectory through x_t = ``path.point(x, z, t)``. Points are (B, ...), levels (B,), c is the condition."""

    path: Path

    @abstractmethod
    def advance(self, x: Tensor, z: Tensor, x_t: Tensor, t: Tensor, q: Tensor, c: Any = None) -> Tensor:
        """The point at level q <= t."""

    @abstractmethod
    def velocity(self, x: Tensor, z: Tensor, x_t: Tensor, t: Tensor, c: Any = None) -> Tensor:
        """dx_t/dt at x_t."""

    def average_velocity(self, x: Tensor, z: Tensor, x_t: Tensor, t: Tensor, q: Tensor, c: Any = None) -> Tensor:
        """The average velocity between t and q <= t, taken as that at t, which is exact on straight trajectories."""
        return self.velocity(x, z, x_t, t, c)


class SameNoise(Trajectory):
    """Keeps the image and the noise the same at every level, which is correct in the mean over both (CM, Theorem 2).

    Args:
        path: the path of the levels; VE if None.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or VE()

    def advance(self, x: Tensor, z: Tensor, x_t: Tensor, t: Tensor, q: Tensor, c: Any = None) -> Tensor:
        return self.path.point(x, z, q)

    def velocity(self, x: Tensor, z: Tensor, x_t: Tensor, t: Tensor, c: Any = None) -> Tensor:
        return self.path.velocity(x, z, t)


class GuidedNoise(SameNoise):
    """Keeps the noise the same under classifier-free guidance: the image is moved by w (D(x_t, c) - D(x_t, null)).

    In the mean over images the trajectory is that of a guided denoiser (CM, Theorem 2; Ho & Salimans 2022). The model
    still learns from the data, because only a difference of the given denoiser's estimates is used, in which a common
    error cancels.

    Args:
        denoiser: E[x | x_t, c] on the path's own levels, trained with the null class too.
        null: the null class.
        w: strength of the guidance; 0 is :class:`SameNoise`.
        path: the path of the levels; VE if None.
        interval: the lowest and the highest level that are guided; all if None.

    Raises:
        ConfigError: the interval is not two levels in ascending order.
    """

    def __init__(
        self,
        denoiser: ConditionalDenoiser,
        null: int,
        w: float,
        path: Path | None = None,
        interval: Sequence[float] | None = None,
    ) -> None:
        NON_NEGATIVE.check(self, w=w)
        super().__init__(path)
        self.denoiser, self.null, self.w = denoiser, null, w
        self.low, self.high = (0.0, math.inf) if interval is None else checked_interval(interval)

    def advance(self, x: Tensor, z: Tensor, x_t: Tensor, t: Tensor, q: Tensor, c: Any = None) -> Tensor:
        clean = self._moved(x, x_t, t, c)
        return self.path.point(clean, self.path.noise(x_t, clean, t), q)

    def velocity(self, x: Tensor, z: Tensor, x_t: Tensor, t: Tensor, c: Any = None) -> Tensor:
        clean = self._moved(x, x_t, t, c)
        return self.path.velocity(clean, self.path.noise(x_t, clean, t), t)

    def _moved(self, x: Tensor, x_t: Tensor, t: Tensor, c: Any) -> Tensor:
        conditional, unconditional = estimates(self.denoiser, x_t, t, c, self.null)
        w = self.strength(t, c).to(x.dtype)
        return x + expand(w, x) * (conditional - unconditional).to(x.dtype)

    def strength(self, t: Tensor, c: Any) -> Tensor:
        """The strength of the guidance at levels t (B,), (B,)."""
        return self.w * ((t >= self.low) & (t <= self.high))


class GivenGuidance(GuidedNoise):
    """:class:`GuidedNoise` with the strength and interval that the condition gives for each sample.

    Args:
        denoiser: E[x | x_t, c] on the path's own levels, where c is :class:`~cm_lightning.core.guidance.Guidance`.
        null, path: see :class:`GuidedNoise`.
    """

    def __init__(self, denoiser: ConditionalDenoiser, null: int, path: Path | None = None) -> None:
        super().__init__(denoiser, null, 0.0, path)

    def strength(self, t: Tensor, c: Guidance) -> Tensor:
        return c.in_force(t)


def checked_interval(interval: Sequence[float]) -> tuple[float, float]:
    """The two levels of an interval, after a check: at least 0, in ascending order."""
    NON_NEGATIVE.check_each(interval=interval)
    if len(interval) != 2:
        raise ConfigError(f"interval must be two levels, got {list(interval)}")
    low, high = interval
    check_ascending(low=low, high=high)
    return low, high


class Teacher(Trajectory):
    """The probability-flow ODE of a diffusion model (CM, Algorithm 2; sCM, Eq. 8; LCM, Eq. 11).

    Args:
        denoiser: E[x | x_t] on the path's own levels; :func:`of_ve` converts a denoiser of EDM.
        path: the path of the levels; VE if None.
        solver: ``heun``, or ``euler``, which is DDIM.
        lowest: the level at which the ODE ends; a lower q is raised to it.
        steps: the solver's steps from t to q; with 2, a student halves the number of steps (progressive distillation,
            Algorithm 2).
        rho: the levels between t and q are evenly spaced in t^(1/rho): 1 is even in t, and 7 as on EDM's grid.
            Timesteps are rounded to whole ones.
    """

    def __init__(
        self,
        denoiser: ConditionalDenoiser,
        path: Path | None = None,
        solver: Literal["euler", "heun"] = "heun",
        lowest: float = 0.0,
        steps: int = 1,
        rho: float = 1.0,
    ) -> None:
        NON_NEGATIVE.check(self, lowest=lowest)
        COUNT.check(self, steps=steps)
        POSITIVE.check(self, rho=rho)
        self.denoiser, self.path, self.solver, self.lowest = denoiser, path or VE(), _SOLVERS[solver], lowest
        self.steps, self.rho = steps, rho

    def advance(self, x: Tensor, z: Tensor, x_t: Tensor, t: Tensor, q: Tensor, c: Any = None) -> Tensor:
        return self.solve(x_t, t, q, self.steps, c)

    def solve(self, x_t: Tensor, t: Tensor, q: Tensor, steps: int, c: Any = None) -> Tensor:
        """The point at level q <= t after a number of the solver's steps."""
        denoiser = partial(_under, self.denoiser, c)
        q = q.clamp(min=self.lowest)
        between = [self._between(t, q, i / steps) for i in range(1, steps)]
        for here, there in pairwise([t, *between, q]):
            x_t = self.solver(denoiser, x_t, here, there, self.path)
        return x_t

    def velocity(self, x: Tensor, z: Tensor, x_t: Tensor, t: Tensor, c: Any = None) -> Tensor:
        clean = self.denoiser(x_t, t, c)
        return self.path.velocity(clean, self.path.noise(x_t, clean, t), t)

    def _between(self, t: Tensor, q: Tensor, share: float) -> Tensor:
        """The level after a share of the way from t to q."""
        start, end = (level.to(torch.promote_types(level.dtype, torch.float32)) ** (1 / self.rho) for level in (t, q))
        level = torch.lerp(start, end, share) ** self.rho
        return (level if t.is_floating_point() else level.round()).to(t.dtype)


def _under(denoiser: ConditionalDenoiser, c: Any, x: Tensor, t: Tensor) -> Tensor:
    return denoiser(x, t, c)


def of_ve(denoiser: ConditionalDenoiser, path: Path) -> ConditionalDenoiser:
    """Convert a denoiser D(x, sigma) of the VE path to another path: D(x_t / alpha, sigma / alpha)."""

    def on_path(x_t: Tensor, t: Tensor, c: Any) -> Tensor:
        alpha, sigma = path.scales(t)
        return denoiser(x_t / expand(alpha, x_t), sigma / alpha, c)

    return denoiser if isinstance(path, VE) else on_path


class Itself(Trajectory):
    """The flow map that is being trained: its instantaneous velocity is its slope in r at r = t.

    The average velocity is its network's output, so it must be a map of average velocities where that is requested.

    Args:
        flow_map: X(x_t, t, r, c), and ``velocity(x_t, t, c)``; see :class:`~cm_lightning.core.parameterization.Map`.
        path: the path of its levels.
    """

    def __init__(self, flow_map: Any, path: Path) -> None:
        self.flow_map, self.path = flow_map, path

    def advance(self, x: Tensor, z: Tensor, x_t: Tensor, t: Tensor, q: Tensor, c: Any = None) -> Tensor:
        advanced: Tensor = self.flow_map(x_t, t, q, c)
        return advanced

    def velocity(self, x: Tensor, z: Tensor, x_t: Tensor, t: Tensor, c: Any = None) -> Tensor:
        with torch.no_grad():
            velocity: Tensor = self.flow_map.velocity(x_t, t, c)
        return velocity

    def average_velocity(self, x: Tensor, z: Tensor, x_t: Tensor, t: Tensor, q: Tensor, c: Any = None) -> Tensor:
        with torch.no_grad():
            velocity: Tensor = self.flow_map.output(x_t, t, q, c)
        return velocity
