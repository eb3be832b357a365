"""Levels for the limit q -> t, in which steps vanish: one time for consistency functions, two for flow maps."""

from __future__ import annotations

import torch
from torch import Generator

from cm_lightning.core.curriculum import Clock, Curriculum, Device, Times, to_the_end
from cm_lightning.core.noise import LogitNormal, LogNormal, UniformTime
from cm_lightning.core.path import Path, TrigFlow
from cm_lightning.domains import FRACTION


class OneTime(Curriculum):
    """Draws t alone, for the limit q -> t of consistency functions: from a density of noise levels, on any path.

    Args:
        density: density of the levels in units of VE, sigma; sCM's ln sigma ~ N(-1.0, 1.4^2) if None.
        path: the path that t belongs to; TrigFlow if None, where t = arctan(sigma / sigma_data) (sCM, Algorithm 1).
    """

    def __init__(self, density: LogNormal | None = None, path: Path | None = None) -> None:
        self.density, self.path = density or LogNormal(-1.0, 1.4), path or TrigFlow()

    def draw(self, n: int, clock: Clock, device: Device = "cpu", generator: Generator | None = None) -> Times:
        t = self.path.level(self.density.sample(n, device, generator))
        return to_the_end(t, t)


class TwoTimes(Curriculum):
    """Draws t and r <= t for average velocities in the limit q -> t (MeanFlow, section 4.3).

    Args:
        density: density of two draws, the larger of which is t and the smaller r; logit-normal (-0.4, 1.0) if None.
        earlier: density of a separate draw for r: r is the smaller of it and t, and t keeps its own density.
        different: share of the samples with r below t, in [0, 1]; for the others r = t, which is flow matching.
    """

    def __init__(
        self,
        density: LogitNormal | UniformTime | None = None,
        earlier: LogitNormal | UniformTime | None = None,
        different: float = 0.25,
    ) -> None:
        FRACTION.check(self, different=different)
        self.density, self.earlier, self.different = density or LogitNormal(), earlier, different

    def draw(self, n: int, clock: Clock, device: Device = "cpu", generator: Generator | None = None) -> Times:
        first = self.density.sample(n, device, generator)
        second = (self.earlier or self.density).sample(n, device, generator)
        t = first if self.earlier else torch.maximum(first, second)
        # drawn for each sample, so that neither a rank nor a class always gets the same kind
        keeps = torch.rand(n, device=device, generator=generator) < self.different
        r = torch.where(keeps, torch.minimum(first, second), t)
        return Times(t, t, r)
