"""The levels t >= q >= r of a training pair, which change with the training step.

Every schedule is a pure function of the clock, so a resumed run and all ranks of a distributed run see the same values.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import NamedTuple, TypeAlias

import torch
from torch import Generator, Tensor

from cm_lightning.core.noise import (
    SIGMA_MAX,
    SIGMA_MIN,
    IntervalDensity,
    LogNormal,
    UniformIntervals,
    check_levels,
    karras_sigmas,
)
from cm_lightning.domains import ABOVE_ONE, COUNT, FRACTION, NON_NEGATIVE, POSITIVE, at_least
from cm_lightning.errors import ConfigError
from cm_lightning.recording import Recorded

Device: TypeAlias = "torch.device | str"


class Clock(NamedTuple):
    """The progress of training: optimizer step ``step`` of ``total``."""

    step: int
    total: int


class Times(NamedTuple):
    """The levels of n samples, each (n,): both ways from t to r start at t, and one passes through q."""

    t: Tensor
    q: Tensor
    r: Tensor


class Curriculum(Recorded, ABC):
    """Draws the levels t >= q >= r >= 0 of one training step.

    The only r of a consistency function is the clean end, so its curricula return r = 0.
    """

    #: N(k) if the levels lie on a grid, else None.
    levels: Levels | None = None

    @abstractmethod
    def draw(self, n: int, clock: Clock, device: Device = "cpu", generator: Generator | None = None) -> Times:
        """Draw the levels of n samples, in float32."""

    def target_is_data(self, clock: Clock) -> bool:
        """Whether every q of this step is 0, so that the target is the clean image itself."""
        return False

    def own_clock(self, clock: Clock) -> Clock:
        """The clock at which N(k) is evaluated, and with it the rate of the target network."""
        return clock

    def progress(self, clock: Clock) -> dict[str, float]:
        """The values of the curriculum's schedules at this step, under the papers' names."""
        return {}

    def phase(self, clock: Clock) -> str:
        """The name of this part of the run in a word or two; empty if the run has only one part."""
        return ""


class Levels(Recorded, ABC):
    """N(k), the number of noise levels on the grid at step k."""

    @abstractmethod
    def __call__(self, step: int, total: int) -> int:
        """N at step ``step`` of ``total``; at least 2."""


class ConstantLevels(Levels):
    """N(k) = n, as in consistency distillation (18 on CIFAR-10, 40 on ImageNet-64)."""

    def __init__(self, n: int = 18) -> None:
        at_least(2).check(self, n=n)
        self.n = n

    def __call__(self, step: int, total: int) -> int:
        return self.n


class ProgressiveLevels(Levels):
    """N(k) = ceil(sqrt(k/K ((s1+1)^2 - s0^2) + s0^2) - 1) + 1: CM, Appendix C. From s0 to s1 + 1."""

    def __init__(self, s0: int = 2, s1: int = 150) -> None:
        at_least(2).check(self, s0=s0)
        _check_ends(self, s0, s1)
        self.s0, self.s1 = s0, s1

    def __call__(self, step: int, total: int) -> int:
        root = math.sqrt(step / total * ((self.s1 + 1) ** 2 - self.s0**2) + self.s0**2)
        return math.ceil(root - 1 - 1e-9) + 1  # the slack undoes rounding where the root is an integer


class DoublingLevels(Levels):
    """N(k) = min(s0 2^floor(k/K'), s1) + 1 with K' = floor(K / (log2 floor(s1/s0) + 1)): iCT, Eq. 11."""

    def __init__(self, s0: int = 10, s1: int = 1280) -> None:
        _check_ends(self, s0, s1)
        self.s0, self.s1 = s0, s1

    def __call__(self, step: int, total: int) -> int:
        stage_length = max(1, math.floor(total / (math.log2(self.s1 // self.s0) + 1)))
        return int(min(self.s0 * 2 ** (step // stage_length), self.s1)) + 1


def _check_ends(owner: Levels, s0: int, s1: int) -> None:
    COUNT.check(owner, s0=s0, s1=s1)
    if s0 > s1:
        raise ConfigError(f"{type(owner).__name__}: s0 must be at most s1, got {s0} and {s1}")


class _Grid(NamedTuple):
    """N levels and the probabilities of their N - 1 intervals, float32."""

    sigmas: Tensor
    probabilities: Tensor


class GridCurriculum(Curriculum):
    """Neighbours on a Karras grid of N(k) levels: CM with progressive levels, iCT with doubling ones.

    Args:
        levels: N(k).
        density: probabilities of the intervals of the grid (CM: uniform; iCT: log-normal).
        sigma_min: lower end of the grid.
        sigma_max: upper end of the grid.
        rho: exponent of the grid.
    """

    levels: Levels

    def __init__(
        self,
        levels: Levels,
        density: IntervalDensity | None = None,
        sigma_min: float = SIGMA_MIN,
        sigma_max: float = SIGMA_MAX,
        rho: float = 7.0,
    ) -> None:
        check_levels(self, sigma_min, sigma_max)
        POSITIVE.check(self, rho=rho)
        self.levels = levels
        self.density = density or UniformIntervals()
        self.sigma_min, self.sigma_max, self.rho = sigma_min, sigma_max, rho
        self._kept: tuple[tuple[int, Device], _Grid] | None = None

    def draw(self, n: int, clock: Clock, device: Device = "cpu", generator: Generator | None = None) -> Times:
        sigmas, probabilities = self.grid(clock, device)
        i = torch.multinomial(probabilities, n, replacement=True, generator=generator)
        return to_the_end(sigmas[i], sigmas[i + 1])

    def grid(self, clock: Clock, device: Device = "cpu") -> _Grid:
        """The levels at a step of the run, and the probabilities of their intervals.

        They are kept until N(k) changes, because making them and copying them to a GPU takes longer than the draw.
        """
        key = (self.levels(*clock), device)
        if self._kept is None or self._kept[0] != key:
            sigmas = karras_sigmas(key[0], self.sigma_min, self.sigma_max, self.rho)
            probabilities = self.density.probabilities(sigmas)
            self._kept = key, _Grid(sigmas.to(device, torch.float32), probabilities.to(device, torch.float32))
        return self._kept[1]

    def progress(self, clock: Clock) -> dict[str, float]:
        return {"N": self.levels(*clock)}

    def phase(self, clock: Clock) -> str:
        return f"{self.levels(*clock)} levels"


def to_the_end(t: Tensor, q: Tensor) -> Times:
    """The levels of a consistency function, whose r is the clean end."""
    return Times(t, q, torch.zeros_like(t))


def ect_r(t: Tensor, stage: int, q: float = 2.0, k: float = 8.0, b: float = 1.0) -> Tensor:
    """ECT's r = t (1 - q^-(stage+1) (1 + k sigmoid(-b t))), at least 0 (ECT, section 3.2)."""
    return (t * (1 - q ** -(stage + 1) * (1 + k * torch.sigmoid(-b * t)))).clamp(min=0)


class ContinuousCurriculum(Curriculum):
    """ECT: t from a continuous density, r = :func:`ect_r`, which shrinks the gap t - r by q at every stage.

    Args:
        density: the density that t is drawn from.
        stages: number of stages, of equal length.
        q: the factor by which the gap shrinks from stage to stage.
        k: how much wider the gap is at small t.
        b: the rate in t at which that widening decays.
    """

    def __init__(
        self,
        density: LogNormal | None = None,
        stages: int = 8,
        q: float = 2.0,
        k: float = 8.0,
        b: float = 1.0,
    ) -> None:
        COUNT.check(self, stages=stages)
        ABOVE_ONE.check(self, q=q)
        NON_NEGATIVE.check(self, k=k, b=b)
        self.density = density or LogNormal(-1.1, 2.0)
        self.stages, self.q, self.k, self.b = stages, q, k, b

    def stage(self, step: int, total: int) -> int:
        """The stage at a step, 0 ... stages - 1."""
        return min(step * self.stages // total, self.stages - 1)

    def draw(self, n: int, clock: Clock, device: Device = "cpu", generator: Generator | None = None) -> Times:
        t = self.density.sample(n, device, generator)
        return to_the_end(t, ect_r(t, self.stage(*clock), self.q, self.k, self.b))

    def progress(self, clock: Clock) -> dict[str, float]:
        return {"stage": self.stage(*clock)}

    def phase(self, clock: Clock) -> str:
        return f"stage {self.stage(*clock) + 1} of {self.stages}"


class WarmUp(Curriculum):
    """A first part of the run with r = 0, the diffusion limit of the same loss, followed by another curriculum.

    With r = 0 the target is the clean image, so the network learns to denoise without a teacher (ECT, section 3.1).

    Args:
        then: the curriculum that follows, which sees only its own steps.
        fraction: part of all steps that the warm-up takes, in [0, 1]; 1 trains a diffusion model with f's scalings.
        density: the density that t is drawn from during the warm-up.
    """

    def __init__(self, then: Curriculum, fraction: float = 1 / 3, density: LogNormal | None = None) -> None:
        FRACTION.check(self, fraction=fraction)
        self.then, self.levels = then, then.levels
        self.fraction = fraction
        self.density = density or LogNormal(-1.1, 2.0)

    def steps(self, total: int) -> int:
        """Length of the warm-up in training steps."""
        return round(self.fraction * total)

    def draw(self, n: int, clock: Clock, device: Device = "cpu", generator: Generator | None = None) -> Times:
        if self.target_is_data(clock):
            t = self.density.sample(n, device, generator)
            return to_the_end(t, torch.zeros_like(t))
        return self.then.draw(n, self._since(clock), device, generator)

    def target_is_data(self, clock: Clock) -> bool:
        return clock.step < self.steps(clock.total) or self.fraction == 1

    def own_clock(self, clock: Clock) -> Clock:
        return self.then.own_clock(self._since(clock))

    def progress(self, clock: Clock) -> dict[str, float]:
        if self.target_is_data(clock):
            return {"warm-up": 1.0}
        return {"warm-up": 0.0, **self.then.progress(self._since(clock))}  # else a log would repeat the last value

    def phase(self, clock: Clock) -> str:
        return "warm-up" if self.target_is_data(clock) else self.then.phase(self._since(clock))

    def _since(self, clock: Clock) -> Clock:
        """The clock that starts when the warm-up ends."""
        warm = self.steps(clock.total)
        return Clock(max(0, clock.step - warm), max(1, clock.total - warm))
