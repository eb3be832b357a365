"""Flow matching, the diffusion limit of every flow map, and the division of a batch between it and another loss."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Generator, Tensor

from cm_lightning.core.curriculum import Clock, Curriculum, Device, Times
from cm_lightning.core.noise import LogitNormal, UniformTime
from cm_lightning.core.objective import Differentiable, Objective
from cm_lightning.core.path import Linear
from cm_lightning.core.residual import Residual, SquaredError
from cm_lightning.core.trajectory import SameNoise, Trajectory
from cm_lightning.domains import INNER


class Diagonal(Curriculum):
    """Draws t = q = r, where an average velocity is the velocity itself.

    Args:
        density: density of t; uniform if None.
    """

    def __init__(self, density: LogitNormal | UniformTime | None = None) -> None:
        self.density = density or UniformTime()

    def draw(self, n: int, clock: Clock, device: Device = "cpu", generator: Generator | None = None) -> Times:
        t = self.density.sample(n, device, generator)
        return Times(t, t, t)


class FlowMatching(Objective):
    """u(x_t, t, r) learns the velocity at t (Lipman et al. 2022); r is t, or the end of a step that is taken as short.

    Args:
        curriculum: draws t and r; :class:`Diagonal` if None.
        trajectory: gives the velocity, and has the path; :class:`SameNoise` on the linear path if None.
        residual: the loss of the difference.
    """

    def __init__(
        self,
        curriculum: Curriculum | None = None,
        trajectory: Trajectory | None = None,
        residual: Residual | None = None,
    ) -> None:
        super().__init__()
        self.curriculum, self.trajectory = curriculum or Diagonal(), trajectory or SameNoise(Linear())
        self.residual = residual or SquaredError()

    def loss(
        self,
        map: Differentiable,
        target: Differentiable,
        x: Tensor,
        c: Any,
        clock: Clock,
        generator: Generator | None = None,
    ) -> Tensor:
        (t, _, r), z, x_t = self.draw(x, c, clock, generator)
        difference = map.output(x_t, t, r, c) - self.trajectory.velocity(x, z, x_t, t, c)
        self.shown = {"raw_diagonal": difference.detach().square().mean()}
        return cast(Tensor, self.residual(difference, t, r))


class Split(Objective):
    """Two losses, each on its own part of a batch; every sample is used once, and the parts are redrawn each time.

    Args:
        first: the loss of a part of the samples.
        rest: the loss of the others; its curriculum and its trajectory are those of the whole.
        share: the part of a batch for ``first``, in (0, 1).
    """

    def __init__(self, first: Objective, rest: Objective, share: float = 0.75) -> None:
        INNER.check(self, share=share)
        super().__init__()
        self.first, self.rest, self.share = first, rest, share
        self.curriculum, self.trajectory = rest.curriculum, rest.trajectory
        self.forward_mode = first.forward_mode or rest.forward_mode

    def loss(
        self, map: Any, target: Any, x: Tensor, c: Any, clock: Clock, generator: Generator | None = None
    ) -> Tensor:
        order = torch.randperm(len(x), device=x.device, generator=generator)
        n, total = round(self.share * len(x)), x.new_zeros((), dtype=torch.float32)
        self.shown = {}
        for objective, rows in ((self.first, order[:n]), (self.rest, order[n:])):
            if len(rows):  # a small batch may leave one of them without samples
                labels = None if c is None else c[rows]
                total = total + len(rows) / len(x) * objective.loss(map, target, x[rows], labels, clock, generator)
                self.shown |= objective.shown
        return total
