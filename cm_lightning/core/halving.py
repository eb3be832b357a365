"""Progressive distillation: whole steps of a grid whose number of steps halves in each stage (Salimans & Ho 2022)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Generator, Tensor

from cm_lightning.core.curriculum import Clock, Device, GridCurriculum, Levels, Times
from cm_lightning.core.path import VE, Path
from cm_lightning.core.solver import euler_step
from cm_lightning.core.trajectory import ConditionalDenoiser
from cm_lightning.core.weighting import Weighting
from cm_lightning.domains import COUNT
from cm_lightning.errors import ConfigError


class HalvingLevels(Levels):
    """The student takes ``steps`` steps in the first stage, and half as many in each following stage; N is one more.

    Args:
        steps: the student's steps in the first stage.
        stages: number of stages, of equal length.

    Raises:
        ConfigError: the steps cannot be halved so often.
    """

    def __init__(self, steps: int = 16, stages: int = 5) -> None:
        COUNT.check(self, steps=steps, stages=stages)
        if steps % (halvings := 2 ** (stages - 1)):
            raise ConfigError(f"HalvingLevels: steps must be a multiple of {halvings} for {stages} stages, got {steps}")
        self.steps, self.stages = steps, stages

    def stage(self, step: int, total: int) -> int:
        """The stage at a step, 0 ... stages - 1."""
        return min(step * self.stages // total, self.stages - 1)

    def __call__(self, step: int, total: int) -> int:
        return (self.steps >> self.stage(step, total)) + 1


class WholeSteps(GridCurriculum):
    """Draws neighbours t and q on a grid, and r = q, so the way ends with the step."""

    def draw(self, n: int, clock: Clock, device: Device = "cpu", generator: Generator | None = None) -> Times:
        t, q, _ = super().draw(n, clock, device, generator)
        return Times(t, q, q)

    def begins(self, clock: Clock) -> bool:
        """Whether the number of steps changes at this step of the run; false at the first."""
        step, total = clock
        return step > 0 and self.levels(step, total) != self.levels(step - 1, total)

    def phase(self, clock: Clock) -> str:
        steps = self.levels(*clock) - 1
        return f"{2 * steps} -> {steps} steps"


class TruncatedSNR(Weighting):
    """max(SNR, 1) in units of the denoiser (Salimans & Ho 2022) for a distance between the ends of steps.

    On the VE path the ends differ by (1 - q/t) times what the denoisers do, and SNR = 1/t^2.
    """

    def __call__(self, t: Tensor, r: Tensor) -> Tensor:
        return torch.clamp(t**-2, min=1.0) / (1 - r / t) ** 2


class StepMap:
    """A denoiser's Euler step as a map from t to r, for networks that take one time.

    Args:
        denoiser: E[x | x_t, c] on the path's own levels.
        path: the path of the levels; VE if None.
    """

    def __init__(self, denoiser: ConditionalDenoiser, path: Path | None = None) -> None:
        self.denoiser, self.path = denoiser, path or VE()

    def __call__(self, x: Tensor, t: Tensor, r: Tensor, c: Any = None) -> Tensor:
        return euler_step(lambda x, t: self.denoiser(x, t, c), x, t, r, self.path)


def stay(x: Tensor, t: Tensor, r: Tensor, c: Any = None) -> Tensor:
    """The map from a level to itself: the target where r is q, for which no network has to be evaluated."""
    return x
