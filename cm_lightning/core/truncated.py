"""Truncated consistency models: the student is trained on the levels above t', and the first stage answers below it."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Generator, Tensor

from cm_lightning.core.curriculum import Clock, Curriculum, Device, Times, to_the_end
from cm_lightning.core.noise import SIGMA_MAX, check_levels, expand
from cm_lightning.core.objective import FlowMap
from cm_lightning.core.random import Replay
from cm_lightning.core.weighting import InverseGap, Weighting
from cm_lightning.domains import BELOW_ONE, INNER, NON_NEGATIVE, POSITIVE
from cm_lightning.recording import Recorded

_POINTS = 4097


class TruncatedStudent(Recorded):
    """ln t has Student's distribution about 0, truncated to an interval (TCM, Lee et al. 2024), which has heavy tails.

    Args:
        df: degrees of freedom; the lower, the heavier the tail.
        scale: scale of ln t.
        low: the lowest t.
        high: the highest t.
    """

    def __init__(self, df: float = 0.01, scale: float = 0.2, low: float = 1.0, high: float = SIGMA_MAX) -> None:
        POSITIVE.check(self, df=df, scale=scale, low=low, high=high)
        check_levels(self, low, high)
        self.width, self.low, self.high = scale * math.sqrt(df), low, high
        # ln t = width sinh(y), under which the density becomes cosh(y)^-df: smooth, so a table of its integral is exact
        start, end = (math.asinh(math.log(level) / self.width) for level in (low, high))
        self.y = torch.linspace(start, end, _POINTS, dtype=torch.float64)
        self.mass = torch.cumulative_trapezoid(self.y.cosh() ** -df, self.y)
        self.mass = torch.cat([torch.zeros(1, dtype=torch.float64), self.mass / self.mass[-1]])

    def quantile(self, u: Tensor) -> Tensor:
        """The level below which the share u (B,) in [0, 1] of the draws lies, (B,)."""
        y, mass = (table.to(u.device, u.dtype) for table in (self.y, self.mass))
        above = torch.searchsorted(mass, u).clamp(1, _POINTS - 1)
        share = (u - mass[above - 1]) / (mass[above] - mass[above - 1])
        t = (self.width * torch.lerp(y[above - 1], y[above], share).sinh()).exp()
        return t.clamp(self.low, self.high)

    def sample(self, n: int, device: Device = "cpu", generator: Generator | None = None) -> Tensor:
        """Draw n levels, (n,) float32."""
        return self.quantile(torch.rand(n, dtype=torch.float32, device=device, generator=generator))


class TruncatedCurriculum(Curriculum):
    """Draws t from a density above t', and t' itself for a share of the samples, whose q lies below t' (TCM).

    The gap is that of ECT, t - q = t (1 - ratio) (1 + k sigmoid(-b t)).

    Args:
        density: density of t, whose lowest level is t'.
        share: the part of a batch at t', in (0, 1).
        ratio: q/t at high t, in [0, 1).
        k, b: see :class:`~cm_lightning.core.curriculum.ContinuousCurriculum`.
    """

    def __init__(
        self,
        density: TruncatedStudent | None = None,
        share: float = 0.25,
        ratio: float = 0.999,
        k: float = 8.0,
        b: float = 1.0,
    ) -> None:
        INNER.check(self, share=share)
        BELOW_ONE.check(self, ratio=ratio)
        NON_NEGATIVE.check(self, k=k, b=b)
        self.density, self.share, self.ratio, self.k, self.b = density or TruncatedStudent(), share, ratio, k, b

    def draw(self, n: int, clock: Clock, device: Device = "cpu", generator: Generator | None = None) -> Times:
        t = self.density.sample(n, device, generator)
        order = torch.randperm(n, device=device, generator=generator)
        t = torch.where(order < math.floor(self.share * n), self.density.low, t)
        return to_the_end(t, self.q(t))

    def q(self, t: Tensor) -> Tensor:
        """The q of t (B,), (B,)."""
        return (t - t * (1 - self.ratio) * (1 + self.k * torch.sigmoid(-self.b * t))).clamp(min=1e-6)


class TruncatedWeighting(Weighting):
    """The mean over the samples above t', and ``boundary`` times that over the samples at t' (TCM).

    Args:
        low: t'.
        share: the part of a batch at t', in (0, 1).
        boundary: weight of that part's mean.
        weighting: the weight of a sample; 1/(t - q) if None.
    """

    def __init__(
        self, low: float = 1.0, share: float = 0.25, boundary: float = 0.1, weighting: Weighting | None = None
    ) -> None:
        POSITIVE.check(self, low=low)
        INNER.check(self, share=share)
        NON_NEGATIVE.check(self, boundary=boundary)
        self.low, self.share, self.boundary, self.weighting = low, share, boundary, weighting or InverseGap()

    def __call__(self, t: Tensor, r: Tensor) -> Tensor:
        part = torch.where(t <= self.low, self.boundary / self.share, 1 / (1 - self.share))
        return part * self.weighting(t, r)


class TruncatedTarget:
    """The map of two networks: that of the first stage answers below t', with the dropout mask of the other.

    Args:
        above: the map from t' on.
        below: the map of the first stage.
        low: t'.
    """

    def __init__(self, above: FlowMap, below: FlowMap, low: float) -> None:
        self.above, self.below, self.low = above, below, low

    def __call__(self, x: Tensor, t: Tensor, r: Tensor, c: Any = None) -> Tensor:
        same_dropout = Replay(x.device)
        # both networks take the whole batch, because the masks of a part of it would differ
        above = self.above(x, t, r, c)
        with same_dropout:
            below = self.below(x, t, r, c)
        return torch.where(expand(t < self.low, x), below, above)
