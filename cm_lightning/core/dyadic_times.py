"""Times on the grids of 1, 2, 4, ... steps, on which shortcut models are trained (Frans et al. 2024)."""

from __future__ import annotations

import torch
from torch import Generator

from cm_lightning.core.curriculum import Clock, Curriculum, Device, Times
from cm_lightning.domains import COUNT, Domain

POWER_OF_TWO = Domain("a power of 2 from 2 on", lambda n: n >= 2 and int(n).bit_count() == 1, whole=True)


class DyadicTimes(Curriculum):
    """Draws a step d of 1, 1/2, ... 2/finest with equal probabilities, t on its grid, r = t - d, and q halfway.

    Args:
        finest: number of steps of the finest grid, a power of 2, on which d/2 may lie.
    """

    def __init__(self, finest: int = 128) -> None:
        POWER_OF_TWO.check(self, finest=finest)
        self.kinds = finest.bit_length() - 1

    def draw(self, n: int, clock: Clock, device: Device = "cpu", generator: Generator | None = None) -> Times:
        steps = 2.0 ** torch.randint(self.kinds, (n,), device=device, generator=generator)
        index = (torch.rand(n, device=device, generator=generator) * steps).floor()
        return Times((index + 1) / steps, (index + 0.5) / steps, index / steps)


class EvenSteps(Curriculum):
    """Draws one step of an even grid: t is on the grid, and q = r = t - 1/steps.

    Args:
        steps: number of steps of the grid.
    """

    def __init__(self, steps: int = 128) -> None:
        COUNT.check(self, steps=steps)
        self.steps = steps

    def draw(self, n: int, clock: Clock, device: Device = "cpu", generator: Generator | None = None) -> Times:
        index = torch.randint(self.steps, (n,), device=device, generator=generator).float()
        r = index / self.steps
        return Times((index + 1) / self.steps, r, r)
