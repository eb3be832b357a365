"""The rate mu(k) at which a target network follows the student."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from cm_lightning.core.curriculum import Clock, Curriculum, ProgressiveLevels
from cm_lightning.domains import BELOW_ONE, INNER
from cm_lightning.errors import ConfigError
from cm_lightning.recording import Recorded, describe


class TargetRate(Recorded, ABC):
    """mu(k), the rate of the target network's average: target <- mu target + (1 - mu) student."""

    @abstractmethod
    def __call__(self, curriculum: Curriculum, clock: Clock) -> float:
        """The rate mu in [0, 1) at a step of a run under this curriculum, on whose N(k) it may depend."""

    def check(self, curriculum: Curriculum) -> None:
        """Raise ConfigError unless the rate is defined under this curriculum."""


class ConstantRate(TargetRate):
    """mu(k) = mu, as in consistency distillation (0 on CIFAR-10, 0.95 on ImageNet-64)."""

    def __init__(self, mu: float = 0.95) -> None:
        BELOW_ONE.check(self, mu=mu)
        self.mu = mu

    def __call__(self, curriculum: Curriculum, clock: Clock) -> float:
        return self.mu


class ProgressiveRate(TargetRate):
    """mu(k) = exp(s0 ln mu0 / N(k)): CM, Appendix C. N(k) and s0 are those of the run's curriculum.

    Args:
        levels: None takes the curriculum's own; any others are refused.
        mu0: the paper's mu_0.
        released_code: whether to use N(k) - 1, as the released code does: at k = 0 mu is 0.81, not the paper's 0.9.
    """

    def __init__(self, levels: ProgressiveLevels | None = None, mu0: float = 0.9, released_code: bool = False) -> None:
        INNER.check(self, mu0=mu0)
        self.mu0, self.released_code, self.levels = mu0, released_code, levels

    def __call__(self, curriculum: Curriculum, clock: Clock) -> float:
        levels = curriculum.levels
        assert isinstance(levels, ProgressiveLevels)
        n = levels(*curriculum.own_clock(clock)) - self.released_code
        return math.exp(levels.s0 * math.log(self.mu0) / n)

    def check(self, curriculum: Curriculum) -> None:
        if not isinstance(curriculum.levels, ProgressiveLevels):
            raise ConfigError(
                "target_rate: ProgressiveRate follows the N(k) of ProgressiveLevels, which the curriculum does not "
                "have: choose ConstantRate, or a GridCurriculum of ProgressiveLevels"
            )
        if self.levels is not None and describe(self.levels) != describe(curriculum.levels):
            raise ConfigError(
                "target_rate: the levels of ProgressiveRate are not those of the curriculum: leave them out"
            )
