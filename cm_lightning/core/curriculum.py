"""What changes with the training step: the pair of noise levels (t, r) and the rate of the target network.

Every schedule is a pure function of (step, total): a resumed run, and every rank of a distributed one, sees the same.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import TypeAlias

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
from cm_lightning.domains import ABOVE_ONE, BELOW_ONE, COUNT, FRACTION, INNER, NON_NEGATIVE, POSITIVE, at_least
from cm_lightning.errors import ConfigError
from cm_lightning.recording import Recorded

Device: TypeAlias = "torch.device | str"
Pair: TypeAlias = tuple[Tensor, Tensor]


class Curriculum(Recorded, ABC):
    """Draws the pairs t > r >= 0 of one training step. Where r = 0 the target is the clean image."""

    @abstractmethod
    def pairs(self, n: int, step: int, total: int, device: Device = "cpu", generator: Generator | None = None) -> Pair:
        """N pairs for training step ``step`` of ``total``: t (n,), r (n,), float32."""

    def target_is_data(self, step: int, total: int) -> bool:
        """Whether every r of this step is 0, so that the target is the clean image itself."""
        return False

    def clock(self, step: int, total: int) -> tuple[int, int]:
        """The (step, total) that N(k) is evaluated at; the rate of the target network keeps the same time."""
        return step, total

    def progress(self, step: int, total: int) -> dict[str, float]:
        """What to show of the curriculum at this step, by the papers' names."""
        return {}


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


class GridCurriculum(Curriculum):
    """Neighbours on a Karras grid of N(k) levels: CM with progressive levels, iCT with doubling ones.

    Args:
        levels: N(k).
        density: which interval of the grid (CM: all alike; iCT: log-normal).
        sigma_min: lower end of the grid.
        sigma_max: upper end of the grid.
        rho: exponent of the grid.
    """

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

    def pairs(self, n: int, step: int, total: int, device: Device = "cpu", generator: Generator | None = None) -> Pair:
        sigmas = karras_sigmas(self.levels(step, total), self.sigma_min, self.sigma_max, self.rho)
        probabilities = self.density.probabilities(sigmas).to(device, torch.float32)
        i = torch.multinomial(probabilities, n, replacement=True, generator=generator)
        sigmas = sigmas.to(device, torch.float32)
        return sigmas[i], sigmas[i + 1]

    def progress(self, step: int, total: int) -> dict[str, float]:
        return {"N": self.levels(step, total)}


def ect_r(t: Tensor, stage: int, q: float = 2.0, k: float = 8.0, b: float = 1.0) -> Tensor:
    """ECT's r = t (1 - q^-(stage+1) (1 + k sigmoid(-b t))), at least 0 (ECT, section 3.2)."""
    return (t * (1 - q ** -(stage + 1) * (1 + k * torch.sigmoid(-b * t)))).clamp(min=0)


class ContinuousCurriculum(Curriculum):
    """ECT: t from a continuous density, r = :func:`ect_r`, which shrinks the gap t - r by q at every stage.

    Args:
        density: of t.
        stages: number of stages, of equal length.
        q: by what the gap shrinks from stage to stage.
        k: how much wider the gap is at small t.
        b: where in t that widening ends.
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
        """0 ... stages - 1."""
        return min(step * self.stages // total, self.stages - 1)

    def pairs(self, n: int, step: int, total: int, device: Device = "cpu", generator: Generator | None = None) -> Pair:
        t = self.density.sample(n, device, generator)
        return t, ect_r(t, self.stage(step, total), self.q, self.k, self.b)

    def progress(self, step: int, total: int) -> dict[str, float]:
        return {"stage": self.stage(step, total)}


class WarmUp(Curriculum):
    """A first part of the run with r = 0, the diffusion limit of the same loss; then another curriculum.

    With r = 0 the target is the clean image, so the network learns to denoise without a teacher (ECT, section 3.1).

    Args:
        then: the curriculum that follows, which sees only its own steps.
        fraction: part of all steps that the warm-up takes, in [0, 1]; 1 is a diffusion model with f's scalings.
        density: of t during the warm-up.
    """

    def __init__(self, then: Curriculum, fraction: float = 1 / 3, density: LogNormal | None = None) -> None:
        FRACTION.check(self, fraction=fraction)
        self.then = then
        self.fraction = fraction
        self.density = density or LogNormal(-1.1, 2.0)

    def steps(self, total: int) -> int:
        """Length of the warm-up in training steps."""
        return round(self.fraction * total)

    def pairs(self, n: int, step: int, total: int, device: Device = "cpu", generator: Generator | None = None) -> Pair:
        if self.target_is_data(step, total):
            t = self.density.sample(n, device, generator)
            return t, torch.zeros_like(t)
        return self.then.pairs(n, *self.clock(step, total), device, generator)

    def target_is_data(self, step: int, total: int) -> bool:
        return step < self.steps(total) or self.fraction == 1

    def clock(self, step: int, total: int) -> tuple[int, int]:
        warm = self.steps(total)
        return self.then.clock(max(0, step - warm), max(1, total - warm))

    def progress(self, step: int, total: int) -> dict[str, float]:
        if self.target_is_data(step, total):
            return {"warm-up": 1.0}
        return self.then.progress(*self.clock(step, total))


class TargetRate(Recorded, ABC):
    """mu(k), the rate of the target network's average: target <- mu target + (1 - mu) student."""

    @abstractmethod
    def __call__(self, step: int, total: int) -> float:
        """Mu at step ``step`` of ``total``, in [0, 1)."""


class ConstantRate(TargetRate):
    """mu(k) = mu, as in consistency distillation (0 on CIFAR-10, 0.95 on ImageNet-64)."""

    def __init__(self, mu: float = 0.95) -> None:
        BELOW_ONE.check(self, mu=mu)
        self.mu = mu

    def __call__(self, step: int, total: int) -> float:
        return self.mu


class ProgressiveRate(TargetRate):
    """mu(k) = exp(s0 ln mu0 / N(k)): CM, Appendix C.

    Args:
        levels: the same N(k) as the curriculum's.
        mu0: the paper's mu_0.
        released_code: evaluate with N(k) - 1 as the released code does: at k = 0 it has 0.81 where the paper has 0.9.
    """

    def __init__(self, levels: ProgressiveLevels, mu0: float = 0.9, released_code: bool = False) -> None:
        INNER.check(self, mu0=mu0)
        self.levels, self.mu0, self.released_code = levels, mu0, released_code

    def __call__(self, step: int, total: int) -> float:
        n = self.levels(step, total) - self.released_code
        return math.exp(self.levels.s0 * math.log(self.mu0) / n)
