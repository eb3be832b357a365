"""Learning rates as pure functions of (step, total), like all schedules here."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

from cm_lightning.domains import COUNT, FRACTION, NON_NEGATIVE
from cm_lightning.errors import ConfigError
from cm_lightning.recording import Recorded


class RateSchedule(Recorded, ABC):
    """A factor on the optimizer's learning rate, for each step."""

    @abstractmethod
    def __call__(self, step: int, total: int) -> float:
        """The factor at step ``step`` of ``total``."""


class HoldThenCosine(RateSchedule):
    """A linear rise over ``rise`` steps, 1 for a part of the run, then a drop and a cosine decay to 0.

    It suits a diffusion warm-up followed by consistency training, which diverges at the rate of the warm-up.

    Args:
        rise: steps of the linear rise, at least 1.
        hold: fraction of the run that ends at factor 1, in [0, 1].
        drop: the factor from which the cosine starts, at least 0.
    """

    def __init__(self, rise: int = 100, hold: float = 1 / 3, drop: float = 0.5) -> None:
        COUNT.check(self, rise=rise)
        FRACTION.check(self, hold=hold)
        NON_NEGATIVE.check(self, drop=drop)
        self.rise, self.hold, self.drop = rise, hold, drop

    def __call__(self, step: int, total: int) -> float:
        held = round(self.hold * total)
        if step < held or held == total:  # also of a run so short that nothing is left for the cosine
            return min(1.0, (step + 1) / self.rise)
        return self.drop * (1 + math.cos(math.pi * min(1.0, (step - held) / (total - held)))) / 2


class InverseSquareRoot(RateSchedule):
    """1 up to the step ``after``, then sqrt(after / step) (EDM2, Karras et al. 2024, Eq. 15).

    Args:
        after: the step at which the decay starts, at least 1.
    """

    def __init__(self, after: int = 35_000) -> None:
        COUNT.check(self, after=after)
        self.after = after

    def __call__(self, step: int, total: int) -> float:
        return math.sqrt(self.after / max(step, self.after))


class StagedDecay(RateSchedule):
    """A linear fall from 1 to 0 in each stage, as in progressive distillation (Salimans & Ho 2022).

    Args:
        stages: number of stages, of equal length.
    """

    def __init__(self, stages: int = 5) -> None:
        COUNT.check(self, stages=stages)
        self.stages = stages

    def __call__(self, step: int, total: int) -> float:
        return 1 - (step * self.stages % total) / total


class Ramp(Recorded):
    """A linear rise from 0 to 1 between two points of the run; 1 throughout by default.

    Args:
        begin: fraction of the run up to which it is 0, in [0, 1].
        end: fraction of the run from which it is 1, in [begin, 1].
    """

    def __init__(self, begin: float = 0.0, end: float = 0.0) -> None:
        FRACTION.check(self, begin=begin, end=end)
        if end < begin:
            raise ConfigError(f"Ramp: begin must be at most end, got {begin:g} and {end:g}")
        self.begin, self.end = begin, end

    def __call__(self, step: int, total: int) -> float:
        """The factor at step ``step`` of ``total``."""
        done = step / total
        if done >= self.end:
            return 1.0
        return max(0.0, (done - self.begin) / (self.end - self.begin))
