"""The position of q between t and r, as the part p = (t - q) / (t - r) of the way that the first of two steps takes.

p -> 0 is the limit in which MeanFlow takes its derivative; q = (t + r) / 2 halves the way, as shortcut models do.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Generator, Tensor

from cm_lightning.core.curriculum import Clock, Curriculum, Device, Times
from cm_lightning.domains import FRACTION, INNER, POSITIVE, SHARE, check_ascending
from cm_lightning.recording import Recorded


class Gap(Recorded, ABC):
    """A rule that draws p for each sample of a training step."""

    @abstractmethod
    def draw(self, n: int, clock: Clock, device: Device = "cpu", generator: Generator | None = None) -> Tensor:
        """The p of n samples, (n,) in (0, 1]."""

    def progress(self, clock: Clock) -> dict[str, float]:
        """The value of a schedule at this step, under the paper's name."""
        return {}


class ConstantGap(Gap):
    """p is the same for all samples; 1/2 is the midpoint (PSD-M, Boffi et al. 2025).

    Args:
        p: the part, in (0, 1].
    """

    def __init__(self, p: float = 0.5) -> None:
        SHARE.check(self, p=p)
        self.p = p

    def draw(self, n: int, clock: Clock, device: Device = "cpu", generator: Generator | None = None) -> Tensor:
        return torch.full((n,), self.p, device=device)


class UniformGap(Gap):
    """p is uniform in (0, 1) (PSD-U, Boffi et al. 2025)."""

    def draw(self, n: int, clock: Clock, device: Device = "cpu", generator: Generator | None = None) -> Tensor:
        return torch.rand(n, dtype=torch.float32, device=device, generator=generator)


class ScheduledGap(Gap):
    """p is the same for all samples, and a function of the clock."""

    #: The paper's name of p.
    symbol: str

    @abstractmethod
    def p(self, clock: Clock) -> float:
        """The part at a step."""

    def draw(self, n: int, clock: Clock, device: Device = "cpu", generator: Generator | None = None) -> Tensor:
        return torch.full((n,), self.p(clock), device=device)

    def progress(self, clock: Clock) -> dict[str, float]:
        return {self.symbol: self.p(clock)}


class SigmoidGap(ScheduledGap):
    """p falls from 1 to ``lowest`` as a sigmoid of the run (alpha-Flow, Zhang et al. 2025, where p is alpha).

    Args:
        begin: fraction of the run at which the sigmoid begins, in [0, 1].
        end: fraction of the run at which it ends, in (begin, 1].
        gamma: its steepness.
        lowest: p is at least this, and 1 where it is above 1 - lowest; in (0, 1).
    """

    symbol = "alpha"

    def __init__(self, begin: float = 0.0, end: float = 1.0, gamma: float = 25.0, lowest: float = 0.005) -> None:
        FRACTION.check(self, begin=begin, end=end)
        check_ascending(self, begin=begin, end=end)
        POSITIVE.check(self, gamma=gamma)
        INNER.check(self, lowest=lowest)
        self.begin, self.end, self.gamma, self.lowest = begin, end, gamma, lowest

    def p(self, clock: Clock) -> float:
        done = (clock.step / clock.total - self.begin) / (self.end - self.begin)
        p = 1 / (1 + math.exp(self.gamma * (min(max(done, 0.0), 1.0) - 0.5)))
        return 1.0 if p > 1 - self.lowest else max(p, self.lowest)


class ExponentialGap(ScheduledGap):
    """p falls from ``first`` to ``last`` by the same factor in each step (SoFlow, Luo et al. 2025).

    Args:
        first: p at the start, in (0, 1].
        last: p at the end, in (0, 1].
    """

    symbol = "ratio"

    def __init__(self, first: float = 1.0, last: float = 0.0003125) -> None:
        SHARE.check(self, first=first, last=last)
        self.first, self.last = first, last

    def p(self, clock: Clock) -> float:
        return float(self.first * (self.last / self.first) ** (clock.step / clock.total))


class Through(Curriculum):
    """The t and r of another curriculum, with q between them: q = t - p (t - r).

    Args:
        ends: draws t and r.
        gap: p.
    """

    def __init__(self, ends: Curriculum, gap: Gap) -> None:
        self.ends, self.gap = ends, gap

    def draw(self, n: int, clock: Clock, device: Device = "cpu", generator: Generator | None = None) -> Times:
        t, _, r = self.ends.draw(n, clock, device, generator)
        return Times(t, t - self.gap.draw(n, clock, device, generator) * (t - r), r)

    def progress(self, clock: Clock) -> dict[str, float]:
        return self.ends.progress(clock) | self.gap.progress(clock)
